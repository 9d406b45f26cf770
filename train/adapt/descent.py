"""Adaptation by gradient steps from a random start, as the released code does it."""

from __future__ import annotations

import math

import torch

from pal.train.adapt.answers import Answers
from pal.train.adapt.map import Adapted
from pal.train.heads.head import Head
from pal.train.loss import logistic

EPOCHS, BATCH, LR = 20, 4, 5e-3


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
    size = head.users.logits.shape[1]
    drawn = torch.randn(answers.users, size, generator=generator)
    logits = drawn.to(answers.label.device).requires_grad_()
    count = torch.bincount(answers.user, minlength=answers.users).clamp(min=1)
    steps = EPOCHS * -(-int(count.max()) // BATCH)
    optimiser = torch.optim.AdamW([logits], lr=LR, weight_decay=0.0)
    best, best_loss = logits.detach().clone(), math.inf
    for step in range(steps if len(answers.label) and size else 0):
        margin = head.prepared_margin(answers.prepared, head.users.soft(logits), answers.user)
        loss = (logistic(margin, answers.label) / count[answers.user]).sum()
        (logits.grad,) = torch.autograd.grad(loss, [logits])
        optimiser.step()
        if judged is not None and (step + 1) % max(1, steps // EPOCHS) == 0:
            with torch.no_grad():
                vectors = head.users.of_logits(logits)
                margin = head.prepared_margin(judged.prepared, vectors, judged.user)
                now = float(logistic(margin, judged.label).mean())
            if now < best_loss:
                best, best_loss = logits.detach().clone(), now
    final = logits.detach() if judged is None else best
    return Adapted(final, head.users.of_logits(final))
