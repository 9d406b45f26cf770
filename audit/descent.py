"""L-BFGS for many problems of one shape at once, each with steps of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

HISTORY = 6
PROGRESS = 1e-7
"""relative decrease of a step below which a problem is through"""
ENOUGH = 1e-4
"""share of the promised decrease that a step must bring (Armijo)"""
HALVINGS, SHORTER = 8, 0.4
CROWD = 0.75
"""share of the problems of a batch that must still move, else the others leave it"""

Function = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""from numbers (P, b) of the problems (b,) to values (b,) and slopes (P, b)"""


@dataclass
class _State:
    """Where the problems of a batch are, and their last steps."""

    which: Tensor
    """(b,)"""
    place: Tensor
    value: Tensor
    slope: Tensor
    steps: list[Tensor] = field(default_factory=list)
    turns: list[Tensor] = field(default_factory=list)
    inverses: list[Tensor] = field(default_factory=list)

    def moved(self, place: Tensor, value: Tensor, slope: Tensor) -> None:
        """Go to another place and remember the step."""
        step, turn = place - self.place, slope - self.slope
        product = (step * turn).sum(dim=0)
        inverse = torch.where(product > 1e-12, 1.0 / product.clamp(min=1e-12), 0.0)
        for memory, new in (
            (self.steps, step), (self.turns, turn), (self.inverses, inverse)
        ):  # fmt: skip
            memory.append(new)
            del memory[:-HISTORY]
        self.place, self.value, self.slope = place, value, slope

    def only(self, kept: Tensor) -> _State:
        """Return some of the problems."""
        memories = (
            [one[..., kept] for one in memory] for memory in (self.steps, self.turns, self.inverses)
        )
        return _State(
            self.which[kept], self.place[:, kept], self.value[kept], self.slope[:, kept], *memories
        )

    def direction(self, scale: Tensor) -> Tensor:
        """Return where to go, (P, b): the two-loop recursion (Nocedal 1980)."""
        found = self.slope.clone()
        shares = []
        remembered = list(zip(self.steps, self.turns, self.inverses, strict=True))
        for step, turn, inverse in reversed(remembered):
            share = inverse * (step * found).sum(dim=0)
            shares.append(share)
            found.addcmul_(turn, share, value=-1.0)
        found *= scale
        if remembered:
            _, turn, inverse = remembered[-1]
            curvature = (scale * turn.square()).sum(dim=0)
            size = 1.0 / (inverse * curvature).clamp(min=1e-12)
            found *= torch.where(inverse > 0.0, size.clamp(1e-3, 1e3), 1.0)
        for (step, turn, inverse), share in zip(remembered, reversed(shares), strict=True):
            back = inverse * (turn * found).sum(dim=0)
            found.addcmul_(step, share - back)
        return -found


def minimise(
    function: Function,
    start: Tensor,
    scale: Tensor,
    iterations: int,
    progress: float = PROGRESS,
) -> Tensor:
    """Return where each problem ends, (P, B).

    ``scale`` (P, 1) is a guess of the inverse diagonal of the Hessian, the same for all problems.
    Problems whose steps bring nothing more leave the batch.
    """
    found = start.clone()
    every = torch.arange(start.shape[1])
    state = _State(every, start, *function(start, every))
    moving = torch.ones_like(state.value, dtype=torch.bool)
    for _ in range(iterations):
        before = state.value
        place, value, slope = _stepped(function, state, scale, moving)
        moving = moving & (before - value > progress * before.abs().clamp(min=1.0))
        state.moved(place, value, slope)
        if float(moving.double().mean()) < CROWD:
            found[:, state.which[~moving]] = state.place[:, ~moving]
            if not bool(moving.any()):
                return found
            state, moving = state.only(moving), moving[moving]
    found[:, state.which] = state.place
    return found


def _stepped(
    function: Function, state: _State, scale: Tensor, moving: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places, values and slopes after one step of each problem that moves."""
    direction = state.direction(scale)
    along = (state.slope * direction).sum(dim=0)
    uphill = along >= 0.0
    if bool(uphill.any()):
        steepest = -scale * state.slope
        direction = torch.where(uphill, steepest, direction)
        along = torch.where(uphill, (state.slope * steepest).sum(dim=0), along)
    length = moving.to(state.value.dtype)
    for halving in range(HALVINGS + 1):
        place = torch.addcmul(state.place, direction, length)
        value, slope = function(place, state.which)
        fails = moving & ~(value <= state.value + ENOUGH * length * along)
        if not bool(fails.any()):
            break
        shorter = SHORTER * length if halving < HALVINGS - 1 else torch.zeros_like(length)
        length = torch.where(fails, shorter, length)
    return place, value, slope
