"""UltraFeedback's ratings, answered by simulated users who look at one attribute each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from pal.chance import draw
from pal.config import ComparisonsConfig
from pal.data.comparisons import Comparison, Reject, preferred
from pal.data.rows import number_of
from pal.data.sources.rated import Rated, RatedAdapter
from pal.items import Text, question
from pal.rows import Row

Candidate = tuple[Rated, int, int]


class UltraFeedbackPConfig(ComparisonsConfig):
    """UltraFeedback's ratings, answered by users who look at one attribute each."""

    users: PositiveInt = 40
    """Simulated users of all populations together, assigned to the attributes in turn."""
    attributes: Annotated[
        tuple[Literal["helpfulness", "honesty", "instruction_following", "truthfulness"], ...],
        Field(min_length=1),
    ] = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    """What the users look at."""
    pairs_per_user: PositiveInt = 200
    """Pairs drawn per user; fewer where the source has fewer."""
    controversial: bool = True
    """Whether to keep only pairs of which two attributes prefer different responses."""


class UltraFeedbackP(RatedAdapter):
    """A user prefers the response that is rated higher on the own attribute; equal ratings are
    never asked."""

    name = "ultrafeedback-p"
    Settings = UltraFeedbackPConfig
    hub = "openbmb/UltraFeedback"
    patterns = ("*.jsonl", "*.parquet", "*.json")
    licence = "MIT"
    config: UltraFeedbackPConfig

    def rated(self, row: Row, place: str, file: Path) -> Rated | Reject:
        instruction, completions = row.get("instruction"), row.get("completions")
        if not isinstance(instruction, str) or not instruction.strip():
            return Reject(place, "no-prompt", "the row has no instruction")
        if not isinstance(completions, list):
            return Reject(place, "malformed", "completions is not a list")
        rated = [
            (one["response"], _ratings(one, self.config.attributes))
            for one in completions
            if _is_answer(one)
        ]
        whole = sorted((response, ratings) for response, ratings in rated if ratings is not None)
        if len(whole) < 2:
            return Reject(
                place,
                "no-ratings",
                f"{len(whole)} completions are rated on every attribute, not two",
            )
        found = Rated(
            place,
            question(instruction),
            tuple(text for text, _ in whole),
            tuple(ratings for _, ratings in whole),
        )
        if not self._pairs(found):
            return Reject(
                place, "not-controversial", "no two responses are preferred by different attributes"
            )
        return found

    def _pairs(self, row: Rated) -> list[tuple[int, int]]:
        """Return the pairs that some user may be asked about."""
        found = []
        for one, other in combinations(range(len(row.responses)), 2):
            signs = {
                (a > b) - (a < b) for a, b in zip(row.ratings[one], row.ratings[other], strict=True)
            }
            if ({-1, 1} <= signs or not self.config.controversial) and row.responses[
                one
            ] != row.responses[other]:
                found.append((one, other))
        return found

    def ask(self, rows: Sequence[Rated]) -> Iterable[Comparison | Reject]:
        pairs = [(row, one, other) for row in rows for one, other in self._pairs(row)]
        candidates: list[list[Candidate]] = [
            [(row, i, j) for row, i, j in pairs if row.ratings[i][number] != row.ratings[j][number]]
            for number in range(len(self.config.attributes))
        ]
        for user in range(self.config.users):
            number = user % len(self.config.attributes)
            name = f"{self.config.attributes[number]}-{user:05d}"
            own = candidates[number]
            for place in draw("ask", self.config.salt, name, len(own), self.config.pairs_per_user):
                row, better, worse = own[place]
                if row.ratings[better][number] < row.ratings[worse][number]:
                    better, worse = worse, better
                items = Text(row.responses[better]), Text(row.responses[worse])
                columns = {"attribute": self.config.attributes[number]}
                yield preferred(
                    row.place, name, row.prompt, *items, self.config.salt, columns=columns
                )


def _is_answer(completion: Any) -> bool:
    return isinstance(completion, dict) and isinstance(completion.get("response"), str)


def _ratings(completion: dict[str, Any], attributes: Sequence[str]) -> tuple[float, ...] | None:
    """Return a completion's ratings, published as texts, or None where one is missing or N/A."""
    annotations = completion.get("annotations")
    if not isinstance(annotations, dict):
        return None
    given = [annotations.get(name) for name in attributes]
    found = [number_of(one.get("Rating")) if isinstance(one, dict) else None for one in given]
    ratings = tuple(rating for rating in found if rating is not None)
    return ratings if len(ratings) == len(attributes) else None
