"""Reddit TL;DR comparisons with their workers: the construction of method.md 3.3, under two names
never mixed.

``tldr-length``: the paper's synthetic preferences, some workers for the longer and some for the
shorter summary; ``tldr-real``: what the workers themselves chose.

Who is who depends on counts over the whole source, so rows are dealt when all have been read. No
prompt is in two splits of one population, and no judged prompt is among the training prompts of the
seen workers; for that, the tenth of the training rows that is validation consists of whole prompts,
unlike the released split of single rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from pal.chance import bucket
from pal.config import TldrConfig
from pal.data.build import Part
from pal.data.comparisons import (
    REJECT_COLUMNS,
    Chunk,
    Comparison,
    Reject,
    Text,
    is_unicode,
    preferred,
    prompt_key,
    question,
)
from pal.data.rows import Row, RowAdapter
from pal.data.splits import Arranged, prompt_groups
from pal.errors import DataError

MINORITY_RANKS = (3, 4, 5)
"""of the seen workers by training rows, the first being 0: they prefer the shorter summary"""
VALIDATION_SHARE = 0.1
MINORITY_IDS = (
    "7FbjqRA85D0kaKh9cHs5BlfTGRQ3gM ISkqTUKflxjg9CBXeghrNug5YTZ3zS r3rJgaEN7p04d65VAVAejoMN02DsM9 "
    "7rETShtxBTLBtbJKVyfpUYUNJjQAOC 9HS4pwiJ58yNGPK9vPujWyDapy5e0k JwYQFRg76uas70g5HPUxA0jq6sEIo1 "
    "44Z8ttpKcY6Kr1sNymNnBA0nL0h4dZ aCMzb5a4UFnlycf71vTCuPTLxeDhTB sC4a4UNRMSYCGopXr3K8znnyna6TVh"
)
MAJORITY_IDS = (
    "RMwrIV50cNusBthNvLs1wSNdqFpQAg M4bdOszgybjO2qg2Dth5I1GOYAvE7V gMlGeJl1vsMERrbmC7W717zpVevUh8 "
    "OKFDIsAZl6Qa0m9x26f5Ao4S0uc7Ca uvzut5OK2bvei9zoCDdktcfLENYioY iL7GfrbN2PeB3KInidqSxUdxYcTZmG "
    "BYcMzzjuFgaA59QDKoAgY07PyyG0qC p7cM83bE3XsWlS9lTIvYCNfCVgOeTK rmgbTjW1stlproQnuHE2bUpK78Jxle "
    "FCzllSEpfOHCBBEJqq4VeHRQR5JdoX P2p07Up4eJyvxrrVYgwtb60krbFbxI qNGw27c8LHVPn31uJvjg3k0MZQcqQv "
    "thott7XepukYSbOL2QgSlyXd0rgHvr 3AFaFd3w9NjDGnO51kupLyK1N44DQ2 I2enBRrckFHw3KjJRSfKgsBwg4tmZy "
    "D8z53gLFLFqhZowaegbtxmSGa0jqv0 a0nhcJKlk2aO06xuBTMkeHdx8MDY5w EeOYhWlpz7e45kXvg0RrfkjalZgkiz "
    "a7zXgbkuY6lk3vdt0q2Qf7SrZQgZ86 9UQLCFxeYndGNfHEUP3yRt8XZhrrPr 9YhRKOwkljIQ3NKf5CCV7BGjOcdPHu "
    "mjwVX7RHTcfOfLTYGdBvms3vy8LTtP"
)
UNSEEN_MINORITY, UNSEEN_MAJORITY = frozenset(MINORITY_IDS.split()), frozenset(MAJORITY_IDS.split())
MINORITY_SHARE = 9 / 31
"""of the published unseen workers; for those that no list names"""

REASONS = {
    "equal-length": "both summaries have the same length, so length prefers neither",
    "worker-not-in-protocol": "its worker is neither among the seen nor among the unseen ones of the protocol",
    "not-its-split": "its worker is unseen, and judged on rows of the source's validation split only",
    "prompt-in-another-split": "its prompt is also judged, or belongs to the prompts of another role",
    "user-not-in-train": "its worker has no training pair left, so no head could know them",
    "too-few-pairs": "its worker is unseen and has too few pairs to adapt from or to be judged on",
}


@dataclass
class Published:
    """What the whole published source holds and gives (dataset card; method.md 3.3)."""

    rows: dict[str, int] = field(default_factory=lambda: {"train": 92_858, "validation": 86_086})
    sizes: dict[str, int] = field(
        default_factory=lambda: {
            "train": 20_969, "val": 2_330, "test": 4_921, "unseen majority": 22, "unseen minority": 9,
        }
    )  # fmt: skip


@dataclass
class Tally:
    """What was counted while reading, rejects included."""

    raw: Counter[str] = field(default_factory=Counter)
    """rows of each split of the source"""
    ranked: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(split, worker) of the rows of the supervised policies"""
    usable: Counter[tuple[str, str]] = field(default_factory=Counter)
    """those of them with worker, post and texts"""
    left_out: Counter[tuple[str, bytes]] = field(default_factory=Counter)
    """(worker, prompt key) of usable training rows that no preference was made of, though published
    sizes count them"""


