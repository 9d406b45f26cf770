"""Anthropic's helpful and harmless comparisons: pairs of transcripts that differ in the last
answer.

The source names no people. Users here are names within a subset, so plurality is between subsets,
not between people.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import PositiveInt

from pal.chance import bucket
from pal.config import ComparisonsConfig
from pal.data.comparisons import Comparison, Reject, preferred, prompt_key
from pal.data.rows import RowAdapter
from pal.errors import DataError
from pal.items import Conversation, Text, Turn
from pal.rows import Row

SUBSETS = ("helpful-base", "helpful-online", "helpful-rejection-sampled", "harmless-base")
ROLES = {"Human": "user", "Assistant": "assistant"}
SPEAKER = re.compile(r"\n\n(Human|Assistant):")


class HhConfig(ComparisonsConfig):
    """Anthropic's helpful and harmless comparisons, which name no people."""

    users_per_subset: PositiveInt = 20
    """Names that the prompts of each subset are assigned to."""


class Hh(RowAdapter):
    """A pair of transcripts per row, each of the last answers read behind what they share."""

    name = "hh"
    Settings = HhConfig
    hub = "Anthropic/hh-rlhf"
    patterns = tuple(
        f"{subset}/{split}*{end}"
        for subset in SUBSETS
        for split in ("train", "test")
        for end in (".jsonl.gz", ".jsonl")
    )
    licence = "MIT"
    config: HhConfig

    def __init__(self, config: HhConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        for file in self.files:
            if file.parent.name not in SUBSETS or not file.name.startswith(("train", "test")):
                raise DataError(
                    f"{file} does not say its subset and split; keep the published folders, as in "
                    f"{SUBSETS[0]}/train.jsonl.gz, of {', '.join(SUBSETS)}"
                )

    def comparisons(self, row: Row, place: str, file: Path) -> Iterable[Comparison | Reject]:
        chosen, rejected = (transcript(row.get(key)) for key in ("chosen", "rejected"))
        if chosen is None or rejected is None:
            yield Reject(
                place,
                "malformed",
                "chosen and rejected are not both transcripts that end with the assistant",
            )
        elif chosen[:-1] != rejected[:-1]:
            yield Reject(
                place, "prefixes-differ", "the two transcripts differ before their last answer"
            )
        else:
            prompt = chosen[:-1]
            subset = file.parent.name
            yield preferred(
                place,
                self._user(subset, prompt),
                prompt,
                Text(chosen[-1].content),
                Text(rejected[-1].content),
                self.config.salt,
                split="test" if file.name.startswith("test") else "train",
                columns={"subset": subset},
            )

    def _user(self, subset: str, prompt: Conversation) -> str:
        place = bucket("name", self.config.salt, prompt_key(prompt).hex())
        return f"{subset}/{int(place * self.config.users_per_subset):02d}"


def transcript(text: object) -> Conversation | None:
    """Return the turns of a transcript, or None where it is none: it begins with the human, ends
    with the assistant."""
    if not isinstance(text, str):
        return None
    before, *parts = SPEAKER.split(text)
    if before.strip() or len(parts) < 4:
        return None
    turns = tuple(Turn(ROLES[parts[n]], parts[n + 1].strip()) for n in range(0, len(parts), 2))
    alternate = all(role == ("user", "assistant")[n % 2] for n, (role, _) in enumerate(turns))
    return (
        turns
        if alternate and len(turns) % 2 == 0 and all(content for _, content in turns[:-1])
        else None
    )
