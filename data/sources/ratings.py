"""The user's own ratings: somebody gives an item a number.

Two items that one user rated, under the same prompt where there are prompts, are a comparison: the
higher number is preferred. Which two are compared is drawn by hash, so many for each user.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pal.chance import bucket
from pal.config import ComparisonsConfig, Component
from pal.data.comparisons import Comparison, Reject, preferred, prompt_key
from pal.data.rows import Row, WholeAdapter
from pal.data.sources.columns import values_of
from pal.items import Conversation, ItemError, Text, conversation
from pal.users import UserError, user_name

NAMES = {
    "user_id": ("user_id", "user", "participant", "rater", "annotator"),
    "item": ("item", "response", "text", "statement", "answer"),
    "prompt": ("prompt", "question"),
    "rating": ("rating", "stars", "score", "label"),
}
"""what columns are called where nobody says"""


class RatingsColumns(Component):
    """Which column of the user's own ratings holds what; null: the one of a usual name."""

    user_id: str | None = None
    """Who rated: user_id, user, participant, rater or annotator."""
    item: str | None = None
    """What was rated: item, response, text, statement or answer."""
    prompt: str | None = None
    """What the item answers, where it answers something: prompt or question."""
    rating: str | None = None
    """A number: rating, stars, score or label."""


class RatingsConfig(ComparisonsConfig):
    """The user's own ratings: JSON lines, JSON, CSV, Parquet or a dataset on the Hub."""

    columns: RatingsColumns = RatingsColumns()
    """Which column holds what."""
    least_difference: Annotated[float, Field(gt=0.0)] = 1.0
    """Ratings that differ by less are no comparison."""
    most_per_user: PositiveInt = 200
    """Comparisons of each user, drawn evenly over the prompts."""
    strength: Literal["drop", "soft"] = "drop"
    """How much one rating is above the other: left out; or as a soft label, one half plus half of
    the difference as a share of the file's widest."""


@dataclass(frozen=True)
class Rating:
    """What one user thinks of one item."""

    place: str
    user: str
    prompt: Conversation
    item: Text
    value: float


class OwnRatings(WholeAdapter[Rating]):
    """One rating per row."""

    name = "ratings"
    Settings = RatingsConfig
    licence = "the user's own"
    not_drawn = "no other rating of its user under its prompt differs enough, or was drawn"
    config: RatingsConfig

    def __init__(self, config: RatingsConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        self.user_column = config.columns.user_id or NAMES["user_id"][0]

    def one(self, row: Row, place: str, file: Path) -> Rating | Reject:
        values = values_of(row, place, self.config.columns, NAMES, ("item", "rating"))
        if isinstance(values, Reject):
            return values
        try:
            user = user_name(values["user_id"])
            prompt = conversation(values["prompt"])
            turns = conversation(values["item"], "assistant")
        except (ItemError, UserError) as problem:
            return Reject.of(place, problem)
        if user is None:
            return Reject(place, "no-user", "the row names no user")
        if not turns or not turns[-1].content.strip():
            return Reject(place, "empty-text", "the rated item is empty")
        try:
            value = float(values["rating"])
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value):
            shown = repr(values["rating"])[:80]
            return Reject(place, "bad-label", f"the rating is {shown}, no finite number")
        last = turns[-1]
        return Rating(
            place, user, (*prompt, *turns[:-1]), Text(last.content, role=last.role), value
        )

    def compared(self, ones: dict[str, Rating]) -> Iterator[tuple[Comparison, tuple[str, ...]]]:
        values = [one.value for one in ones.values()]
        widest = max(values, default=0.0) - min(values, default=0.0)
        for one, other in self._drawn(list(ones.values())):
            yield self._comparison(one, other, widest), (one.place, other.place)

    def _drawn(self, ratings: Sequence[Rating]) -> Iterator[tuple[Rating, Rating]]:
        """Yield the comparisons of each user: one of each prompt in turn, in an order by hash."""
        by_user: dict[str, dict[bytes, list[Rating]]] = {}
        for one in ratings:
            by_user.setdefault(one.user, {}).setdefault(prompt_key(one.prompt), []).append(one)
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
        found = preferred(place, one.user, one.prompt, better.item, worse.item, salt)
        if self.config.strength == "drop":
            return found
        share = (better.value - worse.value) / widest
        return replace(found, label=0.5 + (found.label - 0.5) * share)
