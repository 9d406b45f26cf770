"""Test A: users who judged the same pairs, and how they agree beyond what one taste explains.

    e_up = y_up - sigmoid(place a_u + b_u logit p_p,-u)          b_u >= 0
    G_uv = sum_p e_up e_vp / sqrt(n_u n_v),  G_uu = 0            statistic: its largest eigenvalue

p_p,-u is the share of the others on pair p, shrunk to the mean of all pairs by a beta prior that is
fitted by moments; n_u counts the pairs of user u. Everything is fitted anew for every draw. No
feature is read. Shapes: c cells (a user on a pair), P pairs, N users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.special import expit, logit

from pal.audit.answers import Answers
from pal.audit.nulls import drawn_labels
from pal.train.sharing import Array, Numbers

FEWEST_USERS, FEWEST_CELLS = 3, 20
"""with fewer, users cannot be compared"""
NEWTON = 5
STRONGEST, WEAKEST = 200.0, 0.1
"""the beta prior's weight, in answers"""
DENSE = 48
"""users up to whom all eigenvalues are found at once"""
SHOWN = 6
"""eigenvalues that are told"""
DIRECTION = 1e-3
"""relative error of an eigenvalue"""


class Manners(NamedTuple):
    """How each user answers, (N,): readiness a, reliability b, and the Cholesky factor of what is
    not known of both."""

    ready: Array
    reliability: Array
    factor: Array
    """(N, 2, 2)"""


@dataclass(frozen=True)
class Overlap:
    """All pairs that two users or more judged."""

    user: Numbers
    """(c,)"""
    pair: Numbers
    """(c,), ascending"""
    label: Array
    """(c,) where a user judged a pair several times, the mean"""
    place: Array
    users: Numbers
    """(N,) which users of the answers these are"""
    rows: Numbers
    """(P,) which rows of the answers the pairs are"""
    symmetric: bool
    """pairs of two things, whose orientation means nothing"""

    @classmethod
    def of(cls, answers: Answers) -> Overlap | None:
        """Return the pairs in common; None where they are too few."""
        row = answers.rows[1]
        key = row * answers.users + answers.user
        cells, where = np.unique(key, return_inverse=True)
        count = np.bincount(where)
        label, place = (np.bincount(where, v) / count for v in (answers.label, answers.place))
        pair, user = cells // answers.users, cells % answers.users
        common = np.bincount(pair)[pair] > 1
        users, user = np.unique(user[common], return_inverse=True)
        rows, pair = np.unique(pair[common], return_inverse=True)
        if len(users) < FEWEST_USERS or len(user) < FEWEST_CELLS:
            return None
        return cls(
            user, pair, label[common], place[common], users, rows, answers.second is not None
        )

    @property
    def size(self) -> tuple[int, int]:
        """Users and pairs."""
        return len(self.users), len(self.rows)

    def shares(self, label: Array) -> tuple[Array, Array, float, float]:
        """Return the sums and counts of pairs, (P,), and the beta prior of their shares."""
        count = np.bincount(self.pair).astype(float)
        total = np.bincount(self.pair, label).astype(np.float64)
        mean = 0.5 if self.symmetric else float(label.mean())
        squares = np.bincount(self.pair, np.square(label))
        # the sum of squared deviations within pairs estimates p (1 - p), and what ties take from it
        within = float((squares - total**2 / count).sum() / (count - 1.0).sum())
        every = float(np.square(label - mean).mean())
        between = every - within
        weight = STRONGEST if between <= 0.0 else within / between
        weight = min(max(weight, WEAKEST), STRONGEST)
        mean = min(max(mean, 0.01), 0.99)
        return total, count, weight * mean, weight * (1.0 - mean)

    def manners(self, label: Array) -> tuple[Array, Manners]:
        """Return the logits of the others' shares, (c,), and how each user answers at them."""
        total, count, alpha, beta = self.shares(label)
        others = (total[self.pair] - label + alpha) / (count[self.pair] - 1.0 + alpha + beta)
        level = logit(np.clip(others, 1e-4, 1.0 - 1e-4))
        n = len(self.users)
        ready, reliability = np.zeros(n), np.ones(n)
        for _ in range(NEWTON):
            p = expit(self.place * ready[self.user] + reliability[self.user] * level)
            off, bend = p - label, p * (1.0 - p)
            slope_a = np.bincount(self.user, self.place * off, n) + ready
            slope_b = np.bincount(self.user, level * off, n) + reliability - 1.0
            aa = np.bincount(self.user, bend, n) + 1.0
            ab = np.bincount(self.user, self.place * level * bend, n)
            bb = np.bincount(self.user, level * level * bend, n) + 1.0
            size = aa * bb - ab * ab
            ready = ready - np.clip((bb * slope_a - ab * slope_b) / size, -2.0, 2.0)
            step = np.clip((aa * slope_b - ab * slope_a) / size, -2.0, 2.0)
            reliability = np.maximum(reliability - step, 0.0)
        known = np.stack([np.stack([aa, ab], 1), np.stack([ab, bb], 1)], 1)
        factor = np.linalg.cholesky(np.linalg.inv(known))
        return level, Manners(ready, reliability, factor)

    def residuals(self, label: Array) -> Array:
        """Return e of each cell, (c,), divided by the square root of its user's pairs."""
        level, manners = self.manners(label)
        margin = self.place * manners.ready[self.user] + manners.reliability[self.user] * level
        pairs = np.bincount(self.user)
        found: Array = (label - expit(margin)) / np.sqrt(pairs[self.user])
        return found

    def eigen(self, residual: Array, count: int = 1) -> tuple[Array, Array]:
        """Return the largest eigenvalues of G, the largest first, and the vector of that one."""
        users, pairs = self.size
        table = csr_array((residual, (self.user, self.pair)), (users, pairs))
        own = np.bincount(self.user, np.square(residual))
        if users <= max(DENSE, count + 1):
            values, vectors = np.linalg.eigh((table @ table.T).toarray() - np.diag(own))
            return values[::-1][:count], vectors[:, -1]
        back = csr_array(table.T)
        product = LinearOperator(
            (users, users), matvec=lambda x: table @ (back @ x) - own * x, dtype=float
        )
        start = np.random.default_rng(0).standard_normal(users)
        values, vectors = eigsh(product, k=count, which="LA", v0=start, tol=DIRECTION)
        order = np.argsort(-values)
        return values[order], vectors[:, order[0]]

    def statistic(self, label: Array) -> float:
        return float(self.eigen(self.residuals(label))[0][0])

    def permuted(self, seed: int, number: int) -> Array:
        """Return the labels with each pair's answers given to its users anew, (c,)."""
        rng = np.random.default_rng([seed, 5, number])
        order = np.argsort(self.pair + rng.random(len(self.label)))
        found: Array = self.label[order]
        return found


