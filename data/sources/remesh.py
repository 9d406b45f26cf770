"""Remesh: people compare two of each other's answers to a question (the platform's own export).

``<topic>_preference.csv`` has a row for each vote, ``<topic>_verbatim_map.csv`` the question and
the text of each thought; before the header of either stand some lines about the conversation.
People are numbered within a topic, so a user is ``<topic>/<participant>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from pal.config import ComparisonsConfig
from pal.data.comparisons import Comparison, Reject
from pal.data.sources.exports import PlatformExport
from pal.items import Text, question

PREFERENCES, TEXTS = "_preference.csv", "_verbatim_map.csv"
QUESTION, PERSON, THOUGHT = "Question ID", "Participant ID", "Thought ID"
SIDES = ("Thought A ID", "Thought B ID")
TEXT_COLUMNS = (QUESTION, "Question Text", THOUGHT, "Thought Text")
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


class Remesh(PlatformExport):
    """One comparison per vote."""

    name = "remesh"
    platform = "Remesh"
    Settings = RemeshConfig
    config: RemeshConfig
    licence = (
        "as the conversation states; akonya/polarized-issues-data: CC BY 4.0, attribution to its "
        "authors"
    )

    def files(self) -> Sequence[str]:
        found = sorted(path.name for path in self.folder.glob(f"*{PREFERENCES}"))
        self.topics = [name.removesuffix(PREFERENCES) for name in found]
        texts = [f"{topic}{TEXTS}" for topic in self.topics]
        absent = [name for name in texts if not self.is_file(name)]
        if absent or not found:
            raise self.no_export(f"it has no {', '.join(absent) or f'*{PREFERENCES}'}")
        return [*found, *texts]

    def votes(self) -> Iterator[Comparison | Reject]:
        for topic in self.topics:
            yield from self._topic(topic)

    def _topic(self, topic: str) -> Iterator[Comparison | Reject]:
        questions: dict[str, str] = {}
        thoughts: dict[str, str] = {}
        for row in self.rows(f"{topic}{TEXTS}", TEXT_COLUMNS):
            questions[row[QUESTION]] = row["Question Text"]
            thoughts[row[THOUGHT]] = row["Thought Text"]
        file = f"{topic}{PREFERENCES}"
        for number, row in enumerate(self.rows(file, (QUESTION, PERSON, *SIDES, "Vote"))):
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
