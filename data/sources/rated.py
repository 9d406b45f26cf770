"""Sources of rated responses without people: simulated users draw pairs of them and answer by the
ratings.

Whom a row serves depends on the whole source, so all rows are read first and put in the order of
their content.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pal.data.comparisons import Comparison, Reject
from pal.data.rows import WholeAdapter
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


class RatedAdapter(WholeAdapter[Rated]):
    """A subclass says what a row holds and who is asked what."""

    not_drawn = "no user drew a pair of this row"

    @abstractmethod
    def rated(self, row: Row, place: str, file: Path) -> Rated | Reject:
        """Return what a row holds."""

    @abstractmethod
    def ask(self, rows: Sequence[Rated]) -> Iterable[Comparison | Reject]:
        """Return the comparisons of all users, given all rows in the order of their content."""

    def one(self, row: Row, place: str, file: Path) -> Rated | Reject:
        found = self.rated(row, place, file)
        if isinstance(found, Rated) and not all(map(is_unicode, found.texts)):
            return Reject(place, "invalid-unicode", "a text holds half of a surrogate pair")
        return found

    def compared(
        self, ones: dict[str, Rated]
    ) -> Iterable[tuple[Comparison | Reject, tuple[str, ...]]]:
        for one in self.ask(sorted(ones.values(), key=lambda one: one.content)):
            yield one, (one.source_row,)
