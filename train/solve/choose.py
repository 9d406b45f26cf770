"""How strong the priors of ``auto`` are, how often its metric is learned, and how much of the text
counts: by inner cross-fitting over things.

The default needs no evidence. A weaker prior, and then a metric, is taken only where answers to
things that were left out gain more than two standard errors, taken over things. Every number here
is of training answers. Shapes: n answers, T things.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from pal.train.sharing import Sharing
from pal.train.solve.mixture import (
    STANDARD,
    Array,
    Judgements,
    Mixture,
    Numbers,
    Parts,
    Priors,
    Strength,
    predicted,
)
from pal.train.solve.posterior import fit

DEFAULT = Strength(1.0, 1.0)
WEAKER = (Strength(2.0, 2.0), Strength(4.0, 2.0), Strength(8.0, 0.0), Strength(16.0, 0.0))
"""from strong to weak"""
NONE = (Strength(0.0, 0.0),)
"""nobody deviates from the shared taste"""
FOLDS, ITERATIONS, PATIENCE = 3, 100, 2
"""of the inner cross-fitting; how many strengths in a row that are no better end the path"""
ERRORS = 2.0
"""standard errors that a weaker prior, or a metric, must gain"""
ROUNDS = 3
"""times that a metric is learned, at most"""
LARGEST_PART = 0.5
"""share of all things that comparisons may join before things themselves are dealt to the folds"""


class Basis(Protocol):
    """Features of things, (t, F) of t of them, which what was fitted to them can sharpen."""

    def features_of(self, things: Numbers) -> Array: ...

    def sharpened(self, fitted: Mixture) -> Basis: ...


@dataclass(frozen=True)
class Choice:
    """What cross-fitting says."""

    strength: Strength
    of_shared: float
    """what S is multiplied with, 0 to 1"""
    of_own: float
    """what the deviations are multiplied with, 0 to 1"""
    gain: float
    """nats per answer that the strength gains over the default"""
    error: float
    """its standard error over things"""
    rounds: int = 0
    """times that the metric is learned"""


@dataclass(frozen=True)
class _Held:
    """Answers to things that were left out, as predicted without them."""

    rows: Numbers
    parts: Parts
    label: Array
    fitted: dict[int, Mixture]
    """by fold"""

    def loss(self) -> Array:
        return _loss(self.parts.ready + self.parts.shared + self.parts.own, self.label)


def choose(
    basis_of: Callable[[Numbers], Basis],
    rows: Judgements,
    things: int,
    k: int,
    seed: int,
    path: Sequence[Strength] = (DEFAULT, *WEAKER),
    priors: Priors = STANDARD,
) -> Choice:
    """Choose a strength, how often the metric is learned, and the scales of the text.

    ``path`` begins with the default, and goes on from strong to weak. ``basis_of`` returns what
    makes features of things, from the statistics of some of them.
    """
    group = groups_of(rows, things)
    fold = dealt(group, seed)
    tested = [_within(rows, fold == number) for number in range(FOLDS)]
    trained = [_within(rows, fold != number) for number in range(FOLDS)]
    kept = [n for n in range(FOLDS) if tested[n].any() and trained[n].any()]
    if not kept:
        return Choice(path[0], 1.0, 1.0, 0.0, 0.0)
    bases = {n: basis_of(np.unique(_things(rows.only(trained[n])))) for n in kept}

    def held_out(strength: Strength, bases: dict[int, Basis]) -> _Held:
        places, parts, fitted = [], [], {}
        for n in kept:
            rng = np.random.default_rng([seed, n])
            known = rows.only(trained[n])
            used, renamed = _renamed(known, things)
            features = bases[n].features_of(used)
            fitted[n] = fit(features, renamed, k, strength, rng, ITERATIONS, priors)
            asked, renamed = _renamed(rows.only(tested[n]), things)
            parts.append(predicted(fitted[n], bases[n].features_of(asked), renamed))
            places.append(np.flatnonzero(tested[n]))
        joined = Parts(*(np.concatenate([getattr(p, name) for p in parts]) for name in NAMES))
        place = np.concatenate(places)
        return _Held(place, joined, rows.label[place], fitted)

    default = held_out(path[0], bases)
    best, strength, gain, error = default, path[0], 0.0, 0.0
    judged = [group[rows.first[default.rows]]]
    if rows.second is not None and len(np.unique(group)) == things:
        judged.append(group[rows.second[default.rows]])
    leader, worse = float(default.loss().mean()), 0
    for weaker in path[1:]:
        found = held_out(weaker, bases)
        mean, spread = gained(default.loss() - found.loss(), judged)
        loss = float(found.loss().mean())
        worse = 0 if loss < leader else worse + 1
        leader = min(leader, loss)
        if mean > ERRORS * spread and mean > gain:
            best, strength, gain, error = found, weaker, mean, spread
        if worse == PATIENCE:
            break
    rounds = 0
    for number in range(1, ROUNDS + 1):
        bases = {n: bases[n].sharpened(best.fitted[n]) for n in kept}
        found = held_out(strength, bases)
        mean, spread = gained(best.loss() - found.loss(), judged)
        if not mean > ERRORS * spread:
            break
        best, rounds = found, number
    return Choice(strength, *scales(best.parts, best.label), gain, error, rounds)


NAMES = ("ready", "shared", "own")


def gained(values: Array, judged: Sequence[Numbers]) -> tuple[float, float]:
    """Return the mean of values (n,) and its standard error, whose sample are the things that were
    judged: one or two for each value, (n,) each.

    Values that share a thing vary together. Of two things the products of values that share both
    would be counted twice (a dyadic cluster-robust variance).
    """
    mean = float(values.mean())
    used = len(np.unique(np.concatenate(judged)))
    if used < 2:
        return mean, np.inf
    sharing = Sharing.of(judged[0], judged[1] if len(judged) > 1 else None)
    variance = max(sharing.products((values - mean) / len(values)), 0.0)
    return mean, float(np.sqrt(variance * used / (used - 1)))


def scales(parts: Parts, label: Array) -> tuple[float, float]:
    """Return by how much S and the deviations count, each from 0 to 1, at the best likelihood of
    answers to things left out: 0 and 0 leave the user's mean, 0 for the second one taste."""

    from scipy.optimize import minimize  # a third of a second, which those who read heads save

    def value_and_slope(numbers: Array) -> tuple[float, Array]:
        margin = parts.ready + numbers[0] * parts.shared + numbers[1] * parts.own
        off = (expit(margin) - label) / len(label)
        slope = np.array([off @ parts.shared, off @ parts.own])
        return float(_loss(margin, label).mean()), slope

    found = minimize(
        value_and_slope, np.ones(2), jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * 2
    )
    return float(found.x[0]), float(found.x[1])


