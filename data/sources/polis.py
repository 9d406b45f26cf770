"""Polis: people vote on each other's statements (the export of pol.is).

``comments.csv`` has the statements, ``participants-votes.csv`` a row for each person with a column
for each statement (1 agree, -1 disagree, 0 pass, empty: not seen); where it is missing,
``votes.csv`` has a row for each vote, of which the last on a statement counts.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Literal

import polars as pl

from pal.data.adapter import Adapter, Part
from pal.data.comparisons import Chunk, Comparison, Recorder, Reject
from pal.data.locate import resolve_source
from pal.data.sources.votes import VoteRules, vote_on, without_few
from pal.data.splits import SplitPairs, assign_splits
from pal.errors import DataError
from pal.files import file_sha256
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


class Polis(Adapter):
    """One vote per person and statement."""

    name = "polis"
    Settings = PolisConfig
    config: PolisConfig
    licence = (
        "as the conversation states; those of compdemocracy/openData: CC BY 4.0, data gathered "
        "with the Polis software (compdemocracy.org/polis), attribution to The Computational "
        "Democracy Project"
    )

    def __init__(self, config: PolisConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        if config.source is None:
            raise DataError(
                f"dataset {self.dataset} needs to know its source; give --source FOLDER of a Polis "
                "export"
            )
        self.folder, self.origin = resolve_source(self.dataset, config.source, ["*.csv"])
        votes = next((v for v in (PARTICIPANTS, VOTES) if (self.folder / v).is_file()), None)
        if votes is None or not (self.folder / COMMENTS).is_file():
            raise DataError(
                f"{self.folder} is no Polis export: it needs {COMMENTS} and {PARTICIPANTS} or "
                f"{VOTES}; give --source FOLDER"
            )
        self.votes = votes

    def inputs(self) -> dict[str, str]:
        return {name: file_sha256(self.folder / name) for name in (COMMENTS, self.votes)}

    def parts(self) -> Sequence[Part]:
        return [self.read]

    def read(self) -> Chunk:
        """Read all votes."""
        statements, rejected = self._statements()
        recorder = Recorder(self.config.views)
        for number, (place, user, statement, vote) in enumerate(self._votes()):
            if self.config.limit is not None and number >= self.config.limit:
                break
            recorder.add(self._row(place, user, statement, vote, statements, rejected))
        return recorder.chunk()

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
        for row in self._rows(COMMENTS, ("comment-id", "comment-body")):
            number = row["comment-id"]
            texts[number] = row["comment-body"] or ""
            if row.get("moderated") == REJECTED:
                rejected.add(number)
        return texts, rejected

    def _votes(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield each vote's place, person, statement and value."""
        if self.votes == VOTES:
            last = {
                (row["voter-id"], row["comment-id"]): (number, row["vote"])
                for number, row in enumerate(self._rows(VOTES, ("voter-id", "comment-id", "vote")))
            }
            for (user, statement), (number, vote) in last.items():
                yield f"{VOTES}:{number:07d}", user, statement, vote
            return
        for row in self._rows(PARTICIPANTS, ("participant",)):
            user = row["participant"]
            for statement, vote in row.items():
                if statement is not None and statement.isdigit() and vote:
                    yield f"{PARTICIPANTS}:{user}:{statement}", user, statement, vote

    def _rows(self, name: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yield the rows of a file; raises DataError unless it has the columns of an export."""
        path = self.folder / name
        try:
            with open(path, newline="", encoding="utf-8-sig") as stream:
                reader = csv.DictReader(stream)
                missing = [column for column in columns if column not in (reader.fieldnames or ())]
                if missing:
                    raise DataError(
                        f"{path} has no column {', '.join(missing)}, as a Polis export has; check "
                        "--source"
                    )
                yield from reader
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"cannot read {path} ({error}); export it again") from error

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        """As other sources, without people who gave too few votes."""
        kept, left_out = without_few(pairs, self.config.min_answers)
        split = assign_splits(kept, self.config)
        return SplitPairs(split.pairs, pl.concat([split.rejects, left_out]), split.details)
