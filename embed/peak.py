"""How much of a device's matrix rate encoding reaches: operations needed over possible ones."""

from __future__ import annotations

import time
from typing import Any

import torch

SIZE, ROUNDS = 4096, 10


def matrix_rate(device: str, dtype: torch.dtype, size: int = SIZE) -> float:
    """Return the operations per second of a product of square matrices, the best of a few.

    The numbers are random, as those of models are: a GPU multiplies equal ones faster.
    """
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def seconds() -> float:
        began = time.perf_counter()
        _ = left @ right
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    seconds()  # the first product waits for kernels to load
    return 2.0 * size**3 / min(seconds() for _ in range(ROUNDS))


def flops_per_token(module: Any) -> float:
    """Return the operations that a token costs in a module's matrices: twice their weights.

    Tables that are only looked up cost nothing. Attention's own products are left out, so a share
    of the peak made from this is a lower bound, unless layers are left out of the pass, which it
    does not know of.
    """
    looked_up = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    weights = [p for p in module.parameters() if p.ndim >= 2 and id(p) not in looked_up]
    return 2.0 * sum(p.numel() for p in weights)
