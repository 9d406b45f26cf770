"""Numbers that a head begins with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def drawn(rows: int, columns: int, then: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Draw numbers of N(0, 1), (rows, columns), those of ``torch.randn``, and return them or what
    ``then`` makes of them, in the same shape.

    On the device ``meta``, where a head has shapes alone, nothing is computed: the first operation
    there imports sympy or torch's compiler, up to a second.
    """
    empty = torch.empty(rows, columns)
    if empty.is_meta:
        return empty
    return empty.normal_() if then is None else then(empty.normal_())


def directions(count: int, dim: int) -> Tensor:
    """Draw vectors of length 1, (count, dim)."""
    return drawn(count, dim, lambda way_KD: nn.functional.normalize(way_KD, dim=1))
