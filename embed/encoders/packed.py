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

from pal.cache.mapped import memory_of
from pal.embed.encoders.padding import TOLERANCE, difference

MOST = 4 << 30
"""bytes of a model's weights beyond which no second copy of them is made"""
SHARE = 4
"""nor is it where they have more than one part in so many of the machine's memory"""
ROWS = 1024
"""rows of the product that weights are laid out for; others are computed too"""
DTYPES = (torch.float32, torch.bfloat16)


def pack(model: torch.nn.Module, device: torch.device) -> int:
    """Give the linear layers of a loaded model packed weights; returns how many have them.

    Layers keep their own weights for code that reads, moves or changes them. A layer that has no
    packed product here, or another result with it, or a forward pass of somebody else's, stays as
    it is.
    """
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return 0
    layers = [module for module in model.modules() if type(module) is torch.nn.Linear]
    size = sum(layer.weight.nbytes for layer in layers)
    if size > min(MOST, memory_of("cpu") // SHARE) or not torch.backends.mkldnn.is_available():
        return 0
    return sum(map(_pack, layers))


class Packed:
    """Weights as oneDNN lays them out, and what they were made of."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.source, self.version = weight.detach(), weight._version
        """kept, so that no other weights can lie where these did"""
        self.laid_out = torch.ops.mkldnn._reorder_linear_weight(self.source, ROWS)

    def is_of(self, weight: torch.Tensor) -> bool:
        """Say whether these are the weights, unchanged."""
        return weight.data_ptr() == self.source.data_ptr() and weight._version == self.version

    def product(self, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return (..., out) for (..., in), both in the weights' dtype."""
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            input.to(self.source.dtype), self.laid_out, bias, "none", [], ""
        )
        return found


class PackedLinear(torch.nn.Linear):
    """A linear layer that multiplies by packed weights, as long as it is used as an encoder's.

    Elsewhere, where something learns, is exported or is under another autocast, torch computes it.
    """

    tried: torch.dtype
    """in which the product was compared"""
    packed: Packed | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., out) for (..., in)."""
        if not self._is_as_tried(input):
            return super().forward(input)
        packed = self.packed
        if packed is None or not packed.is_of(self.weight):
            packed = self.packed = Packed(self.weight)
        return packed.product(input, self.bias)

    def _is_as_tried(self, input: torch.Tensor) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        weight = self.weight
        if not _can_be_watched(weight):
            return False
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else input.dtype
        return dtype == weight.dtype == self.tried

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        self.packed = None  # the layer is moved or cast
        return super()._apply(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": None}  # such a tensor cannot be copied, nor pickled


@torch.inference_mode()
def _pack(layer: torch.nn.Linear) -> bool:
    """Make a layer one with packed weights; returns whether it is."""
    weight = layer.weight
    if not _can_be_watched(weight) or weight.dtype not in DTYPES or not weight.numel():
        return False
    if "forward" in layer.__dict__:
        return False
    some = weight[:3]
    try:
        packed = Packed(weight)
        wanted = linear(some, weight, layer.bias)
        off = difference(packed.product(some, layer.bias).float(), wanted.float())
    except (AttributeError, RuntimeError):  # another build, another processor
        return False
    if not off <= TOLERANCE[str(weight.dtype).removeprefix("torch.")]:
        return False
    layer.__class__ = PackedLinear
    assert isinstance(layer, PackedLinear)
    layer.tried, layer.packed = weight.dtype, packed
    return True


def _can_be_watched(weight: torch.Tensor) -> bool:
    """Say whether weights are a CPU's, of torch's own kind, and their changes are counted."""
    return type(weight) is torch.nn.Parameter and weight.is_cpu and not weight.is_inference()