class Tldr(RowAdapter):
    hub = "openai/summarize_from_feedback"
    patterns = ("comparisons*.parquet", "train*.parquet", "validation*.parquet", "batch*.json", "cnndm*.json",
                "edit_b2_eval_test.json")  # fmt: skip
    licence = "modified MIT (labels); the posts are Reddit's, from TL;DR (CC BY 4.0)"
    published = Published()
    config: TldrConfig
    by_length: ClassVar[bool]

    def __init__(self, config: TldrConfig) -> None:
        super().__init__(config)
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
        policies = [str(summary.get("policy")) for summary in summaries]
        if not all("sup" in policy and "ppo" not in policy for policy in policies):
            return Reject(
                place,
                "other-policy",
                f"policies {policies[0]!r} and {policies[1]!r}: not both supervised",
            )
        worker = row.get("worker")
        if not isinstance(worker, str) or not worker.strip() or not is_unicode(worker):
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
        found = self._judged(row, place, worker, prompt, (Text(texts[0]), Text(texts[1])), split)
        if isinstance(found, Reject) and split == "train":
            self.tally.left_out[worker, prompt_key(prompt)] += 1
        return found

    def _judged(
        self, row: Row, place: str, worker: str, prompt: Any, items: tuple[Text, Text], split: str
    ) -> Comparison | Reject:
        """Return the comparison; by length it prefers the longer one until the worker's group is
        known."""
        if self.by_length:
            lengths = [len(item.text) for item in items]
            if lengths[0] == lengths[1]:
                return Reject(place, "equal-length", REASONS["equal-length"])
            choice = int(lengths[1] > lengths[0])
        else:
            choice = row.get("choice")  # type: ignore[assignment]
            if choice not in (0, 1) or isinstance(choice, bool):
                return Reject(place, "bad-choice", f"choice is {choice!r}, neither 0 nor 1")
        own = "train" if split == "train" else "test"
        return preferred(
            place, worker, prompt, items[choice], items[1 - choice], self.config.salt, split=own
        )

    def arrange(self, pairs: pl.DataFrame) -> Arranged:
        roles = self._roles()
        groups = {
            worker: self._group(worker, rank)
            for rank, worker in enumerate(w for w, r in roles.items())
        }
        facts = self._facts(roles, groups)
        if pairs.is_empty():
            return Arranged(
                pairs.with_columns(population=pl.lit(None, pl.String)),
                pl.DataFrame(schema=REJECT_COLUMNS),
            )
        pairs = pairs.with_columns(
            prompt_group=pl.Series(prompt_groups(pairs, "prompt")),
            role=pl.col("user_id").replace_strict(roles, default=None, return_dtype=pl.String),
        )
        if self.by_length:
            shorter = pl.col("group") == "shorter"
            pairs = pairs.with_columns(
                group=pl.col("user_id").replace_strict(groups, default=None, return_dtype=pl.String)
            ).with_columns(label=pl.when(shorter).then(1.0 - pl.col("label")).otherwise("label"))
        pairs = self._dealt(pairs, set(w for w, r in roles.items() if r == "seen"))
        left_out = pairs.filter(pl.col("fate").is_not_null())
        rejects = left_out.select(
            "source_row", reason="fate", message=pl.col("fate").replace_strict(REASONS)
        )
        kept = pairs.filter(pl.col("fate").is_null()).drop("fate", "role", "prompt_group")
        return Arranged(kept, rejects, facts)

    def _roles(self) -> dict[str, str]:
        """Return seen workers by rank, then unseen ones with the split they are judged on."""
        ranked = self.tally.ranked

        def most(split: str) -> list[tuple[str, int]]:
            counts = [(worker, count) for (own, worker), count in ranked.items() if own == split]
            return sorted(counts, key=lambda one: (-one[1], one[0]))

        roles = {worker: "seen" for worker, _ in most("train")[: self.config.seen_workers]}
        for worker, count in most("validation"):
            if worker not in roles and count >= self.config.validation_worker_rows:
                roles[worker] = "test" if count >= self.config.test_worker_rows else "val"
        return roles

    def _group(self, worker: str, rank: int) -> str:
        """Return which summaries a worker prefers: by rank if seen, by the published lists, else by
        hash."""
        if rank < self.config.seen_workers:
            return "shorter" if rank in MINORITY_RANKS else "longer"
        if worker in UNSEEN_MINORITY or worker in UNSEEN_MAJORITY:
            return "shorter" if worker in UNSEEN_MINORITY else "longer"
        return (
            "shorter" if bucket("length", self.config.salt, worker) < MINORITY_SHARE else "longer"
        )

    def _facts(self, roles: dict[str, str], groups: dict[str, str]) -> dict[str, Any]:
        """Count as the publication does, and check the counts where the whole source was read."""
        seen = [worker for worker, role in roles.items() if role == "seen"]
        training = sum(self.tally.usable["train", worker] for worker in seen)
        unseen = [worker for worker, role in roles.items() if role == "test"]
        validation = -(-training // 10)
        sizes = {
            "train": training - validation,
            "val": validation,
            "test": sum(self.tally.usable["validation", worker] for worker in seen),
            "unseen majority": sum(groups[worker] == "longer" for worker in unseen),
            "unseen minority": sum(groups[worker] == "shorter" for worker in unseen),
        }
        facts: dict[str, Any] = {"sizes_before_rejects": sizes, "seen_workers": seen}
        if any(self.tally.raw[split] != count for split, count in self.published.rows.items()):
            return facts | {"published_sizes": "published sizes not checked: partial source"}
        if sizes == self.published.sizes:
            return facts | {"published_sizes": "as published"}
        if self.config.published_sizes:
            raise DataError(
                f"dataset {self.name}: the published sizes are {_listed(self.published.sizes)}, "
                "but this source gives "
                f"{_listed(sizes)}; check the source, or go on with --set "
                f"data.{self.name}.published_sizes=false"
            )
        return facts | {"published_sizes": "not as published, and accepted so"}

    def _dealt(self, pairs: pl.DataFrame, seen_workers: set[str]) -> pl.DataFrame:
        """Add population, final split and, for what is left out, its fate."""
        role, own = pl.col("role"), pl.col("split")
        seen, unseen = role == "seen", role.is_in(["val", "test"])
        used = seen | unseen
        flags = pairs.group_by("prompt_group").agg(
            judged=(used & (own == "test")).any(),
            test_role=((role == "test") & (own == "test")).any(),
        )
        names = flags["prompt_group"].to_list()
        pool = pl.Series([bucket("pool", self.config.salt, name.hex()) < 0.5 for name in names])
        pairs = pairs.join(
            flags.with_columns(pool=pool), on="prompt_group", how="left", maintain_order="left"
        )
        trainable = pairs.filter(seen & (own == "train") & ~pl.col("judged"))
        validation = self._validation_groups(trainable, seen_workers)
        split = (
            pl.when(
                seen
                & (own == "train")
                & pl.col("prompt_group").is_in(
                    pl.Series(sorted(validation), dtype=pl.Binary).implode()
                )
            )
            .then(pl.lit("val"))
            .when(seen)
            .then(own)
            .when(pl.col("pool"))
            .then(pl.lit("train"))
            .otherwise(role)
        )
        fate = (
            pl.when(~used | role.is_null())
            .then(pl.lit("worker-not-in-protocol"))
            .when(unseen & (own == "train"))
            .then(pl.lit("not-its-split"))
            .when(
                (seen & (own == "train") & pl.col("judged"))
                | ((role == "val") & ~pl.col("pool") & pl.col("test_role"))
            )
            .then(pl.lit("prompt-in-another-split"))
        )
        population = pl.when(seen).then(pl.lit("seen")).otherwise(pl.lit("unseen"))
        pairs = pairs.with_columns(fate=fate, population=population).with_columns(split=split)
        kept = pl.col("fate").is_null()
        trained = (kept & (pl.col("split") == "train")).sum().over("user_id")
        judged = (kept & (pl.col("split") == role)).sum().over("user_id")
        few = unseen & ((trained == 0) | (judged < self.config.min_pairs))
        return pairs.with_columns(
            fate=pl.when(kept & seen & (trained == 0))
            .then(pl.lit("user-not-in-train"))
            .when(kept & few)
            .then(pl.lit("too-few-pairs"))
            .otherwise("fate")
        ).drop("judged", "test_role", "pool")

    def _validation_groups(self, trainable: pl.DataFrame, seen_workers: set[str]) -> set[bytes]:
        """Choose whole prompts, in the order of their hashes, that together have a tenth of the
        rows.

        Rows of equal length count, as they do in the published sizes; a prompt that would overflow
        is passed over.
        """
        sizes: Counter[bytes] = Counter(trainable["prompt_group"].to_list())
        for (worker, key), count in self.tally.left_out.items():
            if worker in seen_workers and key in sizes:
                sizes[key] += count
        wanted = math.ceil(VALIDATION_SHARE * sum(sizes.values()) - 1e-9)
        chosen: set[bytes] = set()
        for name in sorted(
            sizes, key=lambda key: (bucket("validation", self.config.salt, key.hex()), key)
        ):
            if sizes[name] <= wanted:
                chosen.add(name)
                wanted -= sizes[name]
        return chosen


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


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sizes.items())
