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

from pal.train.adapt.answers import Answers
from pal.train.adapt.map import Adapted, evidence, margins_and_slopes, probability
from pal.train.adapt.prior import Prior
from pal.train.heads.head import Head, Prepared
from pal.train.loss import logistic

MOST_USERS = 256
"""seen users who stand for all"""
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
    if not head.users.logits.shape[1]:  # all users are the same
        return head.margins_of_each(prepared, seen_vectors(head)[:1])[:, 0]
    margin_BN = head.margins_of_each(prepared, seen_vectors(head))
    return _logit(margin_BN.double().sigmoid().mean(dim=1))


@torch.no_grad()
def predictive(
    head: Head, shots: Answers, judged: Answers, prior: Prior, adapted: Adapted
) -> Tensor:
    """Return the logit of the judged pairs' probabilities after the shots, (B,).

    ``adapted`` is the maximum of the posterior under ``prior``, with its covariance.
    """
    if not len(shots.label) or adapted.covariance is None:
        return zero_shot(head, judged.prepared)
    vectors_NR = seen_vectors(head)
    misfit_BN = logistic(
        head.margins_of_each(shots.prepared, vectors_NR).double(), shots.label.double().unsqueeze(1)
    )
    likelihood_UN = misfit_BN.new_zeros(shots.users, len(vectors_NR))
    likelihood_UN.index_add_(0, shots.user, -misfit_BN)
    of_seen_U = torch.logsumexp(likelihood_UN, dim=1) - math.log(len(vectors_NR))
    of_prior_U = evidence(head, shots, prior, adapted).double()
    share_B = torch.sigmoid(of_seen_U - of_prior_U)[judged.user]
    pi_BN = likelihood_UN.softmax(dim=1)[judged.user]
    margin_BN = head.margins_of_each(judged.prepared, vectors_NR).double()
    as_seen_B = (pi_BN * margin_BN.sigmoid()).sum(dim=1)
    margin, slope = margins_and_slopes(head, judged, adapted.logits)
    as_other_B = probability(margin, slope, adapted.covariance[judged.user]).double()
    return _logit(share_B * as_seen_B + (1.0 - share_B) * as_other_B)


def _logit(p: Tensor) -> Tensor:
    return torch.logit(p, eps=LEAST)
