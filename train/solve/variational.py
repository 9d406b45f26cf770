"""Training of ``vpl``: users' answers are split at random into context, from which the user is
inferred, and targets, which the reward must predict."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pal.config import TrainConfig
from pal.errors import TrainError
from pal.train.heads.variational import Variational, choices
from pal.train.loss import LOSSES
from pal.train.solve.problem import Problem

if TYPE_CHECKING:
    from pal.train.pairs import Step

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
    pairs = problem.train
    user, known = pairs.user[context].unique(return_inverse=True)
    mean, log_variance = _posterior(head, problem, context, known, len(user))
    z_UH = head.draw(mean, log_variance)
    asked = torch.searchsorted(user, pairs.user[target])  # each has context
    judged = pairs.step(problem.features, target)
    margin = _margins(head, judged, z_UH, asked)
    divergence = -0.5 * (1.0 + log_variance - mean.square() - log_variance.exp()).sum(dim=1)
    return LOSSES[loss](margin, judged.label).mean() + beta * divergence[asked].mean()


@torch.no_grad()
def _validate(head: Variational, problem: Problem, loss: str) -> float:
    """Fill the user table from all training answers and return the validation loss under it."""
    everything = torch.arange(len(problem.train), device=problem.train.user.device)
    mean = _posterior(head, problem, everything, problem.train.user, problem.users)[0]
    decided = problem.train.user[problem.train.label != 0.5]
    silent = torch.bincount(decided, minlength=problem.users) == 0
    if not silent.all():  # who decided nothing is what new people without an answer are
        mean[silent] = mean[~silent].mean(dim=0)
    head.users.logits.copy_(mean)
    judged = problem.val.step(problem.features, slice(None))
    margin = _margins(head, judged, mean, judged.user)
    return float(LOSSES[loss](margin, judged.label).mean())


def _margins(head: Variational, step: Step, vector_UH: Tensor, user_B: Tensor) -> Tensor:
    """Return the margins of a step's comparisons, (B,), each distinct item read once."""
    hidden_TH = head.hidden(step.things.item.values)
    return head.difference(*step.things.both(hidden_TH), head.first.user_part(vector_UH)[user_B])


def _posterior(
    head: Variational, problem: Problem, rows: Tensor, user: Tensor, users: int
) -> tuple[Tensor, Tensor]:
    """Return ``head.posterior`` after some training answers, each distinct one read once."""
    pairs, size = problem.train, len(problem.features)
    own, chosen, rejected = choices(pairs.first[rows], pairs.second[rows], pairs.label[rows])
    distinct, answer = (chosen * size + rejected).unique(return_inverse=True)
    read, against = (
        head.item_scale(problem.features[item].float())
        for item in (distinct // size, distinct % size)
    )
    return head.posterior(read, against, answer, user[own], users)


def episodes(user_B: Tensor, users: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield context and target rows, disjoint, ``PASSES`` times as many targets an epoch as there
    are answers; raises TrainError where nobody has two.

    Each episode takes some users of several answers, orders these at random, and cuts each order at
    a random place: every one of them has context and targets. Numbers are drawn on the CPU, so that
    every device sees the same episodes.
    """
    device = user_B.device
    sorted_B, answers = user_B.argsort(stable=True), torch.bincount(user_B, minlength=users)
    begin = answers.cumsum(0) - answers
    several = (answers > 1).nonzero().squeeze(1)
    if not len(several):
        raise TrainError(
            "vpl and mrm learn to predict some answers of a person from others, and nobody has two "
            "training answers; raise train.pairs_per_user where it is 1, or train another head"
        )
    at_once = max(1, min(len(several), batch_size // TARGETS))
    wanted = PASSES * int(answers[several].sum())
    for _ in range(max(1, round(wanted / (at_once * TARGETS)))):
        chosen = several[torch.randperm(len(several))[:at_once].to(device)]
        own = answers[chosen]
        place = torch.arange(int(own.sum()), device=device)
        place += (begin[chosen] - (own.cumsum(0) - own)).repeat_interleave(own)
        rows = sorted_B[place].sort().values
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
        yield rows[is_context], rows[is_target]
