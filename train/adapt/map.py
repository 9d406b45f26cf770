"""A new user from a few answers: everything frozen but the user's own numbers (evaluation.md 3.10).

    omega* = argmin sum_j CE(m_j(omega), y_j) + (1/2)(omega - mu)^T Lambda (omega - mu)

solved for all users at once by damped Gauss-Newton steps in R dimensions each. ``mu`` is where the
seen users' mean code lies, or the mean of the community whose members would have answered most
alike; ``Lambda`` comes from their spread. Shapes: U users, S shots at most, B pairs, R raw numbers,
C communities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pal.train.heads.head import Head, Prepared
from pal.train.heads.users import UserWeights, blocks_of_users, by_user
from pal.train.solve.convex import cross_entropy

STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SPREADS = ("isotropic", "empirical", "community")
STEPS, INNER_STEPS, TOLERANCE, SMALLEST_STEP = 25, 8, 1e-5, 1e-3
SMALLEST_WEIGHT = 1e-6
RELEASED_EPOCHS, RELEASED_BATCH, RELEASED_LR = 20, 4, 5e-3


@dataclass
class Answers:
    """Prepared pairs of new users: ``prepared`` and ``label`` have B rows, ``user`` says whose each
    is (0 .. U-1).

    Rows are put in the order of their users; each user's own keep theirs.
    """

    prepared: Prepared
    label: Tensor
    user: Tensor
    users: int

    def __post_init__(self) -> None:
        if bool((self.user.diff() < 0).any()):
            order = self.user.argsort(stable=True)
            self.prepared = tuple(
                None if value is None else value[order] for value in self.prepared
            )
            self.label, self.user = self.label[order], self.user[order]

    def take(self, rows: Tensor) -> Answers:
        """Return some of the pairs, users numbered as before."""
        chosen = tuple(None if value is None else value[rows] for value in self.prepared)
        return Answers(chosen, self.label[rows], self.user[rows], self.users)


@dataclass(frozen=True)
class Prior:
    """N(mean, precision^-1) over raw numbers; ``mean`` (R,) or, once users are known, (U, R);
    ``precision`` (R, R).

    ``centres`` (C, R) are the means of the seen users' communities: other places to start from,
    since margins of mixed maps are not concave. ``by_community``: each user's prior lies around the
    best of them.
    """

    mean: Tensor
    precision: Tensor
    centres: Tensor
    by_community: bool = False

    def around(self, mean_UR: Tensor) -> Prior:
        return replace(self, mean=mean_UR)


@dataclass
class Adapted:
    """What is known of U users after adaptation."""

    logits: Tensor
    """(U, R)"""
    codes: Tensor
    """(U, R)"""
    covariance: Tensor | None = None
    """(U, R, R) of the raw numbers, by Laplace's approximation"""


def make_prior(head: Head, strength: float, spread: str = "isotropic") -> Prior:
    """Return the empirical prior of a head's seen users.

    The mean is the raw row whose code is the seen users' mean code, so that no answers at all give
    the zero-shot prediction. ``isotropic``: precision is ``strength`` times the identity;
    ``empirical``: ``strength`` times the inverse of the seen users' covariance, shrunk by a tenth
    towards its mean variance;
    ``community``: isotropic around the community that fits a user's answers best, a mixture of
    Gaussians of which each user keeps one.
    """
    logits = centred(head, head.users.logits.detach().float())
    size = logits.shape[1]
    population = head.users.population().detach().float()
    mean = (
        population.clamp(min=SMALLEST_WEIGHT).log()
        if isinstance(head.users, UserWeights)
        else population
    )
    mean = centred(head, mean.unsqueeze(0))[0]
    centres = communities(logits) if isinstance(head.users, UserWeights) else logits[:0]
    if spread != "empirical" or size == 0:
        precision = strength * torch.eye(size, device=logits.device)
        return Prior(mean, precision, centres, by_community=spread == "community")
    covariance = torch.cov(logits.T).reshape(size, size)
    level = (covariance.diagonal().mean()).clamp(min=1e-6)
    shrunk = 0.9 * covariance + 0.1 * level * torch.eye(size, device=logits.device)
    return Prior(mean, strength * torch.linalg.inv(shrunk), centres)