def groups_of(rows: Judgements, things: int) -> Numbers:
    """Return the group of each thing, (T,): things that comparisons join, unless that is most of
    them."""
    if rows.second is not None:
        edges = coo_array((np.ones(len(rows)), (rows.first, rows.second)), (things, things))
        found: Numbers = connected_components(edges, directed=False)[1].astype(np.int64)
        if np.bincount(found).max() <= LARGEST_PART * things:
            return found
    return np.arange(things)


def dealt(group: Numbers, seed: int) -> Numbers:
    """Return the fold of each thing; folds have equally many groups."""
    count = int(group.max()) + 1
    fold = np.empty(count, np.int64)
    fold[np.random.default_rng([seed, FOLDS]).permutation(count)] = np.arange(count) % FOLDS
    found: Numbers = fold[group]
    return found


def _within(rows: Judgements, chosen: np.ndarray) -> np.ndarray:
    """Return which answers are about chosen things alone, (n,)."""
    inside: np.ndarray = chosen[rows.first]
    return inside if rows.second is None else inside & chosen[rows.second]


def _things(rows: Judgements) -> Numbers:
    return rows.first if rows.second is None else np.concatenate([rows.first, rows.second])


def _renamed(rows: Judgements, things: int) -> tuple[Numbers, Judgements]:
    """Return the things that answers are about, and the answers with things numbered by those."""
    used = np.unique(_things(rows))
    number = np.full(things, -1)
    number[used] = np.arange(len(used))
    second = None if rows.second is None else number[rows.second]
    return used, Judgements(number[rows.first], second, rows.user, rows.label, rows.users)


def _loss(margin: Array, label: Array) -> Array:
    found: Array = np.logaddexp(0.0, margin) - label * margin
    return found
