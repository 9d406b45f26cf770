"""Sources of rated responses without people: simulated users draw pairs of them and answer by the
ratings.

Whom a row serves depends on the whole source, so all rows are read first and put in the order of
their content.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pal.data.adapter import Part
from pal.data.comparisons import Chunk, Comparison, Recorder, Reject
from pal.data.rows import RowAdapter
from pal.dataset import Split
from pal.items import Conversation, is_unicode
from pal.rows import Row


@dataclass(frozen=True)
class Rated:
    """A source row: a prompt, its responses and what each is rated, column by column."""

    place: str
    prompt: Conversation
    responses: tuple[str, ...]
    ratings: tuple[tuple[float, ...], ...]
    split: Split | None = None

    @property
    def texts(self) -> list[str]:
        return [*self.responses, *(turn.content for turn in self.prompt)]

    @property
    def content(self) -> tuple[object, ...]:
        return (self.prompt, self.responses, self.ratings, self.split or "")


class RatedAdapter(RowAdapter):
    """Reads all rows before any user is asked; a subclass says who is asked what."""

    @abstractmethod
    def rated(self, row: Row, place: str, file: Path) -> Rated | Reject:
        """Return what a row holds."""

    @abstractmethod
    def ask(self, rows: Sequence[Rated]) -> Iterable[Comparison | Reject]:
        """Return the comparisons of all users, given all rows in the order of their content."""

    def _rated(self, row: Row | Reject, place: str, file: Path) -> Rated | Reject:
        if isinstance(row, Reject):
            return row
        try:
            found = self.rated(row, place, file)
        except Exception as problem:  # an odd row costs only itself, whatever an adapter forgot
            return Reject.of(place, problem)
        if isinstance(found, Rated) and not all(map(is_unicode, found.texts)):
            return Reject(place, "invalid-unicode", "a text holds half of a surrogate pair")
        return found

    def comparisons(self, row: Row, place: str, file: Path) -> Iterable[Comparison | Reject]:
        raise NotImplementedError("rows are read together")

    def parts(self) -> Sequence[Part]:
        return [self._read_all]

    def _read_all(self) -> Chunk:
        recorder = Recorder(self.config.views)
        rows: list[Rated] = []
        source = ((place, row, file) for file in self.files for place, row in self.rows(file))
        for place, row, file in itertools.islice(source, self.config.limit):
            found = self._rated(row, place, file)
            if isinstance(found, Reject):
                recorder.add(found)
            else:
                rows.append(found)
        rows.sort(key=lambda one: one.content)
        served = set()
        for one in self.ask(rows):
            recorder.add(one)
            served.add(one.source_row)
        for place in (one.place for one in rows if one.place not in served):
            recorder.add(Reject(place, "not-drawn", "no user drew a pair of this row"))
        return recorder.chunk()
