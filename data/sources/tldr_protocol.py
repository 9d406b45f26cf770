"""Who is who in Reddit TL;DR, and which prompts are in which split (method.md 3.3).

Who is seen depends on counts over the whole source, so splits are assigned when all rows have been
read. No prompt is in two splits of one population, and no prompt that is evaluated on is among the
training prompts of the seen workers; for that, the tenth of the training rows that is validation
consists of whole prompts, unlike the released split of single rows.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from pal.chance import bucket
from pal.data.groups import prompt_groups
from pal.data.splits import SplitPairs, reject_small_users, separate_rejects, without_pairs
from pal.dataset import SplitDetails
from pal.errors import DataError

if TYPE_CHECKING:
    from pal.data.sources.tldr import TldrConfig

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
    "worker-not-in-protocol": "its worker is neither among the seen nor among the unseen ones of "
    "the protocol",
    "not-its-split": "its worker is unseen, and evaluated on rows of the source's validation split "
    "only",
    "prompt-in-another-split": "its prompt is also evaluated on, or belongs to the prompts of "
    "another role",
    "user-not-in-train": "its worker has no training pair left, so no head could know them",
    "too-few-pairs": "its worker is unseen and has too few pairs to adapt from or to be evaluated "
    "on",
}


@dataclass
class Published:
    """What the whole published source holds and gives (dataset card; method.md 3.3)."""

    rows: dict[str, int] = field(default_factory=lambda: {"train": 92_858, "validation": 86_086})
    sizes: dict[str, int] = field(
        default_factory=lambda: {
            "train": 20_969,
            "val": 2_330,
            "test": 4_921,
            "unseen majority": 22,
            "unseen minority": 9,
        }
    )


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


class Protocol:
    """Assigns roles and groups to workers and splits to prompts, from the counts of a whole
    source."""

    def __init__(
        self,
        config: TldrConfig,
        dataset: str,
        published: Published,
        by_length: bool,
        tally: Tally,
    ) -> None:
        self.config, self.dataset, self.published = config, dataset, published
        self.by_length, self.tally = by_length, tally
        self.roles = self._roles()
        self.groups = {worker: self._group(worker, rank) for rank, worker in enumerate(self.roles)}

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        """Give every comparison its split and population, and by length its answer."""
        details = self._details()
        if pairs.is_empty():
            return without_pairs(pairs)
        pairs = pairs.with_columns(
            prompt_group=pl.Series(prompt_groups(pairs, "prompt")), role=self._by_user(self.roles)
        )
        if self.by_length:
            shorter = pl.col("group") == "shorter"
            pairs = pairs.with_columns(group=self._by_user(self.groups)).with_columns(
                label=pl.when(shorter).then(1.0 - pl.col("label")).otherwise("label")
            )
        split = separate_rejects(self._with_splits(pairs), REASONS)
        split.details = details
        return split

    @staticmethod
    def _by_user(values: dict[str, str]) -> pl.Expr:
        return pl.col("user_id").replace_strict(values, default=None, return_dtype=pl.String)

    def _roles(self) -> dict[str, str]:
        """Return seen workers by rank, then unseen ones with the split they are evaluated on."""
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

    def _details(self) -> SplitDetails:
        """Count as the publication does, and check the counts where the whole source was read."""
        seen = [worker for worker, role in self.roles.items() if role == "seen"]
        training = sum(self.tally.usable["train", worker] for worker in seen)
        unseen = [worker for worker, role in self.roles.items() if role == "test"]
        validation = -(-training // 10)
        sizes = {
            "train": training - validation,
            "val": validation,
            "test": sum(self.tally.usable["validation", worker] for worker in seen),
            "unseen majority": sum(self.groups[worker] == "longer" for worker in unseen),
            "unseen minority": sum(self.groups[worker] == "shorter" for worker in unseen),
        }

        def details(verdict: str) -> SplitDetails:
            return SplitDetails(
                sizes_before_rejects=sizes, seen_workers=seen, published_sizes=verdict
            )

        if any(self.tally.raw[split] != count for split, count in self.published.rows.items()):
            return details("published sizes not checked: partial source")
        if sizes == self.published.sizes:
            return details("as published")
        if self.config.published_sizes:
            raise DataError(
                f"dataset {self.dataset}: the published sizes are "
                f"{_listed(self.published.sizes)}, but this source gives {_listed(sizes)}; "
                f"check the source, or go on with --set data.{self.dataset}.published_sizes=false"
            )
        return details("not as published, and accepted so")

    def _with_splits(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """Add population, final split and, for what is left out, the reason."""
        role, own = pl.col("role"), pl.col("split")
        seen, unseen = role == "seen", role.is_in(["val", "test"])
        used = seen | unseen
        flags = pairs.group_by("prompt_group").agg(
            evaluated=(used & (own == "test")).any(),
            test_role=((role == "test") & (own == "test")).any(),
        )
        names = flags["prompt_group"].to_list()
        pool = pl.Series([bucket("pool", self.config.salt, name.hex()) < 0.5 for name in names])
        pairs = pairs.join(
            flags.with_columns(pool=pool), on="prompt_group", how="left", maintain_order="left"
        )
        trainable = pairs.filter(seen & (own == "train") & ~pl.col("evaluated"))
        validation = self._validation_groups(trainable)
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
        reason = (
            pl.when(~used | role.is_null())
            .then(pl.lit("worker-not-in-protocol"))
            .when(unseen & (own == "train"))
            .then(pl.lit("not-its-split"))
            .when(
                (seen & (own == "train") & pl.col("evaluated"))
                | ((role == "val") & ~pl.col("pool") & pl.col("test_role"))
            )
            .then(pl.lit("prompt-in-another-split"))
        )
        population = pl.when(seen).then(pl.lit("seen")).otherwise(pl.lit("unseen"))
        pairs = pairs.with_columns(reject_reason=reason, population=population)
        pairs = pairs.with_columns(split=split)
        pairs = reject_small_users(pairs, seen, unseen, self.config.min_pairs)
        return pairs.drop("evaluated", "test_role", "pool")

    def _validation_groups(self, trainable: pl.DataFrame) -> set[bytes]:
        """Choose whole prompts, in the order of their hashes, that together have a tenth of the
        rows.

        Rows of equal length count, as they do in the published sizes; a prompt that would overflow
        is passed over.
        """
        sizes: Counter[bytes] = Counter(trainable["prompt_group"].to_list())
        for (worker, key), count in self.tally.left_out.items():
            if self.roles.get(worker) == "seen" and key in sizes:
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


def _listed(sizes: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sizes.items())
