"""What is predicted of somebody of whom little is known: an average over who it may be.

A head at the mean of all users is a person whom nobody resembles, and too sure of it. So

    P(first) = sum_n pi_n sigma(m_n),    pi_n proportional to the likelihood of the answers under n

over seen users n, each a priori as likely as another: with no answers the mean probability over all
of them. Somebody whom no seen user resembles is a draw from N(mu, Lambda^-1) instead, of whom the
maximum of the posterior is taken, with Laplace's approximation round it. Both descriptions of
people are equally likely before there are answers, and the answers' evidence decides between them.
Shapes: U users, B pairs, R raw numbers, N seen users who stand for all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pal.train.adapt.answers import Answers, rows_of
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
def zero_shot(head: Head, prepared: Prepared) -> Tensor:
    """Return the logit of the mean probability over seen users, (B,)."""
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
def weights_of_seen(head: Head, shots: Answers, adapted: Adapted) -> tuple[Tensor, Tensor]:
    """Return how likely each user is to be like each seen one, if like any, (U, N), and how likely
    to be like any, (U,)."""
    vectors_NR = seen_vectors(head)
    misfit_BN = logistic(
        head.margins_of_each(shots.prepared, vectors_NR).double(), shots.label.double().unsqueeze(1)
    )
    likelihood_UN = misfit_BN.new_zeros(shots.users, len(vectors_NR))
    likelihood_UN.index_add_(0, shots.user, -misfit_BN)
    of_seen_U = torch.logsumexp(likelihood_UN, dim=1) - math.log(len(vectors_NR))
    share_U = torch.sigmoid(of_seen_U - evidence(head, shots, adapted).double())
    # of whom nothing is known is one of the seen users, not half of a prior that nobody tried
    share_U[torch.bincount(shots.user, minlength=shots.users) == 0] = 1.0
    return likelihood_UN.softmax(dim=1), share_U


@torch.no_grad()
def predictive(head: Head, shots: Answers, judged: Answers, adapted: Adapted) -> Tensor:
    """Return the logit of the judged pairs' probabilities after the shots, (B,).

    ``adapted`` is the maximum of the posterior, with its covariance.
    """
    assert adapted.covariance is not None
    vectors_NR = seen_vectors(head)
    pi_UN, share_U = weights_of_seen(head, shots, adapted)
    found = []
    for rows in torch.arange(len(judged.label), device=judged.user.device).split(ROWS_AT_ONCE):
        some = judged.take(rows)
        margin_BN = head.margins_of_each(some.prepared, vectors_NR).double()
        as_seen_B = (pi_UN[some.user] * margin_BN.sigmoid()).sum(dim=1)
        _, slope = margins_and_slopes(head, some, adapted.logits)
        margin = head.prepared_margin(some.prepared, adapted.vectors, some.user)
        as_other_B = probability(margin, slope, adapted.covariance[some.user]).double()
        share_B = share_U[some.user]
        found.append(share_B * as_seen_B + (1.0 - share_B) * as_other_B)
    return _logit(torch.cat(found))


def _logit(p: Tensor) -> Tensor:
    return torch.logit(p, eps=LEAST)
