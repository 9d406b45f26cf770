"""Conversations as a platform exports them: a folder of CSV files with known names and columns."""

from __future__ import annotations

import csv
import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import polars as pl

from pal.cells import DELIMITERS
from pal.config import ComparisonsConfig
from pal.data.adapter import Adapter, Part
from pal.data.comparisons import Chunk, Comparison, Recorder, Reject
from pal.data.encodings import Foreign
from pal.data.locate import resolve_source
from pal.data.sheets import Sheet, reading
from pal.data.sources.columns import listed
from pal.data.splits import SplitPairs, assign_splits
from pal.errors import DataError
from pal.files import file_sha256


class PlatformExport(Adapter):
    """A subclass says which files there must be and what they hold."""

    platform: ClassVar[str]
    config: ComparisonsConfig

    def __init__(self, config: ComparisonsConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        if config.source is None:
            raise DataError(
                f"dataset {self.dataset} needs to know its source; give --source FOLDER of a "
                f"{self.platform} export"
            )
        self.folder, self.origin = resolve_source(self.dataset, config.source, ["*.csv"])
        self.names = self.files()

    @abstractmethod
    def files(self) -> Sequence[str]:
        """Return the names of the files that are read; raises DataError where some are missing."""

    @abstractmethod
    def votes(self) -> Iterable[Comparison | Reject]:
        """Return all votes in the order of the files."""

    def is_file(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def no_export(self, missing: str) -> DataError:
        return DataError(
            f"{self.folder} is no {self.platform} export: {missing}; give --source FOLDER"
        )

    def inputs(self) -> dict[str, str]:
        return {name: file_sha256(self.folder / name) for name in self.names}

    def parts(self) -> Sequence[Part]:
        return [self._read]

    def _read(self) -> Chunk:
        recorder = Recorder(self.config.views)
        for vote in itertools.islice(self.votes(), self.config.limit):
            recorder.add(vote)
        return recorder.chunk()

    def rows(self, name: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yield the rows of a file below the first line that begins as ``columns`` do.

        Raises DataError where there is no such line, or some of the columns are not in it.
        """
        sheet = Sheet.of(self.folder / name)
        delimiter, number, header = self._header(sheet, columns)
        missing = [column for column in columns if column not in header]
        if missing:
            found = f"; it has {listed(header)}" if header else ""
            raise DataError(
                f"{sheet.file} has no column {', '.join(missing)}, as a {self.platform} export "
                f"has{found}; check --source"
            )
        foreign = Foreign(sheet.file)
        with reading(sheet.file), sheet.open_text() as stream:
            lines = csv.reader(foreign.watched_text(stream), delimiter=delimiter)
            for line in filter(None, itertools.islice(lines, number, None)):
                yield dict(itertools.zip_longest(header, line[: len(header)], fillvalue=""))
        foreign.require_few()

    @staticmethod
    def _header(sheet: Sheet, columns: Sequence[str]) -> tuple[str, int, list[str]]:
        """Return what stands between the cells of a file, the number of its header and the names
        there; no names where no line has the first of some columns."""
        found: tuple[str, int, list[str]] = ",", 0, []
        for delimiter in dict.fromkeys((",", sheet.delimiter, *DELIMITERS)):
            with reading(sheet.file), sheet.open_text() as stream:
                lines = enumerate(csv.reader(stream, delimiter=delimiter), start=1)
                number, header = next(((n, one) for n, one in lines if columns[0] in one), (0, []))
            if set(columns) <= set(header):
                return delimiter, number, header
            if len(header) > len(found[2]):
                found = delimiter, number, header
        return found

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        return assign_splits(pairs, self.config)