@dataclass(frozen=True)
class OneTaste:
    """What pairs and users are like if there is one taste."""

    overlap: Overlap
    taste: Array
    """(P,) logit at which users of their manners have the pair's share"""
    total: Array
    count: Array
    prior: tuple[float, float]
    manners: Manners

    @classmethod
    def fitted(cls, overlap: Overlap) -> OneTaste:
        total, count, alpha, beta = overlap.shares(overlap.label)
        _, manners = overlap.manners(overlap.label)
        share = (total + alpha) / (count + alpha + beta)
        taste = logit(share)
        ready, reliability = manners.ready[overlap.user], manners.reliability[overlap.user]
        for _ in range(NEWTON):
            p = expit(overlap.place * ready + reliability * taste[overlap.pair])
            bend = np.bincount(overlap.pair, reliability * p * (1.0 - p)) / count + 0.01
            gap = share - np.bincount(overlap.pair, p) / count
            taste = np.clip(taste + np.clip(gap / bend, -1.0, 1.0), -8.0, 8.0)
        return cls(overlap, taste, total, count, (alpha, beta), manners)

    def drawn(
        self, rng: np.random.Generator, opposed: Array | None = None, other: bool = False
    ) -> Array:
        """Return labels, (c,), of users and pairs that the answers allow.

        ``opposed`` users, (N,) bool, have the opposite taste, or, with ``other``, one that says
        nothing about the common one.
        """
        alpha, beta = self.prior
        overlap = self.overlap
        drawn = rng.beta(self.total + alpha, self.count - self.total + beta)
        drawn = logit(np.clip(drawn, 1e-4, 1.0 - 1e-4))
        share = (self.total + alpha) / (self.count + alpha + beta)
        taste = self.taste + drawn - logit(share)
        away = rng.standard_normal((len(overlap.users), 2))
        away = np.einsum("nij,nj->ni", self.manners.factor, away)
        ready = self.manners.ready + away[:, 0]
        reliability = np.maximum(self.manners.reliability + away[:, 1], 0.0)
        level = taste[overlap.pair]
        if opposed is not None:
            theirs = -taste
            if other:
                theirs = rng.permutation(taste)
            level = np.where(opposed[overlap.user], theirs[overlap.pair], level)
        margin = overlap.place * ready[overlap.user] + reliability[overlap.user] * level
        return drawn_labels(margin, overlap.label, rng)

    def bootstrap(self, seed: int, number: int) -> Array:
        """Return the labels of one draw."""
        return self.drawn(np.random.default_rng([seed, 6, number]))
