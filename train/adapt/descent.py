"""Adaptation by gradient steps from a random start, as the released code does it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pal.train.adapt.answers import Answers
from pal.train.adapt.map import Adapted, margins_and_slopes
from pal.train.heads.head import Head
from pal.train.loss import LOSSES, Loss
from pal.train.row_adam import RowAdam

EPOCHS, BATCH, LR = 20, 4, 5e-3


@torch.no_grad()
def adapt_sgd(
    head: Head,
    answers: Answers,
    seed: int = 0,
    judged: Answers | None = None,
    loss: str = "logistic",
) -> Adapted:
    """Adapt as the released code does: N(0, 1) logits, Adam at 5e-3, 20 epochs of batches of 4.

    A batch mixes users, and each user in it makes a step of its own: some 20 m of them for m
    answers. ``judged`` reloads the epoch that is best on the very pairs it is judged by, as the
    released code does: for reproduction only. ``loss`` is that of training, as there.
    """
    generator = torch.Generator().manual_seed(seed)
    size = head.users.logits.shape[1]
    drawn = torch.randn(answers.users, size, generator=generator)
    logits = drawn.to(answers.label)
    best, best_loss = logits.clone(), math.inf
    adam = RowAdam(logits)
    for _ in range(EPOCHS if len(answers.label) and size else 0):
        for rows, share in steps_of_epoch(answers.user, generator):
            some = answers.take(rows)
            margin, slope_BR = margins_and_slopes(head, some, logits)
            pull_BR = (share * slope_of(LOSSES[loss], margin, some.label)).unsqueeze(1) * slope_BR
            gradient = torch.zeros_like(logits).index_add_(0, some.user, pull_BR)
            present = torch.zeros(answers.users, dtype=torch.bool, device=logits.device)
            present[some.user] = True
            adam.step(gradient, present, LR)
        if judged is not None:
            vectors = head.users.of_logits(logits)
            margin = head.prepared_margin(judged.prepared, vectors, judged.user)
            now = float(LOSSES[loss](margin, judged.label).mean())
            if now < best_loss:
                best, best_loss = logits.clone(), now
    final = logits if judged is None else best
    return Adapted(final, head.users.of_logits(final))


def slope_of(loss: Loss, margin: Tensor, label: Tensor) -> Tensor:
    """Return the derivative of each pair's loss by its margin, (B,)."""
    with torch.enable_grad():
        own = margin.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(own, label).sum(), own)
    return slope


def steps_of_epoch(user_B: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows that can make one step together, and each one's share in the mean of its batch: of
    every user the next batch that has some of the user's answers.

    With the head frozen a user's step depends on the own answers alone, so the steps of different
    users may be made at once whatever the batch is: an epoch takes as many turns as the busiest
    user has batches.
    """
    order = torch.randperm(len(user_B), generator=generator)
    batch_B = torch.empty_like(order)
    batch_B[order] = torch.arange(len(order)) // BATCH
    share_B = (1.0 / torch.bincount(batch_B))[batch_B]
    owners, place_B = user_B.cpu().unique(return_inverse=True)
    groups, group_B = torch.stack([place_B, batch_B], dim=1).unique(dim=0, return_inverse=True)
    first_group = torch.searchsorted(groups[:, 0].contiguous(), torch.arange(len(owners)))
    turn_B = group_B - first_group[place_B]
    rows_B = turn_B.argsort(stable=True)  # by user within a turn, as before
    for rows in rows_B.split(torch.bincount(turn_B).tolist()):
        yield rows.to(user_B.device), share_B[rows].to(user_B.device)
