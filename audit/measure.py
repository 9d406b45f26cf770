"""What the plural model gains on the dataset itself: nats, points, users, sources."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pal.audit.cross_fit import CrossFit
from pal.audit.power import held_out_crossing
from pal.evaluate.crossed import Estimate
from pal.evaluate.metrics import credit, negative_log_likelihoods
from pal.train.sharing import Array
from pal.train.solve.choose import DEFAULT, ERRORS, PATIENCE, WEAKER
from pal.train.solve.mixture import Strength


class PartGain(NamedTuple):
    """Of the answers that come from one source."""

    answers: int
    users: int
    nats: Estimate | None
    """None where none was held out"""


class Gain(NamedTuple):
    """What held-out answers say."""

    default: Estimate
    """nats at the strength that the null has"""
    strength: Strength
    """chosen: the default, unless a weaker one gains more than two standard errors"""
    nats: Estimate
    """at the chosen strength"""
    points: Estimate
    """of accuracy: hundredths"""
    users_who_gain: float
    parts: list[PartGain]
    """at the default strength"""


def measured(cross_fit: CrossFit) -> Gain:
    """Measure the gain of the plural model on a dataset's own answers."""
    answers, rows = cross_fit.answers, cross_fit.rows
    label, crossing = answers.label[rows], held_out_crossing(cross_fit)
    given = torch.from_numpy(answers.label).float().unsqueeze(1)

    def found(strength: Strength) -> tuple[Array, Array]:
        """Return gains in nats and points of each answer, (m,)."""
        held = cross_fit.held_out(given, strength=strength)
        one, many = (margin[:, 0].double().numpy() for margin in (held.one, held.many))
        losses = (negative_log_likelihoods(margin, label) for margin in (one, many))
        nats = next(losses) - next(losses)
        return nats, 100.0 * (credit(many, label) - credit(one, label))

    first = found(DEFAULT)
    best, strength, leader, worse = first, DEFAULT, float(first[0].mean()), 0
    for weaker in WEAKER:
        other = found(weaker)
        gained = crossing.macro(other[0] - first[0])
        worse = 0 if float(other[0].mean()) > leader else worse + 1
        leader = max(leader, float(other[0].mean()))
        is_clear = gained.value > ERRORS * gained.error
        if is_clear and crossing.macro(other[0]).value > crossing.macro(best[0]).value:
            best, strength = other, weaker
        if worse == PATIENCE:
            break
    return Gain(
        crossing.macro(first[0]), strength, crossing.macro(best[0]), crossing.macro(best[1]),
        float((crossing.user_means(best[0]) > 0).mean()), _parts(cross_fit, first[0]),
    )  # fmt: skip


def _parts(cross_fit: CrossFit, nats: Array) -> list[PartGain]:
    answers = cross_fit.answers
    if answers.part is None:
        return []
    part, found = answers.part[cross_fit.rows], []
    for number in range(len(answers.parts)):
        here = part == number
        count = int((answers.part == number).sum())
        users = len(np.unique(answers.user[cross_fit.rows][here]))
        estimate = None
        if here.any():
            estimate = held_out_crossing(cross_fit, here).macro(nats[here])
        found.append(PartGain(count, users, estimate))
    return found
