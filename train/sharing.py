"""Sums over answers that have something in common: what the errors of means are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Sharing:
    """Which of n answers have something in common: one thing, or one of two."""

    things: tuple[Numbers, ...]
    """(n,) each, from 0; the same twice is one"""
    differs: NDArray[np.bool_] | None = None
    """(n,) whether an answer is about two things"""
    pairs: Numbers | None = None
    """which of those that are have both in common"""

    @classmethod
    def of(cls, one: Numbers, other: Numbers | None) -> Sharing:
        if other is None:
            return cls((np.unique(one, return_inverse=True)[1],))
        both = np.unique(np.concatenate([one, other]), return_inverse=True)[1].reshape(2, -1)
        differs = both[0] != both[1]
        low, high = np.sort(both[:, differs], axis=0)
        names = low * (int(both.max()) + 1) + high
        return cls(tuple(both), differs, np.unique(names, return_inverse=True)[1])

    def products(self, influence: Array) -> float:
        """Return the sum of the products of all values, (n,), that have a thing in common, each
        once: with two things for each a dyadic cluster-robust variance."""
        sums = np.bincount(self.things[0], influence)
        if self.differs is None or self.pairs is None:
            return float(np.square(sums).sum())
        second = np.bincount(self.things[1][self.differs], influence[self.differs], len(sums))
        sums = np.pad(sums, (0, len(second) - len(sums))) + second
        twice = np.bincount(self.pairs, influence[self.differs])
        return float(np.square(sums).sum() - np.square(twice).sum())
