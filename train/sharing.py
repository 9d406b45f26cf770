"""Sums over answers that have something in common: what the errors of means are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class _Pairs:
    """The answers that are about two things, m of n, and which of them are about the same two."""

    differs: NDArray[np.bool_]
    """(n,) whether an answer is about two things"""
    number: Numbers
    """(m,) of their pair, from 0"""
    things: Numbers
    """(2, pairs) the two things of each pair"""


@dataclass(frozen=True)
class Sharing:
    """Which of n answers have something in common: one thing, or one of two."""

    things: tuple[Numbers, ...]
    """(n,) each, from 0; the same twice is one"""
    pairs: _Pairs | None = None
    """None where each answer is about one thing"""

    @classmethod
    def of(cls, one: Numbers, other: Numbers | None) -> Sharing:
        if other is None:
            return cls((np.unique(one, return_inverse=True)[1],))
        both = np.unique(np.concatenate([one, other]), return_inverse=True)[1].reshape(2, -1)
        differs = both[0] != both[1]
        low, high = np.sort(both[:, differs], axis=0)
        things = int(both.max()) + 1
        names, number = np.unique(low * things + high, return_inverse=True)
        return cls(tuple(both), _Pairs(differs, number, np.stack(np.divmod(names, things))))

    def sums(self, values: Array) -> tuple[Array, Array]:
        """Return the sum of the values, (n,), of each thing, and of each pair of things."""
        sums = np.bincount(self.things[0], values).astype(np.float64)
        if self.pairs is None:
            return sums, np.zeros(0)
        both = values[self.pairs.differs]
        second = np.bincount(self.things[1][self.pairs.differs], both, len(sums))
        sums = np.pad(sums, (0, len(second) - len(sums))) + second
        return sums, np.bincount(self.pairs.number, both).astype(np.float64)

    def products(self, influence: Array) -> float:
        """Return the sum of the products of all values, (n,), that have a thing in common, each
        once: with two things for each a dyadic cluster-robust variance."""
        sums, twice = self.sums(influence)
        return float(np.square(sums).sum() - np.square(twice).sum())

    def shortfall(self, weights: Array) -> float:
        """Return by how much the variance of a weighted mean is above the expected ``products`` of
        what is left when the mean is taken off, where the things alone vary, independently and all
        alike; ``weights``, (n,), sum to one.

        Of P things with the same weight this is P / (P - 1); of all pairs among P things
        P (P - 1) / ((P - 2) (P - 3)), which is 3.3 for five of them. Infinite where the products
        can say nothing, as with three things.
        """
        own_P, pair_Q = self.sums(weights)
        square = float(np.square(own_P).sum())
        # the effect of thing k on the sum of thing i: M - own own^T, M with own on its diagonal
        # and the weights of pairs beside it
        found = square - 2.0 * float((own_P**3).sum()) + square * square
        if self.pairs is not None:
            of_pair = own_P[self.pairs.things]
            found += float((pair_Q**2 * 2.0).sum() - 4.0 * (pair_Q * of_pair.prod(axis=0)).sum())
            found -= float((pair_Q**2 * (2.0 - 2.0 * of_pair.sum(axis=0) + square)).sum())
        return square / found if found > 1e-9 * square else math.inf
