"""Linear layers on a CPU with their weights laid out once, as the products there want them.

torch multiplies float32 matrices by MKL, and lays bfloat16 weights out anew in every call. oneDNN,
which comes with torch, does both faster with weights that it has laid out itself: on the machine of
benchmarks/results/embed.md 1.2 times as fast in float32, 1.1 times in bfloat16. Sums are of the
same precision, in another order.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch.nn.functional import linear

from pal.embed.encoders.padding import TOLERANCE, difference

MOST = 4 << 30
"""bytes of a model's weights beyond which no second copy of them is made"""
ROWS = 1024
"""rows of the product that weights are laid out for; others are computed too"""
DTYPES = (torch.float32, torch.bfloat16)


def pack(model: torch.nn.Module, device: torch.device) -> int:
    """Give the linear layers of a loaded model packed weights; returns how many have them.

    Layers keep their own weights for code that reads them. A layer that has no packed product
    here, or another result with it, stays as it is.
    """
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    size = sum(layer.weight.nbytes for layer in layers)
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64") or size > MOST:
        return 0
    if not torch.backends.mkldnn.is_available():
        return 0
    return sum(_is_packed(layer) for layer in layers)


@torch.inference_mode()
def _is_packed(layer: torch.nn.Linear) -> bool:
    weight = layer.weight
    if weight.dtype not in DTYPES or weight.device.type != "cpu":
        return False
    some = weight[:3]
    try:
        forward = _Product(layer)
        off = difference(forward(some).float(), linear(some, weight, layer.bias).float())
    except (AttributeError, NotImplementedError, RuntimeError):  # another build, another processor
        return False
    if not off <= TOLERANCE[str(weight.dtype).removeprefix("torch.")]:
        return False
    layer.forward = forward  # type: ignore[method-assign]
    return True


class _Product:
    """The forward pass of a linear layer."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.layer, self.dtype = layer, layer.weight.dtype
        self.packed: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": None}  # such a tensor cannot be copied, nor pickled

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in), in the weights' dtype."""
        weight, bias = self.layer.weight, self.layer.bias
        if not weight.is_cpu or weight.dtype != self.dtype or torch.is_grad_enabled():
            return linear(input, weight, bias)  # moved since, or part of something that learns
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input.to(self.dtype), self.packed, bias, "none", [], ""
        )
        return found