def communities(logits_NR: Tensor) -> Tensor:
    """Return the mean raw numbers of the seen users who lean to the same prototype, one row for
    each that has some."""
    leaning = logits_NR.argmax(dim=1)
    return torch.stack([logits_NR[leaning == k].mean(dim=0) for k in leaning.unique().tolist()])


def centred(head: Head, logits: Tensor) -> Tensor:
    """Remove the constant that a softmax ignores; a weight of zero counts as one in a million."""
    if not isinstance(head.users, UserWeights):
        return logits
    logits = torch.maximum(logits, logits.amax(dim=1, keepdim=True) + math.log(SMALLEST_WEIGHT))
    return logits - logits.mean(dim=1, keepdim=True)


def margins_and_slopes(head: Head, answers: Answers, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return margins (B,) and their derivatives by the own user's raw numbers (B, R)."""
    codes = head.users.soft(logits)
    margin, slope = head.margin_and_slope(answers.prepared, codes, answers.user)
    return margin, head.users.pull_back(codes[answers.user], slope)


@torch.no_grad()
def adapt_map(head: Head, answers: Answers, prior: Prior, with_covariance: bool = False) -> Adapted:
    """Return the maximum a posteriori of all users at once; a user without answers stays at the
    prior's mean.

    Margins are made linear in the codes where a user stands, that problem is solved, and the
    solution is tried on the true margins: a user whom it made worse tries half the way. So the head
    itself is asked a few times only. Users who have arrived are left out of the work as soon as
    they are the majority.
    """
    logits, prior = _start(head, answers, prior)
    if not logits.shape[1]:
        return Adapted(logits, head.users.of_logits(logits))
    whole = prior
    live = torch.arange(answers.users, device=logits.device)
    rest, here = answers, logits
    margin, slope = head.margin_and_slope(rest.prepared, head.users.soft(here), rest.user)
    loss = _objective(rest, prior, here, margin)
    size = torch.ones_like(loss)
    for _ in range(STEPS):
        away = _solve_linear(head, rest, prior, here, margin, slope) - here
        tried = here + size.unsqueeze(1) * away
        new_margin, new_slope = head.margin_and_slope(
            rest.prepared, head.users.soft(tried), rest.user
        )
        new_loss = _objective(rest, prior, tried, new_margin)
        better = new_loss < loss
        arrived = torch.where(better, loss - new_loss < TOLERANCE, size < SMALLEST_STEP)
        arrived |= away.abs().amax(dim=1) < SMALLEST_STEP
        here = torch.where(better.unsqueeze(1), tried, here)
        loss = torch.where(better, new_loss, loss)
        own = better[rest.user]
        margin, slope = (
            torch.where(own, new_margin, margin),
            torch.where(own.unsqueeze(1), new_slope, slope),
        )
        size = torch.where(better, (2.0 * size).clamp(max=1.0), size / 4.0)
        if 2 * int(arrived.sum()) >= len(arrived):
            logits[live] = here
            stay = ~arrived
            if not bool(stay.any()):
                break
            rows = stay[rest.user]
            rest, prior = _only(rest, stay, rows), prior.around(prior.mean[stay])
            live, here, loss, size = live[stay], here[stay], loss[stay], size[stay]
            margin, slope = margin[rows], slope[rows]
    logits[live] = here
    adapted = Adapted(logits, head.users.of_logits(logits))
    if with_covariance:
        margin, raw_slope = margins_and_slopes(head, answers, logits)
        adapted.covariance = torch.linalg.inv(
            _posterior(answers, whole, logits, margin, raw_slope)[1]
        )
    return adapted


def _start(head: Head, answers: Answers, prior: Prior) -> tuple[Tensor, Prior]:
    """Return where each user starts, (U, R), the best of the prior's mean and the communities; and
    its own prior."""
    mean_UR = prior.mean.repeat(answers.users, 1)
    if not len(prior.centres) or not len(answers.label):
        return mean_UR, prior.around(mean_UR)
    starts_CR = torch.cat([prior.mean.unsqueeze(0), prior.centres])
    margins_BC = head.margins_of_each(answers.prepared, head.users.soft(starts_CR))
    misfit_BC = cross_entropy(margins_BC, answers.label.unsqueeze(1))
    fit_UC = misfit_BC.new_zeros(answers.users, len(starts_CR)).index_add_(
        0, answers.user, misfit_BC
    )
    if not prior.by_community:
        away_CR = starts_CR - prior.mean
        fit_UC += 0.5 * ((away_CR @ prior.precision) * away_CR).sum(dim=1)
    start_UR = starts_CR[
        fit_UC.argmin(dim=1)
    ]  # without answers all are equal, and the first, the mean, is taken
    return start_UR, prior.around(start_UR if prior.by_community else mean_UR)


def _solve_linear(
    head: Head, answers: Answers, prior: Prior, logits: Tensor, margin: Tensor, slope: Tensor
) -> Tensor:
    """Return the raw numbers (U, R) that are best if margins were linear in the codes: damped
    Gauss-Newton."""
    start = head.users.soft(logits)[answers.user]

    def linear(raw: Tensor) -> tuple[Tensor, Tensor]:
        code = head.users.soft(raw)[answers.user]
        return margin + (slope * (code - start)).sum(dim=1), head.users.pull_back(code, slope)

    here, (value, own_slope) = logits, linear(logits)
    loss, size = (
        _objective(answers, prior, here, value),
        torch.ones(answers.users, 1, device=logits.device),
    )
    for _ in range(INNER_STEPS):
        gradient, curvature = _posterior(answers, prior, here, value, own_slope)
        step = torch.linalg.solve(curvature, gradient.unsqueeze(2)).squeeze(2)
        tried = here - size * step
        value, own_slope = linear(tried)
        new_loss = _objective(answers, prior, tried, value)
        better = (new_loss < loss).unsqueeze(1)
        gain = (loss - new_loss).max()
        here, loss = torch.where(better, tried, here), torch.minimum(loss, new_loss)
        size = torch.where(better, (2.0 * size).clamp(max=1.0), size / 4.0)
        if bool(better.all()) and float(gain) < TOLERANCE:
            break
        if not bool(better.all()):
            value, own_slope = linear(here)
    return here


def _only(answers: Answers, stay_U: Tensor, rows_B: Tensor) -> Answers:
    """Return the answers of some users, who are numbered anew."""
    number = stay_U.cumsum(0) - 1
    chosen = answers.take(rows_B.nonzero().squeeze(1))
    return Answers(chosen.prepared, chosen.label, number[chosen.user], int(stay_U.sum()))


def _objective(answers: Answers, prior: Prior, logits: Tensor, margin: Tensor) -> Tensor:
    """Return the negative log posterior of each user, (U,)."""
    away = logits - prior.mean
    fit = logits.new_zeros(answers.users).index_add_(
        0, answers.user, cross_entropy(margin, answers.label)
    )
    return fit + 0.5 * ((away @ prior.precision) * away).sum(dim=1)


def _posterior(
    answers: Answers, prior: Prior, logits: Tensor, margin: Tensor, slope_BR: Tensor
) -> tuple[Tensor, Tensor]:
    """Return gradient (U, R) and Gauss-Newton curvature (U, R, R) of the negative log posterior."""
    p = torch.sigmoid(margin)
    gradient = torch.zeros_like(logits).index_add_(
        0, answers.user, (p - answers.label).unsqueeze(1) * slope_BR
    )
    gradient += (logits - prior.mean) @ prior.precision
    curvature = prior.precision.repeat(answers.users, 1, 1)
    weighted_BR = (p * (1.0 - p)).sqrt().unsqueeze(1) * slope_BR
    for users, rows in blocks_of_users(answers.user, answers.users):
        table, _ = by_user(
            weighted_BR[rows], answers.user[rows] - users.start, users.stop - users.start
        )
        curvature[users] += table.mT @ table
    return gradient, curvature


def adapt_sgd(
    head: Head, answers: Answers, seed: int = 0, judged: Answers | None = None
) -> Adapted:
    """Adapt as the released code does: N(0, 1) logits, AdamW at 5e-3 without decay, 20 epochs of
    batches of 4.

    All users step together; each takes as many steps as its batches would, on the mean over its
    answers. ``judged`` reloads the epoch that is best on the very pairs it is judged by, as the
    released code does: for reproduction only.
    """
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(answers.users, head.users.logits.shape[1], generator=generator).to(
        answers.label.device
    )
    logits.requires_grad_()
    count = torch.bincount(answers.user, minlength=answers.users).clamp(min=1)
    steps = RELEASED_EPOCHS * -(-int(count.max()) // RELEASED_BATCH)
    optimiser = torch.optim.AdamW([logits], lr=RELEASED_LR, weight_decay=0.0)
    best, best_loss = logits.detach().clone(), math.inf
    for step in range(steps if len(answers.label) else 0):
        margin = head.prepared_margin(answers.prepared, head.users.soft(logits), answers.user)
        loss = (cross_entropy(margin, answers.label) / count[answers.user]).sum()
        (logits.grad,) = torch.autograd.grad(loss, [logits])
        optimiser.step()
        if judged is not None and (step + 1) % max(1, steps // RELEASED_EPOCHS) == 0:
            with torch.no_grad():
                margin = head.prepared_margin(
                    judged.prepared, head.users.of_logits(logits), judged.user
                )
                now = float(cross_entropy(margin, judged.label).mean())
            if now < best_loss:
                best, best_loss = logits.detach().clone(), now
    final = logits.detach() if judged is None else best
    return Adapted(final, head.users.of_logits(final))


@torch.no_grad()
def tune_prior(head: Head, shots: Answers, judged: Answers) -> Prior:
    """Choose strength and spread by the likelihood of validation users' judged pairs after their
    shots."""
    best: tuple[float, Prior] | None = None
    for spread in SPREADS:
        for strength in STRENGTHS:
            prior = make_prior(head, strength, spread)
            codes = adapt_map(head, shots, prior).codes
            margin = head.prepared_margin(judged.prepared, codes, judged.user)
            loss = float(cross_entropy(margin, judged.label).mean())
            if best is None or loss < best[0]:
                best = (loss, prior)
    assert best is not None
    return best[1]


@torch.no_grad()
def next_questions(head: Head, adapted: Adapted, pool: Answers, asked: Tensor) -> Tensor:
    """Return for each user the row of the pool whose answer tells most: argmax (1/2) ln(1 + s(1-s)
    g^T H^-1 g).

    ``asked`` (B,) bool marks rows that are out of the question; a user with none left gets -1.
    """
    assert adapted.covariance is not None
    margin, slope_BR = margins_and_slopes(head, pool, adapted.logits)
    p = torch.sigmoid(margin)
    variance = torch.einsum("br,brs,bs->b", slope_BR, adapted.covariance[pool.user], slope_BR)
    gain = torch.where(asked, -torch.inf, 0.5 * torch.log1p(p * (1.0 - p) * variance))
    highest = gain.new_full((pool.users,), -torch.inf).scatter_reduce_(0, pool.user, gain, "amax")
    rows = torch.full((pool.users,), -1, dtype=torch.long, device=gain.device)
    is_best = (gain == highest[pool.user]) & torch.isfinite(gain)
    where = is_best.nonzero().squeeze(1).flip(0)  # the first of equals is written last
    return rows.index_put_((pool.user[where],), where)


def probability(margin: Tensor, slope_BR: Tensor, covariance_BRR: Tensor) -> Tensor:
    """Return P(first) averaged over the uncertainty of the user's numbers: sigma(z / sqrt(1 + pi
    var / 8))."""
    variance = torch.einsum("br,brs,bs->b", slope_BR, covariance_BRR, slope_BR)
    return torch.sigmoid(margin / torch.sqrt(1.0 + torch.pi * variance / 8.0))


def ask_in_turn(head: Head, pool: Answers, prior: Prior, most: int) -> Tensor:
    """Return (most, U) rows of the pool: what to ask each user, one answer after another; -1 where
    none is left."""
    asked = torch.zeros(len(pool.label), dtype=torch.bool, device=pool.label.device)
    order = []
    for _ in range(most):
        adapted = adapt_map(
            head, pool.take(asked.nonzero().squeeze(1)), prior, with_covariance=True
        )
        rows = next_questions(head, adapted, pool, asked)
        asked[rows[rows >= 0]] = True
        order.append(rows)
    return torch.stack(order) if order else torch.empty(0, pool.users, dtype=torch.long)
