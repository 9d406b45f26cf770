"""Test A as it is run: the statistic, its two nulls, and which share of users it would find."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pal.audit.answers import Answers
from pal.audit.ledger import Ledger
from pal.audit.overlap import SHOWN, OneTaste, Overlap
from pal.audit.power import LEVEL, PLANTINGS, Other, p_of, planted_users
from pal.train.sharing import Array

AT_ONCE = 20
"""draws between two reports of progress"""
Progress = Callable[[int], None]


@dataclass(frozen=True)
class OverlapFound:
    """What test A says."""

    users: int
    pairs: int
    statistic: float
    null: Array
    p: float
    """by parametric bootstrap, which decides"""
    p_permutation: float
    directions: int
    """eigenvalues above 95 % of the null's largest"""
    axis: Array
    """(N,) the users of the overlap along the first direction"""


@dataclass(frozen=True)
class OverlapTest:
    """Test A of some answers."""

    overlap: Overlap
    one: OneTaste
    ledger: Ledger
    seed: int
    progress: Progress
    workers: int | None = None
    name: str = "overlap"

    @classmethod
    def of(
        cls,
        answers: Answers,
        ledger: Ledger,
        seed: int,
        progress: Progress,
        workers: int | None = None,
        name: str = "overlap",
    ) -> OverlapTest | None:
        """Return the test; None where too few users have pairs in common."""
        overlap = Overlap.of(answers)
        if overlap is None:
            return None
        return cls(overlap, OneTaste.fitted(overlap), ledger, seed, progress, workers, name)

    def run(self, draws: int) -> OverlapFound:
        """Compare the statistic with both nulls."""
        overlap, seed = self.overlap, self.seed
        shown = min(SHOWN, len(overlap.users) - 1)
        values, axis = overlap.eigen(overlap.residuals(overlap.label), shown)
        # the same call as for the draws: an eigenvalue alone is found a little less exactly
        statistic = overlap.statistic(overlap.label)
        null = self.statistics("bootstrap", draws, lambda n: self.one.bootstrap(seed, n))
        other = self.statistics("permutation", draws, lambda n: overlap.permuted(seed, n))
        directions = int((values > np.quantile(null, 1.0 - LEVEL)).sum())
        users, pairs = overlap.size
        return OverlapFound(
            users, pairs, statistic, null, p_of(statistic, null), p_of(statistic, other),
            directions, axis,
        )  # fmt: skip

    def statistics(self, kind: str, count: int, labels: Callable[[int], Array]) -> Array:
        """Return the statistics of so many draws of labels, (count,)."""

        def compute(wanted: Sequence[int]) -> Iterator[Array]:
            workers = self.workers or os.cpu_count() or 1
            with ThreadPoolExecutor(workers) as pool:  # NumPy releases the interpreter lock
                for start in range(0, len(wanted), AT_ONCE):
                    some = wanted[start : start + AT_ONCE]
                    found = pool.map(lambda n: self.overlap.statistic(labels(n)), some)
                    yield np.array(list(found)).reshape(-1, 1)

        return self.ledger.take(f"{self.name} {kind}", count, compute, self.progress)[:, 0]

    def planted(self, share: float, other: Other, number: int) -> Array:
        """Return labels of which a share of the users follow another taste, (c,)."""
        kind = ("opposite", "unrelated").index(other)
        rng = np.random.default_rng([self.seed, 7, 2 + kind, round(1000 * share), number])
        users = len(self.overlap.users)
        others = np.zeros(users, bool)
        others[rng.choice(users, planted_users(share, users), replace=False)] = True
        return self.one.drawn(rng, others, other == "unrelated")

    def detections(self, share: float, other: Other, null: Array) -> float:
        """Return the share of plantings that are found at level 0.05."""
        found = self.statistics(
            f"{other} {share:g}", PLANTINGS, lambda n: self.planted(share, other, n)
        )
        return float(np.mean([p_of(value, null) <= LEVEL for value in found]))
