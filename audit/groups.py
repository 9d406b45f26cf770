"""Who is alike, by the plural model of all answers, and how many groups that makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from scipy.spatial.distance import cdist
from scipy.special import logit

from pal.audit.answers import Answers
from pal.audit.cross_fit import design_of, fit_both
from pal.audit.design import Spreads
from pal.evaluate.metrics import negative_log_likelihoods
from pal.train.sharing import Array, Numbers
from pal.train.solve.mixture import Strength

MOST, TRIES = 8, 10
"""groups that are tried, and starts of each division"""
APART = 0.5
"""mean silhouette from which on users are groups; below it they pass into each other (Kaufman and
Rousseeuw 1990: 0.5 and more is a reasonable structure)"""
STABLE = 0.65
"""adjusted Rand index with divisions from other starts from which on a number of groups is stated;
below it one division hardly recovers another (Steinley 2004: under 0.65 is poor)"""
CLOSE = 0.1
"""of the best silhouette: fewer groups that come so close are preferred"""
SHOWN_MOST = 4
"""groups into which users are divided to show what they disagree about where there are none"""
MOST_COMPARED = 2000
"""users whose silhouettes are taken"""
STARTS = (None, 1, 2)
"""of the fit: where users differ most, and at random"""


@dataclass(frozen=True)
class Tastes:
    """The plural model of all answers."""

    shared: Array
    """(T,) S"""
    deviations: Array
    """(T, K) D"""
    weights: Array
    """(N, K)"""
    reliability: Array
    """(N,) b"""
    positions: Array
    """(N, A) users, so that their distance is by how much their own tastes differ on the pairs
    that were asked about (root mean square), the axes of most difference first"""
    told: Array
    """(N,) nats by which all answers of a user are told better than by the own mean alone: nothing
    for one who answers at random"""
    between: float
    """share of the variance of margins that lies between users: that of w D among all"""

    @classmethod
    def fitted(
        cls,
        answers: Answers,
        z: torch.Tensor,
        strength: Strength,
        spreads: Spreads,
        seed: int | None = None,
    ) -> Tastes:
        design = design_of(answers, z, spreads)
        label = torch.from_numpy(answers.label).to(z.dtype).unsqueeze(1)
        fitted = fit_both(design, label, strength, seed)
        part = fitted.plural.split(fitted.many)
        shared, own = fitted.plural.rows(part)
        weights = part.weights[:, :, 0].double().numpy()
        own_rows, shared_rows = own[:, :, 0].double().numpy(), shared[:, 0].double().numpy()
        residual = part.residuals[:, :, 0] if strength.tau else 0.0
        deviations = (z @ part.deviations[:, :, 0] + residual).double().numpy()
        taste = (z @ part.shared[:, 0] + part.shared_residual[:, 0]).double().numpy()
        counts = np.bincount(answers.rows[1]).astype(float)
        positions = _positions(weights, own_rows, counts)
        mean = shared_rows + own_rows @ weights.mean(axis=0)
        inside = float(np.square(positions - positions.mean(axis=0)).sum(axis=1).mean())
        away = mean - np.average(mean, weights=counts)
        common = float(np.average(np.square(away), weights=counts))
        margin = fitted.plural.margins(fitted.many, design, torch.zeros(len(design.x)))
        told = _told(answers, margin[:, 0].double().numpy())
        reliability = part.reliability[:, 0].double().numpy()
        return cls(
            taste,
            deviations,
            weights,
            reliability,
            positions,
            told,
            inside / max(inside + common, 1e-12),
        )


def _told(answers: Answers, margin: Array) -> Array:
    """Return by how much margins (n,) tell each user's answers better than the own mean, (N,)."""
    says = np.where(answers.place > 0, answers.label, 1.0 - answers.label)
    share = (np.bincount(answers.user, says) + 0.5) / (np.bincount(answers.user) + 1.0)
    own = answers.place * logit(share)[answers.user]
    gained = negative_log_likelihoods(own, answers.label)
    gained -= negative_log_likelihoods(margin, answers.label)
    found: Array = np.bincount(answers.user, gained).astype(np.float64)
    return found


