"""The user's own ratings: somebody gives an item a number.

Two items that one user rated, under the same prompt where there are prompts, are a comparison: the
higher number is preferred. Which two are compared is drawn by hash, so many for each user.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pal.chance import bucket
from pal.config import Component
from pal.data.adapter import Part
from pal.data.comparisons import Comparison, Reject, preferred, prompt_key
from pal.data.messages import spoken
from pal.data.rows import OwnFilesConfig, WholeAdapter, number_of
from pal.data.sources.answers import is_missing
from pal.data.sources.columns import PEOPLE, PROMPTS, USERS, Columns, Vocabulary
from pal.dataset import Split
from pal.errors import shown
from pal.items import Conversation, Text, conversation
from pal.rows import Row
from pal.users import user_name

WORDS = Vocabulary(
    usual={
        "user_id": USERS,
        "item": ("item", "response", "text", "statement", "answer"),
        "prompt": PROMPTS,
        "rating": ("rating", "stars", "score", "label"),
    },
    needed=(("user_id", "item", "rating"),),
    likely={
        "user_id": PEOPLE,
        "item": ("completion", "output", "content", "comment"),
        "rating": ("grade", "points", "mark", "value", "rank"),
    },
)


class RatingsColumns(Component):
    """Which column of the user's own ratings holds what; null: the one of a usual name."""

    user_id: str | None = None
    """Who rated: user_id, user, participant, annotator, rater, worker, voter or respondent."""
    item: str | None = None
    """What was rated: item, response, text, statement or answer."""
    prompt: str | None = None
    """What the item answers, where it answers something: prompt, question or instruction."""
    rating: str | None = None
    """A number: rating, stars, score or label."""


class RatingsConfig(OwnFilesConfig):
    """The user's own ratings: JSON lines, JSON, CSV, Parquet, Arrow or a dataset on the Hub."""

    columns: RatingsColumns = RatingsColumns()
    """Which column holds what."""
    least_difference: Annotated[float, Field(gt=0.0)] = 1.0
    """Ratings that differ by less are no comparison."""
    most_per_user: PositiveInt = 200
    """Comparisons of each user, drawn evenly over the prompts."""
    strength: Literal["drop", "soft"] = "drop"
    """How much one rating is above the other: left out; or as a soft label, one half plus half of
    the difference as a share of the file's widest."""


def _hint(given: str) -> str:
    """Return what to do about a number with marks that nobody can be sure of, such as 1.234,5."""
    has_marks = "," in given and given.strip("'+-").replace(",", "").replace(".", "").isdigit()
    return "; write it with a point before the decimals and no other mark" if has_marks else ""


@dataclass(frozen=True)
class Rating:
    """What one user thinks of one item."""

    place: str
    user: str
    prompt: Conversation
    item: Text
    value: float
    split: Split | None
    """that the name of its file says"""


class OwnRatings(WholeAdapter[Rating]):
    """One rating per row."""

    name = "ratings"
    Settings = RatingsConfig
    licence = "the user's own"
    not_drawn = "no other rating of its user under its prompt differs enough, or was drawn"
    config: RatingsConfig

    def parts(self) -> Sequence[Part]:
        self.columns  # noqa: B018, what cannot be understood is said before any row
        return super().parts()

    @cached_property
    def columns(self) -> Columns:
        """Which column holds what; raises DataError where that is not clear."""
        return Columns.of(self.survey, self.config.columns, WORDS, self.dataset)

    def told(self) -> Iterator[str]:
        yield self.columns.told()
        yield self.survey.column(self.columns.shown("rating")).told()
        yield from self.told_of_commas()

    @property
    def user_columns(self) -> Sequence[str]:
        return self.columns.taken["user_id"]

    @property
    def number_columns(self) -> Sequence[str]:
        return self.columns.taken["rating"]

    def one(self, row: Row, place: str, file: Path) -> Rating | Reject:
        columns = self.columns
        absent = [name for name in ("item", "rating") if columns.of_row(row, name) is None]
        if absent:
            message = f"the row has no {' and no '.join(map(columns.shown, absent))}"
            return Reject(place, "missing-column", message)
        values = {name: columns.value(row, name) for name in columns.taken}
        user = user_name(values["user_id"])
        prompt = conversation(spoken(values["prompt"]))
        turns = conversation(spoken(values["item"]), "assistant")
        if user is None:
            return Reject(place, "no-user", "the row names no user")
        if not turns or not turns[-1].content.strip():
            return Reject(place, "empty-text", "the rated item is empty")
        if is_missing(values["rating"]):
            return Reject(place, "no-rating", "the row holds no rating")
        value = number_of(values["rating"])
        if value is None:
            given = shown(values["rating"])
            return Reject(
                place, "bad-label", f"the rating is {given}, no finite number{_hint(given)}"
            )
        item = Text(turns[-1].content, role=turns[-1].role)
        return Rating(place, user, (*prompt, *turns[:-1]), item, value, self.split_of(file))

    def compared(self, ones: dict[str, Rating]) -> Iterator[tuple[Comparison, tuple[str, ...]]]:
        values = [one.value for one in ones.values()]
        widest = max(values, default=0.0) - min(values, default=0.0)
        for one, other in self._drawn(list(ones.values())):
            yield self._comparison(one, other, widest), (one.place, other.place)

    def _drawn(self, ratings: Sequence[Rating]) -> Iterator[tuple[Rating, Rating]]:
        """Yield the comparisons of each user: one of each prompt in turn, in an order by hash."""
        by_user: dict[str, dict[tuple[bytes, Split | None], list[Rating]]] = {}
        for one in ratings:
            key = prompt_key(one.prompt), one.split
            by_user.setdefault(one.user, {}).setdefault(key, []).append(one)
        for user, prompts in by_user.items():
            rounds = [self._pairs(user, members) for members in prompts.values()]
            turns = itertools.zip_longest(*rounds)
            chosen = (pair for turn in turns for pair in turn if pair is not None)
            yield from itertools.islice(chosen, self.config.most_per_user)

    def _pairs(self, user: str, members: Sequence[Rating]) -> Iterator[tuple[Rating, Rating]]:
        """Yield pairs that differ enough, each item as often as another: neighbours on a circle in
        an order by hash, then those two places apart, and so on."""

        def place(one: Rating) -> float:
            return bucket("rated", self.config.salt, f"{user}\x1f{one.item.id.hex()}")

        circle = sorted(members, key=place)
        for apart in range(1, len(circle) // 2 + 1):
            is_half = 2 * apart == len(circle)
            for start in range(len(circle) // 2 if is_half else len(circle)):
                one, other = circle[start], circle[(start + apart) % len(circle)]
                if abs(one.value - other.value) >= self.config.least_difference:
                    yield one, other

    def _comparison(self, one: Rating, other: Rating, widest: float) -> Comparison:
        better, worse = (one, other) if one.value > other.value else (other, one)
        place = f"{better.place} {worse.place}"
        salt = self.config.salt
        items = better.item, worse.item
        found = preferred(place, one.user, one.prompt, *items, salt, split=one.split)
        if self.config.strength == "drop":
            return found
        share = (better.value - worse.value) / widest
        return replace(found, label=0.5 + (found.label - 0.5) * share)
