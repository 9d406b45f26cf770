"""Sources of rows: files of JSON lines, JSON, CSV, Parquet or Arrow, from a folder, a single file
or the Hub."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import polars as pl
from pydantic import AfterValidator, Field

from pal.cells import with_point
from pal.config import ComparisonsConfig
from pal.data.adapter import Adapter, Part
from pal.data.comparisons import Chunk, Comparison, Recorder, Reject
from pal.data.encodings import known_encoding
from pal.data.locate import files_of, resolve_source, splits_of_names
from pal.data.pictures import is_file, places_of
from pal.data.readers import numbered_rows
from pal.data.sheets import ENDS, PACKED, Sheet
from pal.data.splits import SplitPairs, assign_splits
from pal.data.survey import Survey
from pal.dataset import Split
from pal.errors import DataError, DiskError
from pal.files import file_sha256
from pal.items import storable
from pal.rows import BadRow, Row
from pal.users import user_names

One = TypeVar("One")
"""what an adapter makes of a row before any comparison"""
TEXT_ENDS = (".jsonl", ".json", ".csv", ".tsv")
PATTERNS = tuple(f"*{end}" for end in (*ENDS, *(f"{end}{PACKED}" for end in TEXT_ENDS)))


class OwnFilesConfig(ComparisonsConfig):
    """What the user may say of the own files where they do not say it themselves."""

    encoding: Annotated[str, AfterValidator(known_encoding)] | None = None
    """Of text files that are not UTF-8, e.g. cp1252; those of UTF-16 with a mark are recognised."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """Between the cells of CSV files; null: commas, semicolons, tabs or vertical bars, by what the
    file looks like."""


class RowAdapter(Adapter):
    """Reads rows one by one; a subclass says what comparisons a row holds."""

    hub: ClassVar[str | None] = None
    """dataset repository that is read where no source is given"""
    patterns: ClassVar[tuple[str, ...]] = PATTERNS
    """files of the source that are read, by the end of their path; the Hub's are fetched by the
    same patterns"""
    user_column: ClassVar[str | None] = None
    """column that names the user; null where a row names none"""
    keeps_images = True
    """whether images that rows hold within strings are written to the image folder"""
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
        self._sheets: dict[Path, Sheet] = {}

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
        except DiskError:
            raise
        except Exception as problem:  # an odd row costs only itself, whatever an adapter forgot
            return [Reject.of(place, problem)]

    def rows(self, file: Path) -> Iterator[tuple[str, Row | Reject]]:
        """Yield the rows of a file with their places."""
        name, sheet = self.name_of(file), self.sheet(file)
        columns = self.user_columns if sheet.is_untyped else ()
        numbers = self.number_columns if sheet.has_decimal_commas else ()
        for number, row in numbered_rows(sheet):
            place = f"{name}:{number:07d}"
            if isinstance(row, BadRow):
                yield place, Reject(place, "malformed", row.reason)
                continue
            for column in columns:
                if column in row:
                    row[column] = self._user_of_text_file(column, row[column])
            for column in numbers:
                if column in row:
                    row[column] = with_point(row[column])
            yield place, row

    def told(self) -> Iterator[str]:
        """Yield what was understood of the columns, for people; raises DataError where that is not
        clear."""
        return iter(())

    def sheet(self, file: Path) -> Sheet:
        """Return how a file is read."""
        if file not in self._sheets:
            if isinstance(self.config, OwnFilesConfig):
                said = self.config.encoding, self.config.delimiter
                self._sheets[file] = Sheet.of(file, *said, f"data.{self.dataset}")
            else:
                self._sheets[file] = Sheet.of(file)
        return self._sheets[file]

    @cached_property
    def survey(self) -> Survey:
        """What all rows hold, column by column; the files are read once more for it."""
        found, left = Survey(), self.config.limit
        for file in self.files:
            sheet = self.sheet(file)

            def exists(value: str, file: Path = file) -> bool:
                return any(map(is_file, places_of(value, self.folder, file.parent)))

            for _, row in itertools.islice(numbered_rows(sheet, with_bytes=False), left):
                read = None if isinstance(row, BadRow) else row
                found.add(file, read, sheet.is_untyped, exists, sheet.has_decimal_commas)
            found.add_unread(sheet.images)
            left = None if left is None else left - found.rows.get(file, 0)
        return found

    @property
    def user_columns(self) -> Sequence[str]:
        """Columns that name users, the first that a row has counts."""
        return () if self.user_column is None else (self.user_column,)

    @property
    def number_columns(self) -> Sequence[str]:
        """Columns that may hold numbers, which some files write with a decimal comma."""
        return ()

    def told_of_commas(self) -> Iterator[str]:
        """Yield which columns of numbers have decimal commas, for people."""
        for column in map(self.survey.column, self.number_columns):
            if column.commas:
                yield f"{column.name}: {column.commas:,} numbers with a decimal comma; 1,5 is 1.5"

    def _user_of_text_file(self, column: str, value: str | None) -> str | None:
        """Return the name of a user in a file without types: whether 7.0 is the number 7 is said
        by the whole column."""
        are_numbers = self.survey.column(column).are_numbers
        return user_names([value] if are_numbers else [value, "a text"])[0]

    def split_of(self, file: Path) -> Split | None:
        """Return the split that a file's name says."""
        return self._splits[file]

    @cached_property
    def _splits(self) -> dict[Path, Split | None]:
        splits = splits_of_names([self.name_of(file) for file in self.files])
        return dict(zip(self.files, splits, strict=True))

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


def number_of(value: Any) -> float | None:
    """Return a number that is finite, perhaps written as a text; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
