"""Sources of rows: JSON lines, JSON, CSV or Parquet files, from a folder, a single file or the
Hub."""

from __future__ import annotations

import codecs
import csv
import fnmatch
import gzip
import itertools
import json
import sys
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import polars as pl

from pal.config import ComparisonsConfig
from pal.data.adapter import Adapter, Part
from pal.data.comparisons import Chunk, Comparison, Recorder, Reject
from pal.data.locate import resolve_source
from pal.data.splits import SplitPairs, assign_splits
from pal.errors import DataError
from pal.files import file_sha256
from pal.items import ItemError
from pal.users import UserError, user_names

Row = dict[str, Any]
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
        return {self.name_of(file): file_sha256(file) for file in self.files}

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
        rows = ((place, row, file) for file in files for place, row in self.rows(file))
        for place, row, file in itertools.islice(rows, limit):
            for one in self._found(row, place, file):
                recorder.add(one)
        return recorder.chunk()

    def _found(self, row: Row | Reject, place: str, file: Path) -> list[Comparison | Reject]:
        if isinstance(row, Reject):
            return [row]
        try:
            return list(self.comparisons(row, place, file))
        except (ItemError, UserError) as problem:
            return [Reject.of(place, problem)]

    def rows(self, file: Path) -> Iterator[tuple[str, Row | Reject]]:
        """Yield the rows of a file with their places."""
        name = self.name_of(file)
        users = self._users_of_text_file(file)
        for number, row in enumerate(read_rows(file)):
            place = f"{name}:{number:07d}"
            if not isinstance(row, dict):
                yield place, Reject(place, "malformed", row)
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
        return file.relative_to(self.folder).as_posix()

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        return assign_splits(pairs, self.config)


def files_of(place: Path, patterns: Sequence[str]) -> list[Path]:
    """Return the files of a source that match, sorted by path; a source that is a file is that
    file."""
    if place.is_file():
        return [place]
    found = [path for path in place.rglob("*") if path.is_file() and not path.name.startswith(".")]
    ends = [f"*{pattern}" for pattern in patterns]
    return sorted(
        path for path in found if any(fnmatch.fnmatch(path.as_posix(), end) for end in ends)
    )


def read_rows(file: Path) -> Iterator[Row | str]:
    """Yield rows as dictionaries, or for a row that is none a message; raises DataError for an
    unreadable file."""
    kind = next((suffix for suffix in READERS if file.name.endswith(suffix)), None)
    if kind is None:
        raise DataError(
            f"{file} is none of {', '.join(READERS)}; convert it, or point --source at a folder "
            "of those"
        )
    try:
        yield from READERS[kind](file)
    except (OSError, EOFError, zlib.error, RecursionError, ValueError, csv.Error) as error:
        raise DataError(
            f"cannot read {file} ({type(error).__name__}: {error}); fix or remove it"
        ) from error


def _json_lines(file: Path) -> Iterator[Row | str]:
    with _opened(file) as stream:
        for raw in stream:
            if not raw.strip():
                continue
            try:
                row = json.loads(raw)
            except (ValueError, RecursionError) as error:
                yield f"not JSON: {error}"[:200]
            else:
                yield row if isinstance(row, dict) else f"a {type(row).__name__}, not an object"


def _opened(file: Path) -> gzip.GzipFile | IO[bytes]:
    return gzip.open(file, "rb") if file.suffix == ".gz" else open(file, "rb")


def _json(file: Path) -> Iterator[Row | str]:
    """Yield the objects of a JSON array; a file of one object per line is read as JSON lines."""
    with open(file, "rb") as stream:
        first = stream.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if first != b"[":
        yield from _json_lines(file)
        return
    for row in json.loads(file.read_bytes()):
        yield row if isinstance(row, dict) else f"a {type(row).__name__}, not an object"


def _csv(file: Path) -> Iterator[Row | str]:
    csv.field_size_limit(sys.maxsize)
    with open(file, newline="", encoding="utf-8-sig", errors="replace") as stream:
        for row in csv.DictReader(stream):
            if None in row:
                yield f"{len(row[None])} fields more than the header has"
            else:
                yield {name: value if value != "" else None for name, value in row.items()}


def _parquet(file: Path) -> Iterator[Row | str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, pre_buffer=False) as opened:
            for batch in opened.iter_batches(PARQUET_BATCH):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise ValueError(str(error)) from error


READERS: dict[str, Callable[[Path], Iterator[Row | str]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
