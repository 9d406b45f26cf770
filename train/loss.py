"""Losses on the margin; ``label`` is P(first preferred), so ties and soft labels need no special
case."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import softplus

Loss = Callable[[Tensor, Tensor], Tensor]


def logistic(margin: Tensor, label: Tensor) -> Tensor:
    """-[y log sigma(m) + (1 - y) log sigma(-m)], one for each margin: the cross-entropy of y."""
    return softplus(margin) - label * margin


def hinge(margin: Tensor, label: Tensor) -> Tensor:
    """max(0, 1 - t m) with t = 2 y - 1 (method.md 1.3); a tie has t = 0 and no gradient."""
    return (1.0 - (2.0 * label - 1.0) * margin).clamp(min=0.0)


def smooth_hinge(margin: Tensor, label: Tensor, width: float) -> Tensor:
    """The hinge with a parabola in place of its corner: (1 - t m)^2 / 2g where 0 < 1 - t m < g, the
    ``width``, and the line 1 - t m - g/2 beyond (method.md 1.7)."""
    short = hinge(margin, label)
    return torch.where(short < width, short.square() / (2.0 * width), short - 0.5 * width)


LOSSES: dict[str, Loss] = {
    "logistic": logistic,
    "hinge": hinge,
    "smooth-hinge-1": partial(smooth_hinge, width=1.0),
    "smooth-hinge-5": partial(smooth_hinge, width=5.0),
}


def weights_of_users(user: Tensor, users: int) -> Tensor:
    """Return 1 / n_u for each of N users, (N,), from whose the training pairs are: a mean with
    these weights counts every user the same, however many pairs each has (``_w`` of the released
    code)."""
    return 1.0 / torch.bincount(user, minlength=users).clamp(min=1).float()
