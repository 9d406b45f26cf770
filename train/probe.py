"""What the machine offers: a device, and the arithmetic that it is fast at, which is asked once a
process by a short timed product."""

from __future__ import annotations

import os
import time
from functools import lru_cache

import torch

from pal.errors import TrainError
from pal.train.heads.arithmetic import Precision

SIZE, TRIES = 512, 5
GAIN = 1.5
"""how many times as fast a product in bfloat16 must be: machines that have no instructions for it
are slower by far, those that have them are faster by far"""


def choose_device(name: str) -> str:
    """Return ``name``, or for ``auto`` the GPU if there is one; raises TrainError for a device that
    this machine has not."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name not in known:
        raise TrainError(
            f"train.device = {name!r}, but this machine offers torch {', '.join(known)}; use one "
            "of these, or --set train.device=auto"
        )
    if name != "cpu":  # what deterministic training needs on a GPU
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return name


@lru_cache(maxsize=8)
def quickest(device: str) -> Precision:
    """Return the arithmetic for ``train.precision`` auto on a device by its setting, ``auto``
    included; raises TrainError as ``choose_device`` does."""
    device = choose_device(device)
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