def _positions(weights: Array, own: Array, counts: Array) -> Array:
    """Return users, (N, A), by principal axes of their own tastes on rows, (R, K)."""
    share = counts / counts.sum()
    moment = (own * share[:, None]).T @ own
    values, vectors = np.linalg.eigh(moment)
    half = vectors * np.sqrt(np.maximum(values, 0.0))
    users = (weights - weights.mean(axis=0)) @ half
    spread, axes = np.linalg.eigh(users.T @ users)
    kept = spread[::-1] > 1e-9 * max(spread.max(), 1e-30)
    turned: Array = (users @ axes[:, ::-1])[:, kept]
    return turned


class Division(NamedTuple):
    """Users divided."""

    group: Numbers
    """(N,) from 0, the largest group first"""
    groups: int
    """how many there are; 1 where users pass into each other"""
    silhouette: float
    """of the division, groups or not"""

    @property
    def shown(self) -> int:
        """Into how many parts users are divided to show them."""
        return int(self.group.max()) + 1


def divided(positions: Array, seed: int) -> Division:
    """Divide users into groups by their positions.

    The number is the smallest whose mean silhouette of k-means is close to the best. Where none is
    clear, users are divided all the same, to show what they disagree about, but ``groups`` is 1.
    """
    users, axes = positions.shape
    nobody = Division(np.zeros(users, np.int64), 1, 0.0)
    if users < 4 or not axes or float(np.square(positions).mean()) < 1e-8:
        return nobody
    found = []
    for count in range(2, min(MOST, users - 1) + 1):
        group = _means(positions, count, seed)
        if group is not None:
            found.append((_silhouette(positions, group, seed), count, group))
    if not found:
        return nobody
    most = max(one[0] for one in found)
    best = next(one for one in found if one[0] >= most - CLOSE)  # the fewest come first
    if best[0] < APART:
        best = max((one for one in found if one[1] <= SHOWN_MOST), key=lambda one: one[0])
    order = np.argsort(-np.bincount(best[2]), kind="stable")
    group = np.argsort(order)[best[2]]
    return Division(group, best[1] if best[0] >= APART else 1, best[0])


def clear_groups(division: Division, stability: float | None) -> int:
    """Return how many groups there are; 1 where users pass into each other, or where other starts
    of the fit divide them otherwise."""
    is_stable = stability is None or stability >= STABLE
    return division.groups if is_stable else 1


def _means(positions: Array, count: int, seed: int) -> Numbers | None:
    """Return the best k-means of some starts, (N,); None where a group stays empty."""
    best, least = None, np.inf
    for start in range(TRIES):
        rng = np.random.default_rng([seed, 9, count, start])
        centres, group = kmeans2(positions, count, minit="++", seed=rng, missing="warn")
        if len(np.unique(group)) < count:
            continue
        loss = float(np.square(positions - centres[group]).sum())
        if loss < least:
            best, least = group.astype(np.int64), loss
    return best


def _silhouette(positions: Array, group: Numbers, seed: int) -> float:
    """Return the mean silhouette (Rousseeuw 1987): 1 where groups are points far apart."""
    if len(group) > MOST_COMPARED:
        some = np.random.default_rng([seed, 10]).permutation(len(group))[:MOST_COMPARED]
        positions, group = positions[some], group[some]
    distance = cdist(positions, positions)
    member = np.eye(int(group.max()) + 1)[group]
    size = member.sum(axis=0)
    sums = distance @ member
    own = sums[np.arange(len(group)), group] / np.maximum(size[group] - 1.0, 1.0)
    sums = sums / np.maximum(size, 1.0)
    sums[np.arange(len(group)), group] = np.inf
    nearest = sums.min(axis=1)
    width = (nearest - own) / np.maximum(np.maximum(nearest, own), 1e-12)
    return float(np.where(size[group] > 1, width, 0.0).mean())


def agreement(one: Numbers, other: Numbers) -> float:
    """Return the adjusted Rand index of two divisions: 1 the same, 0 as by chance (Hubert and
    Arabie 1985)."""
    table = np.zeros((int(one.max()) + 1, int(other.max()) + 1))
    np.add.at(table, (one, other), 1.0)

    def pairs(count: Array) -> float:
        return float((count * (count - 1.0) / 2.0).sum())

    both, rows, columns = pairs(table), pairs(table.sum(axis=1)), pairs(table.sum(axis=0))
    chance = rows * columns / max(pairs(np.array([float(len(one))])), 1.0)
    most = (rows + columns) / 2.0
    return 1.0 if most == chance else (both - chance) / (most - chance)
