"""A new user from a few answers: everything frozen but the user's own numbers (evaluation.md 3.10).

    omega* = argmin sum_j CE(m_j(omega), y_j) + (1/2)(omega - mu)^T Lambda (omega - mu)

solved for all users at once by damped Gauss-Newton steps in R dimensions each. ``mu`` is where the
seen users' mean vector lies, or the mean of the community whose members would have answered most
alike; ``Lambda`` comes from their spread. Shapes: U users, S shots at most, B pairs, R raw numbers,
C communities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pal.train.adapt.answers import Answers
from pal.train.adapt.curvature import Covariance, Curvature
from pal.train.adapt.linear import distance_from, is_better, next_size, solve_linear
from pal.train.adapt.prior import Prior
from pal.train.heads.head import Head
from pal.train.loss import logistic

STEPS, TOLERANCE, SMALLEST_STEP = 25, 1e-6, 1e-3
ARRIVED_SHARE = 8
"""users who have arrived are left out of the work as soon as they are one in so many"""


@dataclass
class Adapted:
    """What is known of U users after adaptation."""

    logits: Tensor
    """(U, R)"""
    vectors: Tensor
    """(U, R)"""
    covariance: Covariance | None = None
    """of the raw numbers, by Laplace's approximation"""
    prior: Prior | None = None
    """round each user's own mean, where there is a covariance"""


def margins_and_slopes(head: Head, answers: Answers, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return margins (B,) and their derivatives by the own user's raw numbers (B, R)."""
    vectors = head.users.soft(logits)
    margin, slope = head.margin_and_slope(answers.prepared, vectors, answers.user)
    return margin, head.users.pull_back(vectors[answers.user], slope)


def probability(margin: Tensor, variance_B: Tensor) -> Tensor:
    """Return P(first) averaged over margins of this variance: sigma(m / sqrt(1 + pi var / 8))."""
    return torch.sigmoid(margin / torch.sqrt(1.0 + torch.pi * variance_B / 8.0))


@torch.no_grad()
def adapt_map(head: Head, answers: Answers, prior: Prior, with_covariance: bool = False) -> Adapted:
    """Return the maximum a posteriori of all users at once; a user without answers stays at the
    prior's mean.

    Margins are made linear in the vectors where a user stands, that problem is solved, and the
    solution is tried on the true margins: a user whom it made worse tries half the way. So the head
    itself is asked a few times only. A user who has arrived stays there, whoever else has not, so
    that everybody's numbers are the same alone and among others, to within ``SMALLEST_STEP``; and
    is left out of the work as soon as these are an eighth of those left.
    """
    logits, prior = _start(head, answers, prior)
    logits = logits.clone()  # it is changed in place, the prior mean that it may be is not
    if not logits.shape[1]:
        return Adapted(logits, head.users.of_logits(logits))
    whole = prior
    curvature = Curvature(prior.precision, torch.linalg.inv(prior.precision))
    live = torch.arange(answers.users, device=logits.device)
    rest, here = answers, logits
    margin, slope = head.margin_and_slope(rest.prepared, head.users.soft(here), rest.user)
    loss = _objective(rest, prior, here, margin)
    size = torch.ones_like(loss)
    arrived = torch.zeros_like(loss, dtype=torch.bool)
    for _ in range(STEPS):
        away = solve_linear(head.users, rest, prior, curvature, here, margin, slope) - here
        tried = here + size.unsqueeze(1) * away
        vectors = head.users.soft(tried)
        new_margin, new_slope = head.margin_and_slope(rest.prepared, vectors, rest.user)
        new_loss = _objective(rest, prior, tried, new_margin)
        better = is_better(new_loss, loss) & ~arrived
        arrives = torch.where(better, loss - new_loss < TOLERANCE, size < SMALLEST_STEP)
        arrives |= away.abs().amax(dim=1) < SMALLEST_STEP
        here = torch.where(better.unsqueeze(1), tried, here)
        loss = torch.where(better, new_loss, loss)
        own = better[rest.user]
        margin = torch.where(own, new_margin, margin)
        slope = torch.where(own.unsqueeze(1), new_slope, slope)
        size = next_size(size, better)
        arrived |= arrives
        if ARRIVED_SHARE * int(arrived.sum()) >= len(arrived):
            logits[live] = here
            stay = ~arrived
            if not bool(stay.any()):
                break
            rows = stay[rest.user]
            rest, prior = rest.only(stay), prior.around(prior.mean[stay])
            live, here, loss, size = live[stay], here[stay], loss[stay], size[stay]
            arrived = arrived[stay]
            margin, slope = margin[rows], slope[rows]
    logits[live] = here
    adapted = Adapted(logits, head.users.of_logits(logits))
    if with_covariance:
        margin, raw_slope = margins_and_slopes(head, answers, logits)
        rows_BR = _rows(torch.sigmoid(margin), raw_slope)
        adapted.covariance = curvature.covariance(rows_BR, answers.user, answers.users)
        adapted.prior = whole
    return adapted


def evidence(head: Head, answers: Answers, adapted: Adapted) -> Tensor:
    """Return the log probability of each user's answers under the prior, (U,), by Laplace's
    approximation at the maximum of the posterior: log p(y | omega*) + log N(omega*; mu, Lambda^-1)
    - (1/2) log |H / 2 pi|, H the curvature there; of communities, each a priori as likely as
    another, the one that was taken."""
    prior = adapted.prior
    assert prior is not None
    assert adapted.covariance is not None
    margin, _ = margins_and_slopes(head, answers, adapted.logits)
    objective = _objective(answers, prior, adapted.logits, margin)
    volume = torch.logdet(prior.precision) + adapted.covariance.logdet()
    chosen_from = 1 + len(prior.centres) if prior.by_community else 1
    return 0.5 * volume - objective - math.log(chosen_from)


def _start(head: Head, answers: Answers, prior: Prior) -> tuple[Tensor, Prior]:
    """Return where each user starts, (U, R), the best of the prior's mean and the communities; and
    its own prior."""
    mean_UR = prior.mean.repeat(answers.users, 1)
    if not len(prior.centres) or not len(answers.label):
        return mean_UR, prior.around(mean_UR)
    starts_CR = torch.cat([prior.mean.unsqueeze(0), prior.centres])
    margins_BC = answers.margins_of_each(head, head.users.soft(starts_CR))
    misfit_BC = logistic(margins_BC, answers.label.unsqueeze(1))
    fit_UC = misfit_BC.new_zeros(answers.users, len(starts_CR))
    fit_UC.index_add_(0, answers.user, misfit_BC)
    if not prior.by_community:
        away_CR = starts_CR - prior.mean
        fit_UC += 0.5 * ((away_CR @ prior.precision) * away_CR).sum(dim=1)
    # without answers all are equal, and the first, the mean, is taken
    start_UR = starts_CR[fit_UC.argmin(dim=1)]
    return start_UR, prior.around(start_UR if prior.by_community else mean_UR)


def _objective(answers: Answers, prior: Prior, logits: Tensor, margin: Tensor) -> Tensor:
    """Return the negative log posterior of each user, (U,)."""
    fit = logits.new_zeros(answers.users)
    fit.index_add_(0, answers.user, logistic(margin, answers.label))
    return fit + distance_from(prior, prior.mean, logits)


def _rows(p: Tensor, slope_BR: Tensor) -> Tensor:
    """Return the rows sqrt(p (1 - p)) g whose products the curvature is made of, (B, R)."""
    return (p * (1.0 - p)).sqrt().unsqueeze(1) * slope_BR
