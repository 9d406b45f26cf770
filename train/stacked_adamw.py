"""AdamW for a stack of heads, each with rates and a count of steps of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from pal.train.row_adam import BETAS, EPSILON

BLOCK = 2**17
"""numbers that a CPU goes over at a time, so that they stay in its caches from one operation to the
next"""


class StackedAdamW:
    """AdamW whose learning rate and weight decay differ from head to head (Loshchilov & Hutter
    2019, Alg. 2).

    The arithmetic is torch.optim.AdamW's; only the rates are tensors that broadcast over the stack.
    """

    def __init__(
        self, parameters: dict[str, Tensor], rates: dict[str, Tensor], decays: dict[str, Tensor]
    ) -> None:
        """``parameters``: (M, ...) each; ``rates``, ``decays``: (M,) for each parameter by name."""
        self.parameters = parameters
        self.rates = {n: over(rates[n], p) for n, p in parameters.items()}
        self.shrink = {n: 1.0 - self.rates[n] * over(decays[n], p) for n, p in parameters.items()}
        self.first = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self.second = {n: torch.zeros_like(p) for n, p in parameters.items()}
        # of the rates: there may be no parameter, where a head is nothing but its users' table
        self.steps = torch.zeros(len(next(iter(rates.values()))), dtype=torch.float64)

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor], resting: Tensor | None = None) -> None:
        """Update all parameters in place, but for those of the ``resting`` heads, (M,) bool."""
        if resting is None:
            self._step(gradients)
            return
        states = (self.parameters, self.first, self.second)
        before = [{n: value[resting].clone() for n, value in state.items()} for state in states]
        steps = self.steps[resting.cpu()]
        self._step(gradients)
        for state, kept in zip(states, before, strict=True):
            for name, value in kept.items():
                state[name][resting] = value
        self.steps[resting.cpu()] = steps

    def _step(self, gradients: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in self.parameters.items():
            rate = self.rates[name] / over(1.0 - BETAS[0] ** self.steps, value)
            correct = over((1.0 - BETAS[1] ** self.steps).sqrt(), value)
            of_all = (
                value, gradients[name], self.first[name], self.second[name],
                self.shrink[name], rate, correct,
            )  # fmt: skip
            at_once = max(1, BLOCK // max(1, value[0].numel()))
            if value.device.type != "cpu" or at_once >= len(value):
                _update(*of_all)
                continue
            for some in zip(*(tensor.split(at_once) for tensor in of_all), strict=True):
                _update(*some)

    def keep(self, rows: Tensor) -> None:
        """Go on with some heads of the stack only; the parameters were cut by the caller."""
        self.steps = self.steps[rows.cpu()]
        for state in (self.rates, self.shrink, self.first, self.second):
            for name in state:
                state[name] = state[name][rows]


def _update(
    value: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    shrink: Tensor,
    rate: Tensor,
    correct: Tensor,
) -> None:
    """Make one step of some heads, in place."""
    value.mul_(shrink)
    first.lerp_(gradient, 1.0 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1.0 - BETAS[1])
    root = second.sqrt().div_(correct).add_(EPSILON)
    value.sub_(root.reciprocal_().mul_(first).mul_(rate))


def over(values_M: Tensor, parameter: Tensor) -> Tensor:
    """Return one number per head so that it broadcasts over a stacked parameter."""
    return values_M.to(parameter).view(-1, *[1] * (parameter.dim() - 1))
