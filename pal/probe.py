"""What the machine offers: its devices, and the arithmetic that one is fast at, asked once a
process by a short timed product."""

from __future__ import annotations

import os
import time
from functools import lru_cache
from typing import Literal

from pal.errors import PalError

Arithmetic = Literal["float32", "bfloat16"]
SIZE, GPU_SIZE, TRIES = 512, 4096, 5
"""a GPU takes longer to be asked than for a small product"""
GAIN = 1.5
"""how many times as fast a product in bfloat16 must be: machines that have no instructions for it
are slower by far, those that have them are faster by far"""


def device_of(name: str, setting: str, error: type[PalError], all_of_torch: bool = False) -> str:
    """Return ``name``, or for ``auto`` the GPU if there is one; raises ``error``, which names the
    ``setting``, unless this machine has the device.

    Heads are trained on the CPU and on GPUs of CUDA; encoders run on ``all_of_torch`` 's devices.
    """
    import torch

    # so that training gives the same every time; cuBLAS asks for it at a process's first product
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if gpus else "cpu"
    known = ["cpu", *(["cuda"] if gpus else []), *(f"cuda:{number}" for number in range(gpus))]
    if name not in known and not (all_of_torch and _is_there(name)):
        raise error(
            f"{setting} = {name!r}, but this machine offers torch {', '.join(known)}; use one of "
            f"these, or {setting}=auto"
        )
    return name


def _is_there(device: str) -> bool:
    """Say whether torch has a device here, of any kind."""
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError, NotImplementedError):
        return False
    return device != "meta"


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
