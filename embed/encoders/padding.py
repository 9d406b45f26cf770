"""What padding does to a model's features: found out on two texts as the model is loaded.

Models count positions from the margin, from behind it, or not at all; some convolve, or heed no
mask. None of that is listed here: whatever changes values is seen, and then not done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

TOLERANCE = {"float32": 2e-4, "float16": 4e-3, "bfloat16": 3e-2, "mixed": 3e-2}
"""largest difference, relative to the feature's largest value, that rounding in a dtype explains"""
USUAL_BLOCKS = 12
"""of a model that TOLERANCE was measured on; rounding grows as the root of their number"""
TIMES_NOISE, MOST = 4.0, 0.15
"""padding may change that many times what another size of the batch does, at most so much: models
that it disturbs are off by more"""
Features = Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference of features, relative to the largest value of each, both
    (n, dim)."""
    largest = other.abs().amax(dim=1).clamp(min=1e-9)
    return float(((one - other).abs().amax(dim=1) / largest).max())


def tolerance(dtype: str, blocks: int, noise: float) -> float:
    """Return the largest difference that rounding explains in a model of so many blocks.

    ``noise``: the difference that copies of a text in the batch make to it. It is none where every
    size of a batch is computed by the same kernel, and the larger part of what padding seems to do
    to an 8B decoder in bfloat16 on a GPU.
    """
    usual = TOLERANCE[dtype] * max(1.0, blocks / USUAL_BLOCKS) ** 0.5
    return max(usual, min(TIMES_NOISE * noise, MOST))


def changes_values(
    features: Features,
    texts: Sequence[Sequence[torch.Tensor]],
    alone: Sequence[Sequence[torch.Tensor]],
    pad: int,
    side: Literal["left", "right"],
    allowed: float,
) -> bool:
    """Say whether a text's features differ beyond rounding once it shares a batch with a longer.

    ``texts``: ids and mask of each, (1, length); ``alone``: what the model makes of each when
    nothing is said about padding, (1, dim) per tap, as ``features`` gives it of several;
    ``allowed``: the difference that is rounding.
    """
    longest = max(ids.shape[1] for ids, _ in texts)
    together = [
        torch.cat([_padded(text[part], longest, value, side) for text in texts])
        for part, value in ((0, pad), (1, False))
    ]
    if all(ids.shape[1] == longest for ids, _ in texts):
        return False
    try:
        taps = features(together[0], together[1])
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
        return True  # such a batch cannot be computed at all
    worst = 0.0
    for number, tap in enumerate(taps):
        wanted = torch.cat([found[number] for found in alone])
        worst = max(worst, difference(tap, wanted))
    return not worst <= allowed  # NaN is a difference too


def _padded(row: torch.Tensor, longest: int, value: int, side: str) -> torch.Tensor:
    missing = longest - row.shape[1]
    places = (missing, 0) if side == "left" else (0, missing)
    return torch.nn.functional.pad(row, places, value=value)


def to_right(ids: torch.Tensor, mask: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, (n, length), with the real tokens of each row at its start."""
    order = torch.argsort(~mask, dim=1, stable=True)
    real = mask.gather(1, order)
    return ids.gather(1, order).masked_fill(~real, pad), real
