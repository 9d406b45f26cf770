"""Losses on the margin; ``label`` is P(first preferred), so ties and soft labels need no special
case."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import softplus


def logistic(margin: Tensor, label: Tensor) -> Tensor:
    """-[y log sigma(m) + (1 - y) log sigma(-m)], one for each margin: the cross-entropy of y."""
    return softplus(margin) - label * margin


def hinge(margin: Tensor, label: Tensor) -> Tensor:
    """max(0, 1 - t m) with t = 2 y - 1 (method.md 1.3); a tie has t = 0 and no gradient."""
    return (1.0 - (2.0 * label - 1.0) * margin).clamp(min=0.0)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"logistic": logistic, "hinge": hinge}
