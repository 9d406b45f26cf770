"""The user's own votes: somebody agrees with an item, disagrees, or passes.

A vote is an answer to a question about the item, as in persona's statements: the item is the
prompt, and ``Agree`` and ``Disagree`` are the two sides. Rows have a user, an item, perhaps a
prompt that the item answers, and a vote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pal.chance import bucket
from pal.config import ComparisonsConfig, Component
from pal.data.comparisons import Comparison, Reject
from pal.data.rows import Row, RowAdapter
from pal.data.sources.columns import values_of
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
        found = values_of(row, place, self.config.columns, NAMES, ("item", "vote"))
        if isinstance(found, Reject):
            return [found]
        if found["item"] is None:
            return [Reject(place, "no-item", "the row holds nothing that was voted on")]
        if found["vote"] is None:
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


def _lowered(values: Mapping[str, float]) -> dict[str, float | None]:
    return {word.strip().lower(): None if p == 0.5 else p for word, p in values.items()}
