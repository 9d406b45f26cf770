"""The model behind ``auto``: a shared taste and K deviations from it, all of them shrunk.

    m_u(t)  = s_0 + S(t) + a_u + sum_k w_uk D_k(t),      w_u = softmax(omega_u)
    S(t)    = z_t . s + E_t
    D_k(t)  = sigma z_t . v_k + tau eps_tk
    s, v_k, E_t, eps_tk, a_u, omega_u ~ N(0, 1)

A thing t is what is judged: a statement that somebody agrees with or not, or an item of a
comparison, whose margin is m_u(first) - m_u(second) without s_0 and a_u. E and eps are what a thing
has beyond what its features tell: its random effect. Things are the sample, not answers: without
these residuals the maps memorise how much everybody likes each of a few hundred things.

``pal.train.solve.posterior`` finds it. Shapes: n answers, T things, F features of a thing, K
prototypes, N users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from pal.train.heads.auto import SHARED_VARIANCE
from pal.train.sharing import Array, Numbers

START = 0.5
"""spread of the first deviations and user logits: at zero all prototypes would be alike for ever"""


class Strength(NamedTuple):
    """How far prototypes may deviate from the shared taste: by what features tell, and beyond."""

    sigma: float
    tau: float


@dataclass(frozen=True)
class Priors:
    """Variances of the priors: infinity is no prior, zero holds what it is of at zero.

    ``auto`` and ``one-taste`` are fitted under the default; the others take a part away, to see
    what it buys (``benchmarks/experiment.py --ablation``).
    """

    maps: float = 1.0
    """of s and v"""
    residuals: float = 1.0
    """of E and eps"""
    ready: float = 1.0
    """of a"""
    logits: float = 1.0
    """of omega"""
    moderates: bool = True
    """whether margins are divided by what the residuals leave open that are dropped"""

    @property
    def dropped(self) -> float:
        """Of which variance a dropped E is; that of a dropped eps is tau^2 times that."""
        return SHARED_VARIANCE * self.residuals if self.moderates else 0.0


STANDARD = Priors()


@dataclass(frozen=True)
class Judgements:
    """Answers of users to things."""

    first: Numbers
    """(n,) thing"""
    second: Numbers | None
    """(n,) the thing that it was compared with; None where each answer judges one thing"""
    user: Numbers
    label: Array
    """(n,) P(first preferred), or P(agrees)"""
    users: int

    def __len__(self) -> int:
        return len(self.label)

    def only(self, rows: NDArray[np.bool_]) -> Judgements:
        """Return some of the answers."""
        second = None if self.second is None else self.second[rows]
        return Judgements(self.first[rows], second, self.user[rows], self.label[rows], self.users)

    def difference(self, table: Array) -> Array:
        """Return each answer's row of a table of things, (n, C): the first's less the second's."""
        found: Array = table[self.first]
        return found if self.second is None else found - table[self.second]


@dataclass(frozen=True)
class Mixture:
    """The maximum of the posterior."""

    base: float
    """s_0"""
    shared: Array
    """(F,) s"""
    deviations: Array
    """(F, K) sigma v"""
    residuals: Array
    """(T, 1 + K) E, and tau eps"""
    ready: Array
    """(N,) a"""
    logits: Array
    """(N, K) omega"""
    tau: float
    dropped: float = SHARED_VARIANCE
    """variance of E of a thing that was not fitted"""

    @property
    def weights(self) -> Array:
        """(N, K) on the simplex."""
        found: Array = softmax(self.logits, axis=1)
        return found

    @property
    def maps(self) -> Array:
        """(F, 1 + K): from features to S and D, residuals aside."""
        return np.column_stack([self.shared, self.deviations])


def moderation(weights: Array, tau: float, dropped: float) -> Array:
    """Return sqrt(1 + pi var / 8), (n,), for weights (n, K): by what margins are divided whose
    things have residuals that nobody knows, of variance ``var`` (the probit approximation of the
    logistic average); ``dropped`` is the variance of the E among them, all things together."""
    variance = dropped * (1.0 + tau**2 * np.square(weights).sum(axis=1))
    found: Array = np.sqrt(1.0 + np.pi * variance / 8.0)
    return found


def settled(mixture: Mixture, features: Array, rows: Judgements) -> Array:
    """Return by how much the answers to each thing narrow the variance of its residual, (T,), from
    0, no answer, to 1: c / (1 + c) of a curvature c, the sum of p (1 - p) over its answers
    (Laplace's approximation, everything else held)."""
    taste = rows.difference(features @ mixture.maps + mixture.residuals)
    margin = taste[:, 0] + (mixture.weights[rows.user] * taste[:, 1:]).sum(axis=1)
    if rows.second is None:
        margin += mixture.base + mixture.ready[rows.user]
    p = expit(margin)
    found = np.zeros(len(features))
    for thing in (rows.first, rows.second):
        if thing is not None:
            found += np.bincount(thing, p * (1.0 - p), len(features))
    narrowed: Array = found / (1.0 + found)
    return narrowed


@dataclass(frozen=True)
class Parts:
    """A moderated margin as a sum, (n,) each: who answers, what everybody likes, what the user
    likes beyond."""

    ready: Array
    shared: Array
    own: Array


def predicted(mixture: Mixture, features: Array, rows: Judgements) -> Parts:
    """Return the margins of answers to things that were not fitted, ``features`` (T, F)."""
    taste = rows.difference(features @ mixture.maps)
    weights = mixture.weights[rows.user]
    is_vote = rows.second is None
    size = moderation(weights, mixture.tau, (1.0 if is_vote else 2.0) * mixture.dropped)
    ready = mixture.base + mixture.ready[rows.user] if is_vote else np.zeros(len(rows))
    return Parts(ready / size, taste[:, 0] / size, (weights * taste[:, 1:]).sum(axis=1) / size)


__all__ = [
    "STANDARD", "Array", "Judgements", "Mixture", "Numbers", "Parts", "Priors", "Strength",
    "predicted", "settled",
]  # fmt: skip
