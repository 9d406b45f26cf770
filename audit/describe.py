"""Beside every verdict: how much people disagree, and what a majority vote would discard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from pal.audit.answers import Answers
from pal.audit.nulls import Population
from pal.train.heads.consensus import OF_ONE
from pal.train.sharing import Array, Numbers

CARELESS, NOTHING = 0.5, 2.0
"""reliability of a careless user at most, as a share of the median user's, and nats by which any
taste, shared or own, tells all the answers of one better than the own mean does"""


@dataclass(frozen=True)
class Shares:
    """The answers to each row, of all users or of some: (R,)."""

    total: Array
    count: Array

    @classmethod
    def of(cls, answers: Answers, some: np.ndarray | None = None) -> Shares:
        row = answers.rows[1]
        size = int(row.max()) + 1
        weight = np.ones(len(row)) if some is None else some.astype(float)
        total = np.bincount(row, weight * answers.label, size).astype(np.float64)
        return cls(total, np.bincount(row, weight, size).astype(np.float64))

    @property
    def mean(self) -> Array:
        """(R,) NaN where nobody answered."""
        with np.errstate(invalid="ignore"):
            found: Array = self.total / self.count
        return found


def careless_share(population: Population, told: Array) -> float:
    """Return the share of the users who answer at random, as it is to be expected.

    Each counts with the probability of a reliability below half of the median's, unless the plural
    model tells the own answers: one of another taste follows the common one as little. ``told``:
    nats, (N,), of ``Tastes``.
    """
    bound = CARELESS * float(np.median(population.reliability))
    at = float(np.log(np.expm1(bound))) - OF_ONE
    chance = ndtr((at - population.omega) / population.omega_error)
    return float(np.where(told < NOTHING, chance, 0.0).mean())


def disagreement(answers: Answers) -> float | None:
    """Return the chance that two answers of different people to the same pair differ; ties are half
    a difference. None where no pair has two answers."""
    row = answers.rows[1]
    shares = Shares.of(answers)
    several = shares.count > 1
    if not several.any():
        return None
    # |y - y'| of labels 0, 1/2 and 1 is a mean of two indicators
    differ = np.zeros(len(shares.count))
    for bound in (0.0, 0.5):
        above = np.bincount(row, answers.label > bound, len(differ))
        differ += above * (shares.count - above)
    pairs = shares.count * (shares.count - 1.0)
    return float(differ[several].sum() / pairs[several].sum())


def krippendorff_alpha(answers: Answers) -> float | None:
    """Return Krippendorff's alpha of the labels on a scale from 0 to 1 (interval metric): 1 all
    agree, 0 as by chance. None where no pair has two answers, or all answers are the same."""
    row = answers.rows[1]
    shares = Shares.of(answers)
    used = shares.count[row] > 1
    if not used.any():
        return None
    label = answers.label[used]
    squares = np.bincount(row, np.square(answers.label), len(shares.count))
    several = shares.count > 1
    n, t, c = len(label), shares.total[several], shares.count[several]
    observed = float((2.0 * (c * squares[several] - t**2) / (c - 1.0)).sum() / n)
    expected = 2.0 * float(n * np.square(label).sum() - label.sum() ** 2) / (n * (n - 1.0))
    return None if expected == 0.0 else 1.0 - observed / expected


def majority_labels(answers: Answers, expected: Array | None) -> Array:
    """Return each answer's label if its pair had one for all: the majority's, a tie where there is
    none; where a pair was judged once, what one taste prefers there, of margins ``expected``
    (R,)."""
    row = answers.rows[1]
    shares = Shares.of(answers)
    found = 0.5 + 0.5 * np.sign(np.round(shares.mean - 0.5, 9))
    if expected is not None:
        found = np.where(shares.count > 1, found, (expected > 0).astype(float))
    label: Array = found[row]
    return label


@dataclass(frozen=True)
class Overruled:
    """What one label for each pair would discard."""

    answers: float
    """share of the answers that it contradicts"""
    groups: list[float]
    """the same, of each group of users"""
    users: float
    """share of the users of whose answers it contradicts a third or more"""


def overruled(answers: Answers, label: Array, group: Numbers) -> Overruled:
    """Return what labels (n,) that all users share contradict, by groups of users (N,)."""
    lost = np.abs(answers.label - label)
    own = np.bincount(answers.user, lost) / np.bincount(answers.user)
    of_answers = group[answers.user]
    groups = np.bincount(of_answers, lost) / np.bincount(of_answers)
    return Overruled(float(lost.mean()), groups.tolist(), float((own >= 1.0 / 3.0).mean()))
