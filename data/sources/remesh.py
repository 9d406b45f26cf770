"""Remesh: people compare two of each other's answers to a question (the platform's own export).

``<topic>_preference.csv`` has a row for each vote, ``<topic>_verbatim_map.csv`` the question and
the text of each thought; before the header of either stand some lines about the conversation.
People are numbered within a topic, so a user is ``<topic>/<participant>``.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

import polars as pl
from pydantic import PositiveInt

from pal.config import ComparisonsConfig
from pal.data.adapter import Adapter, Part
from pal.data.comparisons import Chunk, Comparison, Recorder, Reject
from pal.data.locate import resolve_source
from pal.data.sources.votes import without_few
from pal.data.splits import SplitPairs, assign_splits
from pal.errors import DataError
from pal.files import file_sha256
from pal.items import Text, question

PREFERENCES, TEXTS = "_preference.csv", "_verbatim_map.csv"
QUESTION, PERSON, THOUGHT = "Question ID", "Participant ID", "Thought ID"
SIDES = ("Thought A ID", "Thought B ID")
VOTES: dict[str, float | str] = {
    "Thought A": 1.0,
    "Thought B": 0.0,
    "I agree with both": 0.5,
    "These are similar": 0.5,
    "I disagree with both": "disagree_with_both",
    "I'm not sure": "not_sure",
}
"""P(first preferred) of a vote, or the setting that says what becomes of it"""


class RemeshConfig(ComparisonsConfig):
    """Remesh conversations: a folder of their exports."""

    disagree_with_both: Literal["drop", "half"] = "drop"
    """``I disagree with both``: left out and counted, or a tie."""
    not_sure: Literal["drop", "half"] = "drop"
    """``I'm not sure``: left out and counted, or a tie."""
    min_answers: PositiveInt = 1
    """People with fewer comparisons in all are left out and counted."""


class Remesh(Adapter):
    """One comparison per vote."""

    name = "remesh"
    Settings = RemeshConfig
    config: RemeshConfig
    licence = (
        "as the conversation states; akonya/polarized-issues-data: CC BY 4.0, attribution to its "
        "authors"
    )

    def __init__(self, config: RemeshConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        if config.source is None:
            raise DataError(
                f"dataset {self.dataset} needs to know its source; give --source FOLDER of Remesh "
                "exports"
            )
        self.folder, self.origin = resolve_source(self.dataset, config.source, ["*.csv"])
        found = sorted(path.name for path in self.folder.glob(f"*{PREFERENCES}"))
        self.topics = [name.removesuffix(PREFERENCES) for name in found]
        absent = [f"{t}{TEXTS}" for t in self.topics if not (self.folder / f"{t}{TEXTS}").is_file()]
        if not self.topics or absent:
            raise DataError(
                f"{self.folder} is no Remesh export: it has no "
                f"{', '.join(absent) or f'*{PREFERENCES}'}; give --source FOLDER"
            )

    def inputs(self) -> dict[str, str]:
        names = [f"{topic}{end}" for topic in self.topics for end in (PREFERENCES, TEXTS)]
        return {name: file_sha256(self.folder / name) for name in names}

    def parts(self) -> Sequence[Part]:
        return [self.read]

    def read(self) -> Chunk:
        """Read the votes of all topics."""
        recorder = Recorder(self.config.views)
        rows = (row for topic in self.topics for row in self._topic(topic))
        for row in itertools.islice(rows, self.config.limit):
            recorder.add(row)
        return recorder.chunk()

    def _topic(self, topic: str) -> Iterator[Comparison | Reject]:
        questions: dict[str, str] = {}
        thoughts: dict[str, str] = {}
        for row in self._rows(f"{topic}{TEXTS}", (QUESTION, "Question Text", THOUGHT)):
            questions[row[QUESTION]] = row["Question Text"]
            thoughts[row[THOUGHT]] = row["Thought Text"]
        file = f"{topic}{PREFERENCES}"
        for number, row in enumerate(self._rows(file, (QUESTION, PERSON, *SIDES, "Vote"))):
            yield self._comparison(f"{file}:{number:07d}", topic, row, questions, thoughts)

    def _comparison(
        self,
        place: str,
        topic: str,
        row: dict[str, str],
        questions: dict[str, str],
        thoughts: dict[str, str],
    ) -> Comparison | Reject:
        label = VOTES.get(row["Vote"])
        if label is None:
            return Reject(place, "bad-label", f"the vote is {row['Vote'][:80]!r}")
        if isinstance(label, str):
            if getattr(self.config, label) == "drop":
                return Reject(place, label.replace("_", "-"), f"the vote is {row['Vote']!r}")
            label = 0.5
        absent = [row[side] for side in SIDES if row[side] not in thoughts]
        if absent:
            return Reject(place, "no-text", f"thought {absent[0][:80]} has no text")
        if row[QUESTION] not in questions:
            return Reject(place, "no-text", f"question {row[QUESTION][:80]} has no text")
        first, second = (Text(thoughts[row[side]]) for side in SIDES)
        user = f"{topic}/{row[PERSON]}" if row[PERSON].strip() else None
        return Comparison(place, user, question(questions[row[QUESTION]]), first, second, label)

    def _rows(self, name: str, columns: Sequence[str]) -> Iterator[dict[str, str]]:
        """Yield the rows below a file's header; raises DataError where there is none."""
        path = self.folder / name
        try:
            with open(path, newline="", encoding="utf-8-sig") as stream:
                lines = csv.reader(stream)
                header = next((line for line in lines if line[:1] == [QUESTION]), [])
                missing = [column for column in columns if column not in header]
                if missing:
                    raise DataError(
                        f"{path} has no column {', '.join(missing)}, as a Remesh export has; check "
                        "--source"
                    )
                for line in lines:
                    yield dict(itertools.zip_longest(header, line[: len(header)], fillvalue=""))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"cannot read {path} ({error}); export it again") from error

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        """As other sources, without people who gave too few answers."""
        kept, left_out = without_few(pairs, self.config.min_answers)
        split = assign_splits(kept, self.config)
        return SplitPairs(split.pairs, pl.concat([split.rejects, left_out]), split.details)
