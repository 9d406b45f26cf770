"""How a file of rows is read: recognised once, by its name and its beginning, or asked for.

Reader and doctor share this record, so that what is told of a file is what was done with it.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal, cast

from pal.cells import DELIMITERS, delimiter_of
from pal.data.arrow import columns_of_bytes
from pal.data.encodings import encoding_of, is_utf8
from pal.errors import DataError
from pal.rows import other_kind

Kind = Literal["JSON lines", "JSON", "CSV", "Parquet", "Arrow"]
ENDS: dict[str, Kind] = {
    ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON", ".csv": "CSV", ".tsv": "CSV",
    ".parquet": "Parquet", ".arrow": "Arrow", ".feather": "Arrow",
}  # fmt: skip
PACKED = ".gz"
"""a further end, of a text file that gzip compressed"""
BEGINNING = 1 << 16
"""bytes by which a file is recognised"""


@dataclass(frozen=True)
class Sheet:
    """How a file of rows is read."""

    file: Path
    kind: Kind
    is_packed: bool = False
    encoding: str = "utf-8"
    """of a text file; ``utf-8-sig`` is UTF-8 behind a mark"""
    delimiter: str = ","
    """between the cells of a CSV file"""
    header: int = 1
    """row of a CSV file that has the names of the columns, counted as a spreadsheet does"""
    images: tuple[str, ...] = ()
    """columns of a Parquet or Arrow file that hold bytes, which are read only when needed"""
    settings: str | None = None
    """where the user can say how files are read, e.g. ``data.pairs``; None: nowhere"""

    @classmethod
    def of(
        cls,
        file: Path,
        encoding: str | None = None,
        delimiter: str | None = None,
        settings: str | None = None,
    ) -> Sheet:
        """Recognise a file; what the user says of it counts unless the file says otherwise.

        Raises DataError for a file that is no file of rows, cannot be read, or contradicts what
        was said.
        """
        name = file.name.lower()
        is_packed = name.endswith(PACKED)
        name = name.removesuffix(PACKED)
        kind = next((kind for end, kind in ENDS.items() if name.endswith(end)), None)
        if kind is None or (is_packed and kind in ("Parquet", "Arrow")):
            raise DataError(
                f"{file} is none of {', '.join(ENDS)}, the text files also with {PACKED}; convert "
                "it, e.g. a spreadsheet to .csv, or point --source at a folder of those"
            )
        with reading(file):
            if kind in ("Parquet", "Arrow"):
                return cls(file, kind, images=columns_of_bytes(file), settings=settings)
            sheet = cls(file, kind, is_packed, settings=settings)
            return sheet._recognised(encoding, delimiter)

    def _recognised(self, encoding: str | None, delimiter: str | None) -> Sheet:
        with self.open() as stream:
            start = stream.read(BEGINNING)
        other = other_kind(start)
        if other is not None:
            raise ValueError(f"it is {other}, not text")
        found = encoding_of(start)
        if found is None and encoding is not None and not is_utf8(encoding):
            self._require_other_than_utf8(encoding)
        chosen = found or encoding or "utf-8"
        sheet = replace(self, encoding=chosen)
        if self.kind != "CSV":
            return sheet
        text = start.decode(chosen, errors="replace")
        first = text.partition("\n")[0].strip("\r ")
        if len(first) == len("sep=;") and first.lower().startswith("sep="):  # Excel's own line
            return replace(sheet, delimiter=delimiter or first[-1], header=2)
        is_whole = len(start) < BEGINNING
        return replace(sheet, delimiter=delimiter or delimiter_of(text, is_whole))

    def _require_other_than_utf8(self, encoding: str) -> None:
        """Raise ValueError where a file that is said to have another encoding is certainly
        UTF-8."""
        decoder, has_letters = codecs.getincrementaldecoder("utf-8")(), False
        with self.open() as stream:
            while block := stream.read(1 << 20):
                has_letters = has_letters or not block.isascii()
                try:
                    decoder.decode(block)
                except UnicodeDecodeError:
                    return
        if has_letters:
            raise ValueError(f"it is UTF-8, but {self.settings}.encoding says {encoding}")

    def open(self) -> IO[bytes]:
        """Open the file's bytes, unpacked."""
        opener = gzip.open if self.is_packed else open
        return cast(IO[bytes], opener(self.file, "rb"))

    def open_text(self) -> io.TextIOWrapper:
        """Open a text file with its own ends of lines.

        Bytes that are no UTF-8 become halves of surrogate pairs, which no text may hold; in any
        other encoding they are an error.
        """
        errors = "surrogateescape" if is_utf8(self.encoding) else "strict"
        return io.TextIOWrapper(self.open(), encoding=self.encoding, errors=errors, newline="")

    @property
    def is_untyped(self) -> bool:
        """Whether its cells have no types, as those of text files of cells."""
        return self.kind == "CSV"

    @property
    def has_decimal_commas(self) -> bool:
        """Whether a comma within a number is its decimal mark: it stands between no cells, as in
        the files of programs that write 1,75."""
        return self.kind == "CSV" and self.delimiter != ","

    def __str__(self) -> str:
        parts: list[str] = [self.kind]
        if self.kind == "CSV":
            parts.append(f"{DELIMITERS.get(self.delimiter, repr(self.delimiter))} between cells")
        if self.kind in ("CSV", "JSON", "JSON lines"):
            parts.append(self.encoding.upper().replace("-SIG", " with a mark"))
        return ", ".join([*parts, *["gzip"] * self.is_packed])


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Raise DataError, which names the file, for whatever a file makes its readers raise."""
    try:
        yield
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise DataError(
            f"cannot read {file} ({type(error).__name__}: {error}); fix or remove it"
        ) from error
