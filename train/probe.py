"""What the machine offers training: a device, and the arithmetic that it is fast at."""

from __future__ import annotations

import os

import torch

from pal import probe
from pal.errors import TrainError
from pal.train.heads.arithmetic import Precision


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


def quickest(device: str) -> Precision:
    """Return the arithmetic for ``train.precision`` auto on a device by its setting, ``auto``
    included; raises TrainError as ``choose_device`` does."""
    return probe.quickest(choose_device(device))
