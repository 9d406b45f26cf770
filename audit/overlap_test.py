"""Test A as it is run: the statistic, its two nulls, and which share of users it would find."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from pal.audit.answers import Answers
from pal.audit.drawing import HERE, Drawing
from pal.audit.ledger import Ledger
from pal.audit.overlap import SHOWN, OneTaste, Overlap
from pal.audit.power import LEVEL, PLANTINGS, Other, p_of, planted_users
from pal.train.sharing import Array

AT_ONCE = 10
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
    drawing: Drawing = HERE
    name: str = "overlap"

    @classmethod
    def of(
        cls,
        answers: Answers,
        ledger: Ledger,
        seed: int,
        progress: Progress,
        drawing: Drawing = HERE,
        name: str = "overlap",
    ) -> OverlapTest | None:
        """Return the test; None where too few users have pairs in common."""
        overlap = Overlap.of(answers)
        if overlap is None:
            return None
        return cls(overlap, OneTaste.fitted(overlap), ledger, seed, progress, drawing, name)

    def run(self, draws: int) -> OverlapFound:
        """Compare the statistic with both nulls."""
        overlap, seed = self.overlap, self.seed
        shown = min(SHOWN, len(overlap.users) - 1)
        values, axis = overlap.eigen(overlap.residuals(overlap.label), shown)
        # the same call as for the draws: an eigenvalue alone is found a little less exactly
        statistic = overlap.statistic(overlap.label)
        null = self.statistics("bootstrap", draws, partial(self.one.bootstrap, seed))
        other = self.statistics("permutation", draws, partial(overlap.permuted, seed))
        directions = int((values > np.quantile(null, 1.0 - LEVEL)).sum())
        users, pairs = overlap.size
        return OverlapFound(
            users, pairs, statistic, null, p_of(statistic, null), p_of(statistic, other),
            directions, axis,
        )  # fmt: skip

    def statistics(self, kind: str, count: int, labels: Callable[[int], Array]) -> Array:
        """Return the statistics of so many draws of labels, (count,)."""

        draw = partial(statistics_of, self.overlap, labels)
        found = self.ledger.take(
            f"{self.name} {kind}", count,
            lambda wanted: self.drawing.parts(draw, wanted, AT_ONCE, is_serial=True), self.progress,
        )  # fmt: skip
        return found[:, 0]

    def detections(self, share: float, other: Other, null: Array) -> float:
        """Return the share of plantings that are found at level 0.05."""
        found = self.statistics(
            f"{other} {share:g}", PLANTINGS, partial(planted, self.one, self.seed, share, other)
        )
        return float(np.mean([p_of(value, null) <= LEVEL for value in found]))


def statistics_of(
    overlap: Overlap, labels: Callable[[int], Array], numbers: Sequence[int]
) -> Array:
    """Return the statistics of draws, (draws, 1)."""
    return np.array([[overlap.statistic(labels(number))] for number in numbers])


def planted(one: OneTaste, seed: int, share: float, other: Other, number: int) -> Array:
    """Return labels of which a share of the users follow another taste, (c,)."""
    kind = ("opposite", "unrelated").index(other)
    rng = np.random.default_rng([seed, 7, 2 + kind, round(1000 * share), number])
    users = len(one.overlap.users)
    others = np.zeros(users, bool)
    others[rng.choice(users, planted_users(share, users), replace=False)] = True
    return one.drawn(rng, others, other == "unrelated")
