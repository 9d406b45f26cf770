"""Beside every verdict: how much people disagree, and what a majority vote would discard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from pal.audit.answers import Answers
from pal.audit.nulls import Population
from pal.train.heads.consensus import OF_ONE
from pal.train.sharing import Array, Numbers

CARELESS, NOTHING = 0.5, 2.0
"""reliability of a careless user at most, as a share of the median user's, and nats by which any
taste, shared or own, tells all the answers of one better than the own mean does"""


class Voices(NamedTuple):
    """What each person says of each pair, (c,), once: the mean where somebody was asked again."""

    label: Array
    row: Numbers

    @classmethod
    def of(cls, answers: Answers) -> Voices:
        cells, where = np.unique(
            answers.rows[1] * answers.users + answers.user, return_inverse=True
        )
        label = np.bincount(where, answers.label) / np.bincount(where)
        return cls(label, cells // answers.users)


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
    """Return the chance that two people differ about the same pair; ties are half a difference.
    None where no two people judged the same."""
    label, row = Voices.of(answers)
    count = np.bincount(row)
    pairs = float((count * (count - 1.0)).sum())
    # each pair of people once, ordered by what they say: sum_i (2 i - c + 1) y_(i) of each row
    order = np.lexsort((label, row))
    start = np.cumsum(count) - count
    rank = np.arange(len(row)) - start[row[order]]
    apart = float(((2.0 * rank - count[row[order]] + 1.0) * label[order]).sum())
    return 2.0 * apart / pairs if pairs else None


def krippendorff_alpha(answers: Answers) -> float | None:
    """Return Krippendorff's alpha of the labels on a scale from 0 to 1 (interval metric): 1 all
    agree, 0 as by chance. None where no two people judged the same, or all answers are the
    same."""
    label, row = Voices.of(answers)
    used = np.bincount(row)[row] > 1
    if not used.any():
        return None
    label, row = label[used], np.unique(row[used], return_inverse=True)[1]
    n, count, total = len(label), np.bincount(row), np.bincount(row, label)
    squares = np.bincount(row, np.square(label))
    observed = float((2.0 * (count * squares - total**2) / (count - 1.0)).sum() / n)
    expected = 2.0 * float(n * np.square(label).sum() - label.sum() ** 2) / (n * (n - 1.0))
    return None if expected == 0.0 else 1.0 - observed / expected


def majority_labels(answers: Answers, expected: Array | None) -> Array:
    """Return each answer's label if its pair had one for all: the majority's, a tie where there is
    none; where one person judged a pair, what one taste prefers there, of margins ``expected``
    (R,)."""
    said, row = Voices.of(answers)
    count = np.bincount(row)
    found = 0.5 + 0.5 * np.sign(np.round(np.bincount(row, said) / count - 0.5, 9))
    if expected is not None:
        found = np.where(count > 1, found, (expected > 0).astype(float))
    label: Array = found[answers.rows[1]]
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
