"""Which question to ask a new user next: the one whose answer tells most about the user."""

from __future__ import annotations

import torch
from torch import Tensor

from pal.train.adapt.answers import Answers
from pal.train.adapt.map import Adapted, adapt_map, margins_and_slopes
from pal.train.adapt.prior import Prior
from pal.train.heads.head import Head


@torch.no_grad()
def next_questions(head: Head, adapted: Adapted, pool: Answers, asked: Tensor) -> Tensor:
    """Return for each user the row of the pool whose answer tells most: argmax (1/2) ln(1 + s(1-s)
    g^T H^-1 g).

    ``asked`` (B,) bool marks rows that are out of the question; a user with none left gets -1.
    """
    assert adapted.covariance is not None
    margin, slope_BR = margins_and_slopes(head, pool, adapted.logits)
    p = torch.sigmoid(margin)
    variance = adapted.covariance.variance(slope_BR, pool.user)
    gain = torch.where(asked, -torch.inf, 0.5 * torch.log1p(p * (1.0 - p) * variance))
    highest = gain.new_full((pool.users,), -torch.inf).scatter_reduce_(0, pool.user, gain, "amax")
    rows = torch.full((pool.users,), -1, dtype=torch.long, device=gain.device)
    is_best = (gain == highest[pool.user]) & torch.isfinite(gain)
    where = is_best.nonzero().squeeze(1).flip(0)  # the first of equals is written last
    return rows.index_put_((pool.user[where],), where)


def ask_in_turn(head: Head, pool: Answers, prior: Prior, most: int) -> Tensor:
    """Return (most, U) rows of the pool: what to ask each user, one answer after another; -1 where
    none is left."""
    device = pool.label.device
    asked = torch.zeros(len(pool.label), dtype=torch.bool, device=device)
    order = torch.empty(most, pool.users, dtype=torch.long, device=device)
    for turn in range(most):
        known = pool.take(asked.nonzero().squeeze(1))
        adapted = adapt_map(head, known, prior, with_covariance=True)
        rows = next_questions(head, adapted, pool, asked)
        asked[rows[rows >= 0]] = True
        order[turn] = rows
    return order
