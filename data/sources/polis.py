"""Polis: people vote on each other's statements (the export of pol.is).

``comments.csv`` has the statements, ``participants-votes.csv`` a row for each person with a column
for each statement (1 agree, -1 disagree, 0 pass, empty: not seen); where it is missing,
``votes.csv`` has a row for each vote, of which the last on a statement counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pal.data.comparisons import Comparison, Reject
from pal.data.sources.exports import PlatformExport
from pal.data.sources.votes import VoteRules, vote_on
from pal.items import question
from pal.users import user_name

COMMENTS, PARTICIPANTS, VOTES = "comments.csv", "participants-votes.csv", "votes.csv"
AGREES = {"1": 1.0, "-1": 0.0, "0": 0.5}
REJECTED = "-1"
"""what ``moderated`` says of a statement that moderators took out"""


class PolisConfig(VoteRules):
    """A Polis conversation: a folder of its export."""

    moderated: Literal["keep", "drop"] = "keep"
    """Votes on statements that moderators rejected later."""


class Polis(PlatformExport):
    """One vote per person and statement."""

    name = "polis"
    platform = "Polis"
    Settings = PolisConfig
    config: PolisConfig
    licence = (
        "as the conversation states; those of compdemocracy/openData: CC BY 4.0, data gathered "
        "with the Polis software (compdemocracy.org/polis), attribution to The Computational "
        "Democracy Project"
    )

    def files(self) -> Sequence[str]:
        votes = next(filter(self.is_file, (PARTICIPANTS, VOTES)), None)
        if votes is None or not self.is_file(COMMENTS):
            raise self.no_export(f"it needs {COMMENTS} and {PARTICIPANTS} or {VOTES}")
        return COMMENTS, votes

    def votes(self) -> Iterator[Comparison | Reject]:
        statements, rejected = self._statements()
        for place, user, statement, vote in self._votes():
            yield self._row(place, user, statement, vote, statements, rejected)

    def _row(
        self,
        place: str,
        user: str,
        statement: str,
        vote: str,
        statements: dict[str, str],
        rejected: set[str],
    ) -> Comparison | Reject:
        vote = vote.removesuffix(".0")
        if vote not in AGREES:
            return Reject(place, "bad-label", f"the vote is {vote[:80]!r}, not 1, -1 or 0")
        if statement not in statements:
            return Reject(place, "no-text", f"{COMMENTS} has no statement {statement[:80]}")
        if statement in rejected and self.config.moderated == "drop":
            return Reject(place, "moderated", "moderators rejected its statement")
        if vote == "0" and self.config.passes == "drop":
            return Reject(place, "pass", "the user passed")
        item = question(statements[statement])
        return vote_on(item, place, user_name(user), AGREES[vote], self.config.salt)

    def _statements(self) -> tuple[dict[str, str], set[str]]:
        """Return the statements by their numbers, and which of them moderators rejected."""
        texts, rejected = {}, set()
        for row in self.rows(COMMENTS, ("comment-id", "comment-body")):
            number = row["comment-id"]
            texts[number] = row["comment-body"] or ""
            if row.get("moderated") == REJECTED:
                rejected.add(number)
        return texts, rejected

    def _votes(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield each vote's place, person, statement and value."""
        if VOTES in self.names:
            last = {
                (row["voter-id"], row["comment-id"]): (number, row["vote"])
                for number, row in enumerate(self.rows(VOTES, ("voter-id", "comment-id", "vote")))
            }
            for (user, statement), (number, vote) in last.items():
                yield f"{VOTES}:{number:07d}", user, statement, vote
            return
        for row in self.rows(PARTICIPANTS, ("participant",)):
            user = row["participant"]
            for statement, vote in row.items():
                if statement.isdigit() and vote:
                    yield f"{PARTICIPANTS}:{user}:{statement}", user, statement, vote
