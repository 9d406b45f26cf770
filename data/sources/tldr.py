"""Reddit TL;DR comparisons with their workers: the construction of method.md 3.3, under two names
never mixed.

``tldr-length``: the paper's synthetic preferences, some workers for the longer and some for the
shorter summary; ``tldr-real``: what the workers themselves chose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import polars as pl
from pydantic import PositiveInt

from pal.config import ComparisonsConfig
from pal.data.adapter import Part
from pal.data.comparisons import Chunk, Comparison, Reject, preferred, prompt_key
from pal.data.rows import RowAdapter
from pal.data.sources.tldr_protocol import REASONS, Protocol, Published, Tally
from pal.data.splits import SplitPairs
from pal.errors import DataError, shown
from pal.items import Conversation, Text, is_unicode, question
from pal.rows import Row
from pal.users import user_name


class TldrConfig(ComparisonsConfig):
    """Reddit TL;DR comparisons with their workers, divided as in method.md 3.3."""

    seen_workers: PositiveInt = 10
    """Workers with most training rows, on whom heads are trained."""
    test_worker_rows: PositiveInt = 100
    """Other workers with so many validation rows are the unseen test users."""
    validation_worker_rows: PositiveInt = 50
    """Those with fewer than that, but at least so many, are the unseen validation users."""
    published_sizes: bool = True
    """Whether the full source must give the published split sizes; false goes on whatever they
    are."""


class Tldr(RowAdapter):
    """Reads all rows and counts them; ``tldr_protocol.py`` says who is who."""

    Settings = TldrConfig
    hub = "openai/summarize_from_feedback"
    patterns = (
        "comparisons*.parquet",
        "train*.parquet",
        "validation*.parquet",
        "batch*.json",
        "cnndm*.json",
        "edit_b2_eval_test.json",
    )
    licence = "modified MIT (labels); the posts are Reddit's, from TL;DR (CC BY 4.0)"
    published = Published()
    user_column = "worker"
    config: TldrConfig
    by_length: ClassVar[bool]

    def __init__(self, config: TldrConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        compared = [file for file in self.files if "axis" not in self.name_of(file)]
        self.files = [file for file in compared if file.suffix == ".parquet"] or compared
        if not self.files:
            raise DataError(
                f"{config.source} holds ratings along axes only; give --source PATH of the "
                "comparisons"
            )

    def parts(self) -> Sequence[Part]:
        """Return one part: who is seen depends on counts over all rows, and the source is small."""
        return [self._read_all]

    def _read_all(self) -> Chunk:
        self.tally = Tally()
        return self.read(self.files, self.config.limit)

    def comparisons(self, row: Row, place: str, file: Path) -> Iterable[Comparison | Reject]:
        split = _split(row, self.name_of(file))
        if split is None:
            yield Reject(
                place,
                "no-split",
                "neither the file's name nor the field split says train or validation",
            )
            return
        self.tally.raw[split] += 1
        yield self._comparison(row, place, split)

    def _comparison(self, row: Row, place: str, split: str) -> Comparison | Reject:
        summaries = row.get("summaries")
        if not (
            isinstance(summaries, list)
            and len(summaries) == 2
            and all(isinstance(s, dict) for s in summaries)
        ):
            return Reject(place, "malformed", "summaries are not two objects")
        policies = [shown(summary.get("policy")) for summary in summaries]
        if not all("sup" in policy and "ppo" not in policy for policy in policies):
            return Reject(
                place,
                "other-policy",
                f"policies {policies[0]} and {policies[1]}: not both supervised",
            )
        worker = user_name(row.get("worker"))
        if worker is None or not is_unicode(worker):
            return Reject(place, "no-user", "the row names no worker")
        self.tally.ranked[split, worker] += 1
        info = row.get("info")
        post = info.get("post") if isinstance(info, dict) else None
        texts = [summary.get("text") for summary in summaries]
        if not isinstance(post, str) or not all(isinstance(text, str) for text in texts):
            return Reject(
                place, "null-post", "the post or a summary is missing; news articles have no post"
            )
        self.tally.usable[split, worker] += 1
        prompt = question(post)
        if not prompt:
            return Reject(place, "null-post", "the post is empty")
        found = self._compared(row, place, worker, prompt, (Text(texts[0]), Text(texts[1])), split)
        if isinstance(found, Reject) and split == "train":
            self.tally.left_out[worker, prompt_key(prompt)] += 1
        return found

    def _compared(
        self,
        row: Row,
        place: str,
        worker: str,
        prompt: Conversation,
        items: tuple[Text, Text],
        split: str,
    ) -> Comparison | Reject:
        """Return the comparison; by length it prefers the longer one until the worker's group is
        known."""
        if self.by_length:
            lengths = [len(item.text) for item in items]
            if lengths[0] == lengths[1]:
                return Reject(place, "equal-length", REASONS["equal-length"])
            choice = int(lengths[1] > lengths[0])
        else:
            given = row.get("choice")
            if given not in (0, 1) or isinstance(given, bool):
                return Reject(place, "bad-choice", f"choice is {shown(given)}, neither 0 nor 1")
            choice = int(given)
        own = "train" if split == "train" else "test"
        return preferred(
            place, worker, prompt, items[choice], items[1 - choice], self.config.salt, split=own
        )

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        rules = (self.config, self.dataset, self.published, self.by_length)
        return Protocol(*rules, self.tally).assign_splits(pairs)


class TldrLength(Tldr):
    """The paper's synthetic preferences."""

    name = "tldr-length"
    by_length = True


class TldrReal(Tldr):
    """The workers' own choices."""

    name = "tldr-real"
    by_length = False


def _split(row: Row, name: str) -> str | None:
    """Return the source's split: by file in the Parquet release, by field (train, valid1, valid2)
    in the JSON one."""
    if name.endswith(".parquet"):
        parts = name.split("/")
        for part in reversed(parts):
            for split in ("train", "validation"):
                if (
                    part.startswith(split) or f"-{split}" in part
                ):  # train/0000, train-00000, ...-train
                    return split
    own = row.get("split")
    return (
        {"train": "train", "valid1": "validation", "valid2": "validation"}.get(own)
        if isinstance(own, str)
        else None
    )
