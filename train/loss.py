"""Losses on the margin; ``label`` is P(first preferred), so ties and soft labels need no special
case."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import softplus


def logistic(margin_B: Tensor, label_B: Tensor) -> Tensor:
    """-[y log sigma(m) + (1 - y) log sigma(-m)], (B,): cross-entropy over the two rewards."""
    return softplus(margin_B) - label_B * margin_B


def hinge(margin_B: Tensor, label_B: Tensor) -> Tensor:
    """max(0, 1 - t m) with t = 2 y - 1, (B,) (method.md 1.3); a tie has t = 0 and no gradient."""
    return (1.0 - (2.0 * label_B - 1.0) * margin_B).clamp(min=0.0)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"logistic": logistic, "hinge": hinge}
