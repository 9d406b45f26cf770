"""What is predicted of somebody of whom little is known: an average over who it may be.

A head at the mean of all users is a person whom nobody resembles, and too sure of it. So

    P(first) = s sum_n pi_n sigma(m_n) + (1 - s) sigma(m / sqrt(1 + pi var / 8))

The first sum is over seen users n, each a priori as likely as another: pi_n is proportional to the
likelihood of the answers under n. Somebody whom no seen user resembles is a draw from N(mu,
Lambda^-1) instead: m is the margin at the maximum omega* of the posterior, and var = g^T H^-1 g,
g the derivative of the margin there and H the curvature of the posterior (Laplace's approximation,
whose Gauss-Newton curvature is that of margins made linear round omega*, which they are here too;
the average of sigma is the probit one, evaluation.md 3.10). Both descriptions of people are equally
likely before there are answers, and s = 1 / (1 + evidence of the second / evidence of the first).
With no answers s is 1 and all pi_n are alike. Nothing is drawn, so the same answers give the same
probabilities everywhere. Shapes: U users, B pairs, R raw numbers, N seen users who stand for all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pal.train.adapt.answers import Answers, distinct_rows, rows_of
from pal.train.adapt.curvature import Covariance
from pal.train.adapt.map import Adapted, evidence, margins_and_slopes, probability
from pal.train.heads.head import Head, Prepared
from pal.train.loss import logistic

MOST_USERS = 256
"""seen users who stand for all"""
ROWS_AT_ONCE = 4096
LEAST = 1e-12
"""probabilities are kept so far from 0 and 1, where a logit ends"""


def seen_vectors(head: Head) -> Tensor:
    """Return the vectors of seen users, evenly from the table where they are many, (N, R)."""
    logits_NR = head.users.logits.detach()
    count = len(logits_NR)
    if count > MOST_USERS:
        chosen = torch.linspace(0, count - 1, MOST_USERS, device=logits_NR.device).long()
        logits_NR = logits_NR[chosen]
    return head.users.of_logits(logits_NR)


@torch.no_grad()
def zero_shot(head: Head, prepared: Prepared, content_B: Tensor | None = None) -> Tensor:
    """Return the logit of the mean probability over seen users, (B,); ``content_B`` as in
    ``Answers``."""
    once = distinct_rows(content_B)
    if once is not None:
        first, place = once
        return zero_shot(head, rows_of(prepared, first))[place]
    vectors_NR = seen_vectors(head)
    if not vectors_NR.shape[1]:  # all users are the same
        return head.margins_of_each(prepared, vectors_NR[:1])[:, 0]
    count = next(len(value) for value in prepared if value is not None)
    every = torch.arange(count, device=vectors_NR.device)
    found = [
        head.margins_of_each(rows_of(prepared, rows), vectors_NR).double().sigmoid().mean(dim=1)
        for rows in every.split(ROWS_AT_ONCE)
    ]
    return _logit(torch.cat(found))


@torch.no_grad()
def likelihood_of_seen(head: Head, shots: Answers) -> Tensor:
    """Return the log likelihood of each user's answers under each seen user, (U, N) float64."""
    vectors_NR = seen_vectors(head)
    likelihood_UN = torch.zeros(
        shots.users, len(vectors_NR), dtype=torch.float64, device=vectors_NR.device
    )
    for rows in torch.arange(len(shots.label), device=shots.user.device).split(ROWS_AT_ONCE):
        margin_BN = margins_as_seen(head, shots.take(rows), vectors_NR).double()
        misfit_BN = logistic(margin_BN, shots.label[rows].double().unsqueeze(1))
        likelihood_UN.index_add_(0, shots.user[rows], -misfit_BN)
    return likelihood_UN


def margins_as_seen(head: Head, answers: Answers, vectors_NR: Tensor) -> Tensor:
    """Return the margins of all pairs under each seen user, (B, N)."""
    if answers.known is None:
        return answers.margins_of_each(head, vectors_NR)
    return answers.known.margins(head, answers, vectors_NR)


@dataclass(frozen=True)
class Belief:
    """Who each of U users may be after some answers, or none: all that a prediction needs."""

    likeness: Tensor
    """(U, N) pi, in the order of ``seen_vectors``"""
    share: Tensor
    """(U,) s"""
    logits: Tensor
    """(U, R) omega*"""
    covariance: Covariance
    """H^-1"""

    @classmethod
    def of(
        cls, head: Head, shots: Answers, adapted: Adapted, likelihood_UN: Tensor | None = None
    ) -> Belief:
        """Return what answers say of their users; ``adapted`` is the maximum of the posterior of
        the same answers, with its covariance; the likelihood is computed where it is not given."""
        assert adapted.covariance is not None
        if likelihood_UN is None:
            likelihood_UN = likelihood_of_seen(head, shots)
        of_seen_U = torch.logsumexp(likelihood_UN, dim=1) - math.log(likelihood_UN.shape[1])
        share_U = torch.sigmoid(of_seen_U - evidence(head, shots, adapted).double())
        # of whom nothing is known is one of the seen users, not half of a prior that nobody tried
        share_U[torch.bincount(shots.user, minlength=shots.users) == 0] = 1.0
        return cls(likelihood_UN.softmax(dim=1), share_U, adapted.logits, adapted.covariance)

    @torch.no_grad()
    def probability(self, head: Head, pairs: Answers, as_seen_B: Tensor | None = None) -> Tensor:
        """Return P(first preferred) of pairs of these users, (B,) float64; labels are not read.

        ``as_seen_B`` is computed where it is not given.
        """
        if as_seen_B is None:
            as_seen_B = self.as_seen(head, pairs)
        share_B = self.share[pairs.user]
        return share_B * as_seen_B + (1.0 - share_B) * self.as_other(head, pairs)

    @torch.no_grad()
    def as_seen(self, head: Head, pairs: Answers) -> Tensor:
        """Return P(first preferred) if each is like one of the seen users, (B,) float64."""
        vectors_NR = seen_vectors(head)
        found = [self.likeness.new_zeros(0)]
        for rows in torch.arange(len(pairs.label), device=pairs.user.device).split(ROWS_AT_ONCE):
            some = pairs.take(rows)
            margin_BN = margins_as_seen(head, some, vectors_NR).double()
            found.append((self.likeness[some.user] * margin_BN.sigmoid()).sum(dim=1))
        return torch.cat(found)

    @torch.no_grad()
    def as_other(self, head: Head, pairs: Answers) -> Tensor:
        """Return P(first preferred) if each is a draw from the prior, (B,) float64."""
        own_UR = head.users.of_logits(self.logits)
        found = [self.likeness.new_zeros(0)]
        for rows in torch.arange(len(pairs.label), device=pairs.user.device).split(ROWS_AT_ONCE):
            some = pairs.take(rows)
            _, slope_BR = margins_and_slopes(head, some, self.logits)
            margin_B = head.prepared_margin(some.prepared, own_UR, some.user)
            variance_B = self.covariance.variance(slope_BR, some.user)
            found.append(probability(margin_B, variance_B).double())
        return torch.cat(found)


def predictive(head: Head, shots: Answers, judged: Answers, adapted: Adapted) -> Tensor:
    """Return the logit of the judged pairs' probabilities after the shots, (B,) float64.

    ``adapted`` is the maximum of the posterior, with its covariance.
    """
    return _logit(Belief.of(head, shots, adapted).probability(head, judged))


def _logit(p: Tensor) -> Tensor:
    return torch.logit(p, eps=LEAST)
