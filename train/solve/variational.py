"""Training of ``vpl``: users' answers are split at random into context, from which the user is
inferred, and targets, which the reward must predict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pal.cache.mapped import Features
from pal.config import TrainConfig
from pal.errors import TrainError
from pal.train.heads.variational import Variational
from pal.train.loss import LOSSES
from pal.train.solve.problem import Problem

if TYPE_CHECKING:
    from pal.train.pairs import Pairs

BETA, LEAST, CYCLES = 3e-6, 0.1, 4
"""weight of the divergence at its largest, its share at the least, and rises from one to the
other"""
PASSES = 3
"""through the answers in an epoch, for many of them are context and not targets"""
TARGETS, LARGEST_CONTEXT = 16, 32


def solve_variational(head: Variational, problem: Problem, settings: TrainConfig) -> None:
    """Train by AdamW for ``settings.epochs`` epochs; the best one by validation loss is kept."""
    networks = head.roles()["maps"]
    optimiser = torch.optim.AdamW(networks, lr=settings.lr, weight_decay=settings.weight_decay)
    best: dict[str, Tensor] = {}
    best_loss = math.inf
    for epoch in range(settings.epochs):
        phase = (epoch * CYCLES / settings.epochs) % 1.0
        beta = BETA * (LEAST + (1.0 - LEAST) * 0.5 * (1.0 - math.cos(math.pi * phase)))
        for context, target in episodes(problem.train.user, problem.users, settings.batch_size):
            loss = _episode_loss(head, problem, context, target, beta, settings.loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        loss_now = _validate(head, problem, settings.loss)
        if loss_now < best_loss:
            best_loss = loss_now
            best = {name: value.detach().clone() for name, value in head.state_dict().items()}
    if not best:
        raise TrainError("the validation loss was never finite; train with a lower --set train.lr")
    head.load_state_dict(best)


def _episode_loss(
    head: Variational, problem: Problem, context: Tensor, target: Tensor, beta: float, loss: str
) -> Tensor:
    """Return the loss of the target rows after the context rows, with a vector drawn for each
    user."""
    answers = _answers(problem.features, problem.train, context)
    mean, log_variance = head.posterior(*answers, problem.users)
    z = head.draw(mean, log_variance)
    first, second, label, user = _answers(problem.features, problem.train, target)
    margin = head.margin(None, first, second, z[user])
    divergence = -0.5 * (1.0 + log_variance - mean.square() - log_variance.exp()).sum(dim=1)
    return LOSSES[loss](margin, label).mean() + beta * divergence[user].mean()


@torch.no_grad()
def _validate(head: Variational, problem: Problem, loss: str) -> float:
    """Fill the user table from all training answers and return the validation loss under it."""
    everything = slice(None)
    answers = _answers(problem.features, problem.train, everything)
    head.users.logits.copy_(head.posterior(*answers, problem.users)[0])
    first, second, label, user = _answers(problem.features, problem.val, everything)
    margin = head.margin(None, first, second, head.users(user))
    return float(LOSSES[loss](margin, label).mean())


def _answers(
    features: Features, pairs: Pairs, rows: Tensor | slice
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return first and second items' features, labels and users of some pairs."""
    batch = pairs.batch(features, rows)
    return batch.first.float(), batch.second.float(), batch.label, batch.user


def episodes(user_B: Tensor, users: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield context and target rows, disjoint, ``PASSES`` times as many targets an epoch as there
    are answers.

    Each episode takes some users, orders their answers at random, and cuts each order at a random
    place. Numbers are drawn on the CPU, so that every device sees the same episodes.
    """
    device = user_B.device
    at_once = max(1, min(users, batch_size // TARGETS))
    for _ in range(max(1, round(PASSES * len(user_B) / (at_once * TARGETS)))):
        chosen = torch.randperm(users)[:at_once].to(device)
        rows = torch.isin(user_B, chosen).nonzero().squeeze(1)
        rows = rows[torch.rand(len(rows)).argsort().to(device)]
        owner = user_B[rows]
        order = owner.argsort(stable=True)
        count = torch.bincount(owner, minlength=users)
        earlier = count.cumsum(0) - count
        place = torch.empty_like(order)
        place[order] = torch.arange(len(rows), device=device) - earlier[owner[order]]
        share = torch.rand(users).to(device)
        context = (share * count.clamp(max=2 * LARGEST_CONTEXT) / 2.0).long() + 1
        is_context = place < context[owner]
        is_target = ~is_context & (place < (context + TARGETS)[owner])
        if bool(is_target.any()):  # none where every chosen user has a single answer
            yield rows[is_context], rows[is_target]
