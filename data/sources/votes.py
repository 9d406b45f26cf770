"""The user's own votes: somebody agrees with an item, disagrees, or passes.

A vote is an answer to a question about the item, as in persona's statements: the item is the
prompt, and ``Agree`` and ``Disagree`` are the two sides. Rows have a user, an item, perhaps a
prompt that the item answers, and a vote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field, PositiveInt

from pal.chance import bucket
from pal.config import ComparisonsConfig, Component
from pal.data.comparisons import Comparison, Reject
from pal.data.rows import Row, RowAdapter
from pal.data.splits import SplitPairs
from pal.items import Conversation, Text, conversation
from pal.users import user_name

AGREE, DISAGREE = "Agree", "Disagree"
VOTES: dict[str, float | None] = {
    "agree": 1.0, "yes": 1.0, "true": 1.0, "1": 1.0, "up": 1.0, "like": 1.0,
    "disagree": 0.0, "no": 0.0, "false": 0.0, "-1": 0.0, "down": 0.0, "dislike": 0.0,
    "pass": None, "skip": None, "unsure": None, "neutral": None, "0": None,
}  # fmt: skip
"""what a vote is called, in lower case; None is a pass"""
NAMES = {
    "user_id": ("user_id", "user", "participant", "participant_id", "voter", "voter-id"),
    "item": ("item", "statement", "comment", "comment-body", "text", "response"),
    "prompt": ("prompt", "question"),
    "vote": ("vote", "answer", "label"),
}
"""what columns are called where nobody says"""


class VotesColumns(Component):
    """Which column of the user's own votes holds what; null: the one of a usual name."""

    user_id: str | None = None
    """Who voted: user_id, user, participant or voter."""
    item: str | None = None
    """What was voted on: item, statement, comment, text or response."""
    prompt: str | None = None
    """What the item answers, where it answers something: prompt or question."""
    vote: str | None = None
    """agree, disagree or pass, 1, -1 or 0, yes or no: vote, answer or label."""


class VoteRules(ComparisonsConfig):
    """Settings that all sources of votes share."""

    grouping: Literal["prompt", "prompt+items"] = "prompt"
    """What is never divided over two splits: all votes on an item. Agree and Disagree, which all
    votes share, join nothing."""
    passes: Literal["drop", "half"] = "drop"
    """Passes: left out and counted, or a tie between Agree and Disagree."""
    min_answers: PositiveInt = 1
    """People with fewer votes in all are left out and counted."""


class VotesConfig(VoteRules):
    """The user's own votes: JSON lines, JSON, CSV, Parquet or a dataset on the Hub."""

    columns: VotesColumns = VotesColumns()
    """Which column holds what."""
    values: dict[Literal["vote"], dict[str, Annotated[float, Field(ge=0.0, le=1.0)]]] = Field(
        default_factory=dict
    )
    """What the words of the file mean: ``vote: {oui: 1, non: 0, bof: 0.5}``; others keep their
    usual meaning."""


def vote_on(
    item: Conversation, place: str, user: str | None, agrees: float, salt: str
) -> Comparison:
    """Return the comparison that a vote on an item is; ``agrees``: P(agree).

    Which side Agree stands on is by hash.
    """
    agree, disagree = Text(AGREE, role="user"), Text(DISAGREE, role="user")
    key = "\x1f".join([str(user), *(turn.content for turn in item)])
    if bucket("side", salt, key) < 0.5:
        return Comparison(place, user, item, agree, disagree, agrees)
    return Comparison(place, user, item, disagree, agree, 1.0 - agrees)


def without_few(pairs: pl.DataFrame, least: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Separate the votes of people who gave fewer than ``least``: what is kept, and rejects."""
    few = pl.len().over("user_id") < least
    left_out = pairs.filter(few).select(
        "source_row",
        reason=pl.lit("too-few-answers"),
        message=pl.lit(f"its user gave fewer than min_answers = {least} answers"),
    )
    return pairs.filter(~few), left_out


class OwnVotes(RowAdapter):
    """One vote per row."""

    name = "votes"
    Settings = VotesConfig
    licence = "the user's own"
    config: VotesConfig

    def __init__(self, config: VotesConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        self.words = {**VOTES, **_lowered(config.values.get("vote", {}))}
        self.user_column = config.columns.user_id or NAMES["user_id"][0]

    def comparisons(self, row: Row, place: str, file: Path) -> Iterable[Comparison | Reject]:
        found = {name: self._value(row, name) for name in NAMES}
        if found["item"] is None:
            return [Reject(place, "missing-column", self._absent(row, "item"))]
        if found["vote"] is None:
            if self._column(row, "vote") is None:
                return [Reject(place, "missing-column", self._absent(row, "vote"))]
            return [Reject(place, "no-vote", "the row holds no vote")]
        word = str(found["vote"]).strip().lower().removesuffix(".0")
        if word not in self.words:
            known = ", ".join(self.words)
            message = f"the vote is {str(found['vote'])[:80]!r}, none of {known}; use values"
            return [Reject(place, "bad-label", message)]
        agrees = self.words[word]
        if agrees is None and self.config.passes == "drop":
            return [Reject(place, "pass", "the user passed")]
        item = conversation(found["item"], "assistant" if found["prompt"] else "user")
        asked = (*conversation(found["prompt"]), *item)
        user = user_name(found["user_id"])
        p = 0.5 if agrees is None else agrees
        return [vote_on(asked, place, user, p, self.config.salt)]

    def _column(self, row: Row, name: str) -> str | None:
        """Return the column of a row that holds something, None where none does."""
        given = getattr(self.config.columns, name)
        names = NAMES[name] if given is None else (given,)
        return next((column for column in names if column in row), None)

    def _value(self, row: Row, name: str) -> Any:
        column = self._column(row, name)
        return None if column is None else row[column]

    def _absent(self, row: Row, name: str) -> str:
        given = getattr(self.config.columns, name)
        names = given or " or ".join(NAMES[name])
        return f"has no {names} among its columns {', '.join(map(str, row))[:200]}"

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        """As other sources, without people who gave too few votes."""
        kept, left_out = without_few(pairs, self.config.min_answers)
        split = super().assign_splits(kept)
        return SplitPairs(split.pairs, pl.concat([split.rejects, left_out]), split.details)


def _lowered(values: Mapping[str, float]) -> dict[str, float | None]:
    return {word.strip().lower(): None if p == 0.5 else p for word, p in values.items()}
