"""What the machine offers training: a device, and the arithmetic that it is fast at."""

from __future__ import annotations

from pal import probe
from pal.errors import TrainError
from pal.train.heads.arithmetic import Precision


def choose_device(name: str) -> str:
    """Return ``name``, or for ``auto`` the GPU if there is one; raises TrainError for a device that
    this machine has not."""
    return probe.device_of(name, "train.device", TrainError)


def quickest(device: str) -> Precision:
    """Return the arithmetic for ``train.precision`` auto on a device by its setting, ``auto``
    included; raises TrainError as ``choose_device`` does."""
    return probe.quickest(choose_device(device))
