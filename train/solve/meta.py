"""Training of ``mrm``: users' answers are split at random into those that adapt the user and those
that judge the result."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pal.config import TrainConfig
from pal.errors import TrainError
from pal.train.heads.meta import MetaLearned
from pal.train.loss import logistic
from pal.train.solve.linear import rows_of
from pal.train.solve.problem import Problem
from pal.train.solve.rows import Rows
from pal.train.solve.variational import episodes

TAIL, SOFTNESS, LARGEST_NORM = 0.5, 0.5, 1.0


def solve_meta(head: MetaLearned, problem: Problem, settings: TrainConfig) -> None:
    """Train by AdamW for ``settings.epochs`` epochs; the best one by validation loss is kept."""
    train, val = (rows.float() for rows in rows_of(head, problem))
    learned = head.roles()["maps"]
    optimiser = torch.optim.AdamW(learned, lr=settings.lr, weight_decay=settings.weight_decay)
    best: dict[str, Tensor] = {}
    best_loss = math.inf
    for _ in range(settings.epochs):
        for known, judged in episodes(train.user, problem.users, settings.batch_size):
            after = episode_losses(head, train.some(known), train.some(judged))
            optimiser.zero_grad()
            of_worst_users(after).backward()
            torch.nn.utils.clip_grad_norm_(learned, LARGEST_NORM)
            optimiser.step()
        loss_now = _validate(head, train, val, problem.users)
        if loss_now < best_loss:
            best_loss = loss_now
            best = {name: value.detach().clone() for name, value in head.state_dict().items()}
    if not best:
        raise TrainError("the validation loss was never finite; train with a lower --set train.lr")
    head.load_state_dict(best)


def episode_losses(head: MetaLearned, known: Rows, judged: Rows) -> Tensor:
    """Return the mean loss of each user who is judged, after the steps on what is known of the
    user; nobody else takes a step."""
    basis = head.basis()
    user, number = torch.cat([known.user, judged.user]).unique(return_inverse=True)
    own, asked = number.split([len(known.user), len(judged.user)])
    logits = head.adapt(known.times(basis), known.y, own, len(user))
    margin = (judged.times(basis) * head.users.soft(logits)[asked]).sum(dim=1)
    count = torch.bincount(asked, minlength=len(user))
    total = margin.new_zeros(len(user)).index_add(0, asked, logistic(margin, judged.y))
    return total[count > 0] / count[count > 0]


def of_worst_users(losses_U: Tensor) -> Tensor:
    """Return the mean over users of sigma((L_u - q) / softness) L_u, q the loss that the tail
    exceeds: users who do badly weigh more."""
    least = torch.quantile(losses_U, 1.0 - TAIL)
    return (torch.sigmoid((losses_U - least) / SOFTNESS) * losses_U).mean()


@torch.no_grad()
def _validate(head: MetaLearned, train: Rows, val: Rows, users: int) -> float:
    """Fill the user table from all training answers and return the validation loss under it."""
    basis = head.basis()
    head.users.logits.copy_(head.adapt(train.times(basis), train.y, train.user, users))
    vector = head.users.soft(head.users.logits)[val.user]
    return float(logistic((val.times(basis) * vector).sum(dim=1), val.y).mean())
