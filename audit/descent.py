"""L-BFGS for many problems of one shape at once, each with steps of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

HISTORY = 6
PROGRESS = 1e-7
"""relative decrease of a step below which a problem is through"""
ENOUGH = 1e-4
"""share of the promised decrease that a step must bring (Armijo)"""
HALVINGS = 8

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
"""from numbers (P, B) to values (B,) and slopes (P, B)"""


def minimise(
    function: Function,
    start: Tensor,
    scale: Tensor,
    iterations: int,
    progress: float = PROGRESS,
) -> Tensor:
    """Return where each problem ends, (P, B).

    ``scale`` (P, 1) is a guess of the inverse diagonal of the Hessian, the same for all problems.
    A problem whose steps bring nothing more stays where it is until all are through.
    """
    place = start
    value, slope = function(place)
    steps: list[Tensor] = []
    turns: list[Tensor] = []
    inverses: list[Tensor] = []
    moving = torch.ones_like(value, dtype=torch.bool)
    for _ in range(iterations):
        direction = _direction(slope, scale, steps, turns, inverses)
        along = (slope * direction).sum(dim=0)
        uphill = along >= 0.0
        if bool(uphill.any()):
            steepest = -scale * slope
            direction = torch.where(uphill, steepest, direction)
            along = torch.where(uphill, (slope * steepest).sum(dim=0), along)
        length = moving.to(value.dtype)
        for _ in range(HALVINGS):
            after = torch.addcmul(place, direction, length)
            new_value, new_slope = function(after)
            fails = moving & ~(new_value <= value + ENOUGH * length * along)
            if not bool(fails.any()):
                break
            length = torch.where(fails, 0.4 * length, length)
        else:
            length = torch.where(fails, 0.0, length)
            after = torch.addcmul(place, direction, length)
            new_value, new_slope = function(after)
        gained = value - new_value
        moving = moving & (gained > progress * value.abs().clamp(min=1.0))
        if not bool(moving.any()):
            return after
        step, turn = after - place, new_slope - slope
        product = (step * turn).sum(dim=0)
        steps, turns = [*steps[-HISTORY + 1 :], step], [*turns[-HISTORY + 1 :], turn]
        bends = product > 1e-12
        inverses = [
            *inverses[-HISTORY + 1 :],
            torch.where(bends, 1.0 / product.clamp(min=1e-12), 0.0),
        ]
        place, value, slope = after, new_value, new_slope
    return place


def _direction(
    slope: Tensor, scale: Tensor, steps: list[Tensor], turns: list[Tensor], inverses: list[Tensor]
) -> Tensor:
    """Return the direction of L-BFGS, (P, B): the two-loop recursion (Nocedal 1980)."""
    found = slope.clone()
    shares = []
    remembered = list(zip(steps, turns, inverses, strict=True))
    for step, turn, inverse in reversed(remembered):
        share = inverse * (step * found).sum(dim=0)
        shares.append(share)
        found.addcmul_(turn, share, value=-1.0)
    if steps:
        curvature = (scale * turns[-1].square()).sum(dim=0)
        size = 1.0 / (inverses[-1] * curvature).clamp(min=1e-12)
        found *= scale * torch.where(inverses[-1] > 0.0, size.clamp(1e-3, 1e3), 1.0)
    else:
        found *= scale
    for (step, turn, inverse), share in zip(remembered, reversed(shares), strict=True):
        back = inverse * (turn * found).sum(dim=0)
        found.addcmul_(step, share - back)
    return -found
