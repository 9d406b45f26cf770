"""Products in the arithmetic of their weights, so that training may round those of its steps.

In ``bfloat16`` both factors of a product have 8 bits; sums within it, the weights that are learned,
users, distances and losses are float32. ``rounded`` makes the copies of weights that a training
step reads. Nothing else ever sees them: validation, evaluation, adaptation, exports and scores are
float32 whatever a head was trained in, so that a head says the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]
SMALLEST = 64
"""matrices with a shorter side are left as they are: rounding costs more than it saves"""


class Multiplying(nn.Module):
    """A module whose products are in the arithmetic of its weights, whatever it is given; what it
    returns is of the type that it was given."""


class Linear(nn.Linear, Multiplying):
    """torch's."""

    def forward(self, x_BD: Tensor) -> Tensor:
        dtype = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return nn.functional.linear(x_BD.to(dtype), self.weight, bias).to(x_BD.dtype)


def matrices(head: nn.Module) -> list[str]:
    """Return the names of the weights that may be rounded."""
    return [
        f"{place}.{name}"
        for place, module in head.named_modules()
        if isinstance(module, Multiplying)
        for name, weight in module.named_parameters()
        if weight.dim() > 1 and name.startswith("weight") and min(weight.shape[-2:]) >= SMALLEST
    ]


def rounded(parameters: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Return copies of weights as a training step reads them, by name; derivatives go on to the
    weights themselves."""
    found = {name: parameters[name] for name in names}
    return {
        name: value.to(torch.bfloat16) if value.dtype == torch.float32 else value
        for name, value in found.items()
    }
