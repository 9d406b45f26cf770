"""The fit behind ``auto``: a shared taste and K deviations from it, all of them shrunk.

    m_u(t)  = s_0 + S(t) + a_u + sum_k w_uk D_k(t),      w_u = softmax(omega_u)
    S(t)    = z_t . s + E_t
    D_k(t)  = sigma z_t . v_k + tau eps_tk
    s, v_k, E_t, eps_tk, a_u, omega_u ~ N(0, 1)

A thing t is what is judged: a statement that somebody agrees with or not, or an item of a
comparison, whose margin is m_u(first) - m_u(second) without s_0 and a_u. E and eps are what a thing
has beyond what its features tell: its random effect. Things are the sample, not answers: without
these residuals the maps memorise how much everybody likes each of a few hundred things.

Everything is found at once, at the maximum of the posterior, by L-BFGS over all answers. Shapes: n
answers, T things, F features of a thing, K prototypes, N users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit, softmax

from pal.train.heads.auto import SHARED_VARIANCE
from pal.train.sharing import Array, Numbers

HISTORY, GRADIENT, PROGRESS = 20, 1e-4, 1e-7
"""steps that L-BFGS remembers, and the largest slope and the relative progress that end it"""
START = 0.5
"""spread of the first deviations and user logits: at zero all prototypes would be alike for ever"""


class Strength(NamedTuple):
    """How far prototypes may deviate from the shared taste: by what features tell, and beyond."""

    sigma: float
    tau: float


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

    @property
    def weights(self) -> Array:
        """(N, K) on the simplex."""
        found: Array = softmax(self.logits, axis=1)
        return found

    @property
    def maps(self) -> Array:
        """(F, 1 + K): from features to S and D, residuals aside."""
        return np.column_stack([self.shared, self.deviations])


def fit(
    features: Array,
    rows: Judgements,
    k: int,
    strength: Strength,
    rng: np.random.Generator,
    iterations: int,
) -> Mixture:
    """Return the maximum of the posterior that L-BFGS finds from a random start.

    ``features`` are those of the things, (T, F), with a mean of zero and a mean squared norm of
    one.
    """
    problem = _Problem(features, rows, k, strength)
    found = minimize(
        problem.value_and_slope, problem.start(rng), jac=True, method="L-BFGS-B",
        options={
            "maxiter": iterations, "maxfun": 2 * iterations, "maxcor": HISTORY, "ftol": PROGRESS,
            "gtol": GRADIENT,
        },
    )  # fmt: skip
    part = problem.split(found.x)
    residuals = np.column_stack([part.shared_residual, strength.tau * part.residuals])
    return Mixture(
        float(part.base[0]), part.shared, strength.sigma * part.deviations, residuals, part.ready,
        part.logits, strength.tau,
    )  # fmt: skip


class _Parts(NamedTuple):
    """What is fitted, each with a prior of N(0, 1) but the base, which has none."""

    base: Array
    shared: Array
    deviations: Array
    shared_residual: Array
    residuals: Array
    ready: Array
    logits: Array


class _Problem:
    """The negative log posterior and its slope."""

    def __init__(self, features: Array, rows: Judgements, k: int, strength: Strength) -> None:
        self.features, self.rows, self.strength = features, rows, strength
        things, width = features.shape
        self.shapes = [
            (1,), (width,), (width, k), (things,), (things, k), (rows.users,), (rows.users, k),
        ]  # fmt: skip
        self.ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        self.is_vote = 1.0 if rows.second is None else 0.0
        answer, one = np.arange(len(rows)), np.ones(len(rows))
        things_of, sign, answers = [rows.first], [one], [answer]
        if rows.second is not None:
            things_of.append(rows.second)
            sign.append(-one)
            answers.append(answer)
        place = (np.concatenate(things_of), np.concatenate(answers))
        self.by_thing = csr_array((np.concatenate(sign), place), (things, len(rows)))
        self.by_user = csr_array((one, (rows.user, answer)), (rows.users, len(rows)))

    def start(self, rng: np.random.Generator) -> Array:
        """Return where to begin, all numbers in a row."""
        part = self.split(np.zeros(self.ends[-1]))
        part.deviations[:] = START * rng.standard_normal(part.deviations.shape)
        part.logits[:] = START * rng.standard_normal(part.logits.shape)
        return np.concatenate([values.ravel() for values in part])

    def split(self, numbers: Array) -> _Parts:
        """Return views of the parts of a row of numbers."""
        pieces = np.split(numbers, self.ends[:-1])
        return _Parts(*(p.reshape(shape) for p, shape in zip(pieces, self.shapes, strict=True)))

    def value_and_slope(self, numbers: Array) -> tuple[float, Array]:
        part, (sigma, tau) = self.split(numbers), self.strength
        user, label = self.rows.user, self.rows.label
        table = np.column_stack(
            [
                self.features @ part.shared + part.shared_residual,
                sigma * (self.features @ part.deviations) + tau * part.residuals,
            ]
        )
        taste = self.rows.difference(table)
        weights: Array = softmax(part.logits, axis=1)
        own = weights[user]
        margin = taste[:, 0] + (own * taste[:, 1:]).sum(axis=1)
        margin += self.is_vote * (part.base[0] + part.ready[user])
        off = expit(margin) - label
        value = float((np.logaddexp(0.0, margin) - label * margin).sum())
        value += 0.5 * float(np.square(numbers[1:]).sum())

        slope = np.empty_like(numbers)
        slope[0], slope[1:] = self.is_vote * off.sum(), numbers[1:]
        down = self.split(slope)
        of_things = self.by_thing @ np.column_stack([off, off[:, None] * own])
        of_users = self.by_user @ np.column_stack([off, off[:, None] * taste[:, 1:]])
        down.shared[:] += self.features.T @ of_things[:, 0]
        down.deviations[:] += sigma * (self.features.T @ of_things[:, 1:])
        down.shared_residual[:] += of_things[:, 0]
        down.residuals[:] += tau * of_things[:, 1:]
        down.ready[:] += self.is_vote * of_users[:, 0]
        along = of_users[:, 1:]
        down.logits[:] += weights * (along - (weights * along).sum(axis=1, keepdims=True))
        return value, slope


def moderation(weights: Array, tau: float, dropped: int) -> Array:
    """Return sqrt(1 + pi var / 8), (n,), for weights (n, K): by what margins are divided whose
    ``dropped`` things have residuals that nobody knows, of variance ``var`` (the probit
    approximation of the logistic average)."""
    variance = dropped * (SHARED_VARIANCE + tau**2 * np.square(weights).sum(axis=1))
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
    size = moderation(weights, mixture.tau, 1 if is_vote else 2)
    ready = mixture.base + mixture.ready[rows.user] if is_vote else np.zeros(len(rows))
    return Parts(ready / size, taste[:, 0] / size, (weights * taste[:, 1:]).sum(axis=1) / size)


__all__ = [
    "Array", "Judgements", "Mixture", "Numbers", "Parts", "Strength", "fit", "predicted", "settled",
]  # fmt: skip
