"""The user's own votes: somebody agrees with an item, disagrees, or passes.

A vote is an answer to a question about the item, as in persona's statements: the item is the
prompt, and ``Agree`` and ``Disagree`` are the two sides. Rows have a user, an item, perhaps a
prompt that the item answers, and a vote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field

from pal.chance import bucket
from pal.config import ComparisonsConfig, Component
from pal.data.adapter import Part
from pal.data.comparisons import Comparison, Reject
from pal.data.messages import spoken
from pal.data.rows import OwnFilesConfig, RowAdapter
from pal.data.sources.answers import Convention, Meanings, is_missing, of_votes
from pal.data.sources.columns import PEOPLE, PROMPTS, USERS, Columns, Vocabulary
from pal.dataset import Split
from pal.errors import shown
from pal.items import Conversation, Text, conversation
from pal.rows import Row
from pal.users import user_name

AGREE, DISAGREE = "Agree", "Disagree"
WORDS = Vocabulary(
    usual={
        "user_id": USERS,
        "item": ("item", "statement", "comment", "comment-body", "text", "response"),
        "prompt": PROMPTS,
        "vote": ("vote", "answer", "label"),
    },
    needed=(("user_id", "item", "vote"),),
    likely={
        "user_id": PEOPLE,
        "item": ("sentence", "proposal", "opinion", "claim", "content"),
        "vote": ("agree", "agrees", "choice", "reaction", "opinion", "value"),
    },
)


class VotesColumns(Component):
    """Which column of the user's own votes holds what; null: the one of a usual name."""

    user_id: str | None = None
    """Who voted: user_id, user, participant, annotator, rater, worker, voter or respondent."""
    item: str | None = None
    """What was voted on: item, statement, comment, text or response."""
    prompt: str | None = None
    """What the item answers, where it answers something: prompt, question or instruction."""
    vote: str | None = None
    """agree, disagree or pass, 1, -1 or 0, yes or no: vote, answer or label."""


class VoteRules(ComparisonsConfig):
    """Settings that all sources of votes share."""

    passes: Literal["drop", "half"] = "drop"
    """Passes: left out and counted, or a tie between Agree and Disagree."""


class VotesConfig(OwnFilesConfig, VoteRules):
    """The user's own votes: JSON lines, JSON, CSV, Parquet, Arrow or a dataset on the Hub."""

    columns: VotesColumns = VotesColumns()
    """Which column holds what."""
    values: dict[Literal["vote"], Meanings] = Field(default_factory=dict)
    """What votes of the file mean: ``vote: {oui: 1, non: 0, bof: 0.5}``, where 0.5 is a pass;
    others keep their usual meaning."""


def vote_on(
    item: Conversation,
    place: str,
    user: str | None,
    agrees: float,
    salt: str,
    split: Split | None = None,
) -> Comparison:
    """Return the comparison that a vote on an item is; ``agrees``: P(agree).

    Which side Agree stands on is by hash.
    """
    agree, disagree = Text(AGREE, role="user"), Text(DISAGREE, role="user")
    key = "\x1f".join([str(user), *(turn.content for turn in item)])
    if bucket("side", salt, key) < 0.5:
        return Comparison(place, user, item, agree, disagree, agrees, split)
    return Comparison(place, user, item, disagree, agree, 1.0 - agrees, split)


class OwnVotes(RowAdapter):
    """One vote per row."""

    name = "votes"
    Settings = VotesConfig
    licence = "the user's own"
    config: VotesConfig

    def parts(self) -> Sequence[Part]:
        self.votes  # noqa: B018, what cannot be understood is said before any row
        return super().parts()

    @cached_property
    def columns(self) -> Columns:
        """Which column holds what; raises DataError where that is not clear."""
        return Columns.of(self.survey, self.config.columns, WORDS, self.dataset)

    @cached_property
    def votes(self) -> Convention:
        """What votes mean; raises DataError where that is not clear."""
        column, own = self.survey.column(self.columns.shown("vote")), self.config.values
        return of_votes(column, own.get("vote", {}), f"data.{self.dataset}.values.vote")

    def told(self) -> Iterator[str]:
        yield self.columns.told()
        yield self.votes.told(self.survey.column(self.columns.shown("vote")))
        yield from self.told_of_commas()

    @property
    def user_columns(self) -> Sequence[str]:
        return self.columns.taken["user_id"]

    @property
    def number_columns(self) -> Sequence[str]:
        return self.columns.taken["vote"]

    def comparisons(self, row: Row, place: str, file: Path) -> Iterable[Comparison | Reject]:
        columns = self.columns
        absent = [name for name in ("item", "vote") if columns.of_row(row, name) is None]
        if absent:
            message = f"the row has no {' and no '.join(map(columns.shown, absent))}"
            return [Reject(place, "missing-column", message)]
        found = {name: columns.value(row, name) for name in columns.taken}
        if found["item"] is None:
            return [Reject(place, "no-item", "the row holds nothing that was voted on")]
        vote = found["vote"]
        if is_missing(vote, self.votes):
            return [Reject(place, "no-vote", "the row holds no vote")]
        if not self.votes.knows(vote):
            message = (
                f"the vote is {shown(vote)}, which means nothing here; correct it, or say what it "
                f"means with data.{self.dataset}.values.vote"
            )
            return [Reject(place, "bad-label", message)]
        agrees = self.votes.of(vote)
        if agrees is None and self.config.passes == "drop":
            return [Reject(place, "pass", "the user passed")]
        item = conversation(spoken(found["item"]), "assistant" if found["prompt"] else "user")
        asked = (*conversation(spoken(found["prompt"])), *item)
        user = user_name(found["user_id"])
        p = 0.5 if agrees is None else agrees
        return [vote_on(asked, place, user, p, self.config.salt, self.split_of(file))]
