"""The arithmetic that a device is fast at, asked once a process by a short timed product."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Literal

Arithmetic = Literal["float32", "bfloat16"]
SIZE, GPU_SIZE, TRIES = 512, 4096, 5
"""a GPU takes longer to be asked than for a small product"""
GAIN = 1.5
"""how many times as fast a product in bfloat16 must be: machines that have no instructions for it
are slower by far, those that have them are faster by far"""


def quickest(device: str) -> Arithmetic:
    """Return the arithmetic that a device of torch is fast at, e.g. ``cpu`` or ``cuda:1``."""
    return "bfloat16" if gain(device) > GAIN else "float32"


@lru_cache(maxsize=8)
def gain(device: str) -> float:
    """Return how many times as fast as in float32 a product in bfloat16 is."""
    return _seconds("float32", device) / _seconds("bfloat16", device)


def _seconds(dtype: Arithmetic, device: str) -> float:
    """Return the time of one product, the fastest of a few after one that does not count."""
    import torch

    size = SIZE if device == "cpu" else GPU_SIZE
    factor = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    times = []
    for _ in range(1 + TRIES):
        began = time.perf_counter()
        product = factor @ factor
        float(product[0, 0])  # which a GPU must have finished to say
        times.append(time.perf_counter() - began)
    return min(times[1:])
