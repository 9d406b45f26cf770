"""Sources of rows: JSON lines, JSON, CSV or Parquet files, from a folder, a single file or the
Hub."""

from __future__ import annotations

import codecs
import csv
import fnmatch
import gzip
import itertools
import math
import sys
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import polars as pl

from pal.config import ComparisonsConfig
from pal.data.adapter import Adapter, Part
from pal.data.comparisons import Chunk, Comparison, Recorder, Reject
from pal.data.locate import resolve_source
from pal.data.splits import SplitPairs, assign_splits
from pal.errors import DataError
from pal.files import file_sha256
from pal.items import storable
from pal.rows import BadRow, Row, other_kind, rows_of_array, rows_of_batch, rows_of_lines
from pal.users import user_names

One = TypeVar("One")
"""what an adapter makes of a row before any comparison"""
PARQUET_BATCH = 1024
TEXT_FILES = (".csv",)
"""ends of files whose values have no types"""


class RowAdapter(Adapter):
    """Reads rows one by one; a subclass says what comparisons a row holds."""

    hub: ClassVar[str | None] = None
    """dataset repository that is read where no source is given"""
    patterns: ClassVar[tuple[str, ...]] = ("*.jsonl", "*.jsonl.gz", "*.json", "*.csv", "*.parquet")
    """files of the source that are read, by the end of their path; the Hub's are fetched by the
    same patterns"""
    user_column: str | None = None
    """column that names the user; null where a row names none"""
    config: ComparisonsConfig

    def __init__(self, config: ComparisonsConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        source = config.source or (f"hf:{self.hub}" if self.hub else None)
        if source is None:
            raise DataError(
                f"dataset {self.dataset} needs to know its source; give --source PATH or "
                "hf:REPO@REV"
            )
        place, self.origin = resolve_source(
            self.dataset, source, [f"*{pattern}" for pattern in self.patterns]
        )
        self.files = files_of(place, self.patterns)
        if not self.files:
            raise DataError(
                f"{place} holds no file like {', '.join(self.patterns)}; give --source PATH of "
                f"{self.dataset}"
            )
        self.folder = place if place.is_dir() else place.parent

    @abstractmethod
    def comparisons(self, row: Row, place: str, file: Path) -> Iterable[Comparison | Reject]:
        """Return what a row holds; ``place`` names the row in rejects.

        An ItemError or a UserError makes a reject of the whole row.
        """

    def inputs(self) -> dict[str, str]:
        try:
            return {self.name_of(file): file_sha256(file) for file in self.files}
        except OSError as error:
            raise DataError(
                f"cannot read {error.filename} ({error.strerror}); change its permissions or "
                "remove it"
            ) from error

    def parts(self) -> Sequence[Part]:
        """Return a part per file; with a limit all of them are one, since rows are counted over
        files."""
        if self.config.limit is not None:
            return [lambda: self.read(self.files, self.config.limit)]
        return [self._reader(file) for file in self.files]

    def _reader(self, file: Path) -> Part:
        return lambda: self.read([file])

    def read(self, files: Sequence[Path], limit: int | None = None) -> Chunk:
        """Read the first rows of some files, None for all."""
        recorder = Recorder(self.config.views)
        for place, row, file in self.rows_of(files, limit):
            for one in self._found(row, place, file):
                recorder.add(one)
        return recorder.chunk()

    def rows_of(
        self, files: Sequence[Path], limit: int | None
    ) -> Iterator[tuple[str, Row | Reject, Path]]:
        """Yield the first rows of some files, None for all, with their places and files."""
        rows = ((place, row, file) for file in files for place, row in self.rows(file))
        return itertools.islice(rows, limit)

    def _found(self, row: Row | Reject, place: str, file: Path) -> list[Comparison | Reject]:
        if isinstance(row, Reject):
            return [row]
        try:
            return list(self.comparisons(row, place, file))
        except Exception as problem:  # an odd row costs only itself, whatever an adapter forgot
            return [Reject.of(place, problem)]

    def rows(self, file: Path) -> Iterator[tuple[str, Row | Reject]]:
        """Yield the rows of a file with their places."""
        name = self.name_of(file)
        users = self._users_of_text_file(file)
        for number, row in enumerate(read_rows(file)):
            place = f"{name}:{number:07d}"
            if isinstance(row, BadRow):
                yield place, Reject(place, "malformed", row.reason)
                continue
            if users is not None and self.user_column in row:
                row[self.user_column] = next(users)
            yield place, row

    def _users_of_text_file(self, file: Path) -> Iterator[str | None] | None:
        """Return the names of a text file's users in its order: it has no types, so its column is
        read as a whole first."""
        column = self.user_column
        if column is None or not file.name.endswith(TEXT_FILES):
            return None
        rows = (row for row in read_rows(file) if isinstance(row, dict))
        return iter(user_names([row[column] for row in rows if column in row]))

    def name_of(self, file: Path) -> str:
        """Return a file's path within the source."""
        return storable(file.relative_to(self.folder).as_posix())

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        return assign_splits(pairs, self.config)


class WholeAdapter(RowAdapter, Generic[One]):
    """Reads all rows before any comparison is made; a subclass says what a row holds, and what is
    compared."""

    not_drawn: ClassVar[str]
    """why a row that can be read is in no comparison"""

    @abstractmethod
    def one(self, row: Row, place: str, file: Path) -> One | Reject:
        """Return what a row holds."""

    @abstractmethod
    def compared(
        self, ones: dict[str, One]
    ) -> Iterable[tuple[Comparison | Reject, tuple[str, ...]]]:
        """Return the comparisons of all users, each with the places of the rows that it is made of,
        given what each row holds by its place."""

    def comparisons(self, row: Row, place: str, file: Path) -> Iterable[Comparison | Reject]:
        raise NotImplementedError("rows are read together")

    def parts(self) -> Sequence[Part]:
        return [self._read_all]

    def _read_all(self) -> Chunk:
        recorder = Recorder(self.config.views)
        ones: dict[str, One] = {}
        for place, row, file in self.rows_of(self.files, self.config.limit):
            found = row if isinstance(row, Reject) else self._one(row, place, file)
            if isinstance(found, Reject):
                recorder.add(found)
            else:
                ones[place] = found
        drawn: set[str] = set()
        for comparison, places in self.compared(ones):
            recorder.add(comparison)
            drawn.update(places)
        for place in ones.keys() - drawn:
            recorder.add(Reject(place, "not-drawn", self.not_drawn))
        return recorder.chunk()

    def _one(self, row: Row, place: str, file: Path) -> One | Reject:
        try:
            return self.one(row, place, file)
        except Exception as problem:  # an odd row costs only itself, whatever an adapter forgot
            return Reject.of(place, problem)


def files_of(place: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a source that match, sorted by path; a source that is a file is that
    file."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{place} is neither a file nor a folder; give --source PATH of one")
    found = [path for path in place.rglob("*") if path.is_file() and not path.name.startswith(".")]
    ends = [f"*{pattern}" for pattern in patterns]
    return sorted(
        path for path in found if any(fnmatch.fnmatch(path.as_posix(), end) for end in ends)
    )


def number_of(value: Any) -> float | None:
    """Return a number that is finite, perhaps written as a text; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_rows(file: Path) -> Iterator[Row | BadRow]:
    """Yield rows as dictionaries, or why one cannot be read; raises DataError for an unreadable
    file."""
    kind = next((suffix for suffix in READERS if file.name.endswith(suffix)), None)
    if kind is None:
        raise DataError(
            f"{file} is none of {', '.join(READERS)}; convert it, or point --source at a folder "
            "of those"
        )
    try:
        yield from READERS[kind](file)
    except (OSError, EOFError, zlib.error, ValueError, csv.Error) as error:
        raise DataError(
            f"cannot read {file} ({type(error).__name__}: {error}); fix or remove it"
        ) from error


def _json_lines(file: Path) -> Iterator[Row | BadRow]:
    with gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb") as stream:
        _require_text(stream.peek(8))
        yield from rows_of_lines(stream)


def _require_text(start: bytes) -> None:
    kind = other_kind(start)
    if kind is not None:
        raise ValueError(f"it is {kind}, not text")


def _json(file: Path) -> Iterator[Row | BadRow]:
    """Yield the objects of a JSON array; a file of one object per line is read as JSON lines."""
    with open(file, "rb") as stream:
        first = stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    yield from rows_of_array(file.read_bytes()) if first == b"[" else _json_lines(file)


def _csv(file: Path) -> Iterator[Row | BadRow]:
    csv.field_size_limit(sys.maxsize)
    with open(file, "rb") as raw:
        _require_text(raw.peek(8))
    # bytes that are no UTF-8 become halves of surrogate pairs, which no text may hold
    with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
        lines = _Lines(stream)
        for number, row in enumerate(csv.DictReader(lines), start=1):
            if None in row:
                yield BadRow(number, f"{len(row[None])} fields more than the header has")
            else:
                yield {name: value if value != "" else None for name, value in row.items()}
            lines.end_row()
        lines.require_closed()


class _Lines:
    """Lines of a CSV file, of which the last row's are remembered."""

    def __init__(self, stream: Iterable[str]) -> None:
        self.stream = iter(stream)
        self.row: list[str] = []
        self.before: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.row.append(next(self.stream))
        return self.row[-1]

    def end_row(self) -> None:
        self.before, self.row = self.row, []

    def require_closed(self) -> None:
        """Raise ValueError where a quote that is never closed swallowed the rest of the file."""
        last = self.row or self.before
        try:
            list(csv.reader(last, strict=True))
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                message = (
                    f"a quote is never closed, the one of the row that begins {last[0][:80]!r}"
                )
                raise ValueError(message) from None


def _parquet(file: Path) -> Iterator[Row | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    before = 0
    try:
        with pq.ParquetFile(file, pre_buffer=False) as opened:
            for batch in opened.iter_batches(PARQUET_BATCH):
                yield from rows_of_batch(batch, before)
                before += batch.num_rows
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


READERS: dict[str, Callable[[Path], Iterator[Row | BadRow]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}

__all__ = [
    "READERS", "Row", "RowAdapter", "WholeAdapter", "files_of", "number_of", "read_rows",
]  # fmt: skip
