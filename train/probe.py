"""What arithmetic the machine is fast at: asked once a process, by a short timed product."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

from pal.train.heads.arithmetic import Precision

SIZE, TRIES = 512, 5
GAIN = 1.5
"""how many times as fast a product in bfloat16 must be: machines that have no instructions for it
are slower by far, those that have them are faster by far"""


@lru_cache(maxsize=8)
def quickest(device: str) -> Precision:
    """Return the arithmetic for ``train.precision`` auto on a device by its setting, ``auto``
    included."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    seconds = {dtype: _seconds(dtype, device) for dtype in (torch.float32, torch.bfloat16)}
    return "bfloat16" if GAIN * seconds[torch.bfloat16] < seconds[torch.float32] else "float32"


def _seconds(dtype: torch.dtype, device: str) -> float:
    """Return the time of one product, the fastest of a few after one that does not count."""
    factor = torch.ones(SIZE, SIZE, dtype=dtype, device=device)
    times = []
    for _ in range(1 + TRIES):
        began = time.perf_counter()
        product = factor @ factor
        float(product[0, 0])  # which a GPU must have finished to say
        times.append(time.perf_counter() - began)
    return min(times[1:])
