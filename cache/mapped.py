"""Features of a cache as a table whose rows are looked up: in memory, or where they lie."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pal.cache.reader import FeatureStore

Where = Literal["auto", "memory", "mapped"]
MEMORY_SHARE = 0.3
"""of the machine's memory that features may take: folds, heads and validation want some too"""
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""files in which Linux says how much of the machine's memory a container or a job may have"""


class MappedFeatures:
    """A table of features that stays in the shards' files: a look-up reads the pages of its rows
    alone, and what was read the system keeps as long as it has memory for it."""

    def __init__(self, store: FeatureStore, device: str = "cpu") -> None:
        """``device``: where rows are wanted."""
        self.store, self.device = store, torch.device(device)
        self.shape = torch.Size((store.rows, store.dim))
        self.dtype: torch.dtype = getattr(torch, store.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return some rows, (n,) int64 -> (n, dim) in the dtype of the cache, on the device."""
        return self.store.gather(rows.cpu().numpy()).to(self.device)

    def cpu(self) -> MappedFeatures:
        return MappedFeatures(self.store)


Features = Tensor | MappedFeatures
"""a table (rows, dim) that has a device and is read by row numbers"""


def features_of(store: FeatureStore, where: Where = "auto", device: str = "cpu") -> Features:
    """Return the features of a cache for a device, in memory or where they lie (``stay``)."""
    return MappedFeatures(store, device) if stay(store, where, device) else store.features(device)


def stay(store: FeatureStore, where: Where = "auto", device: str = "cpu") -> bool:
    """Say whether the features of a cache stay in its files; ``auto``: where they are more than
    ``MEMORY_SHARE`` of the machine's memory (of a GPU's, where that is the device)."""
    if where == "auto":
        size = store.rows * store.dim * getattr(torch, store.dtype).itemsize
        return bool(size > MEMORY_SHARE * memory_of(device))
    return where == "mapped"


def memory_of(device: str) -> int:
    """Return the bytes of memory that a device has; of the machine's as many as we may have."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(torch.device(device)).total_memory
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in LIMITS:
        with suppress(OSError, ValueError):  # not there, or no number: no limit
            found = min(found, int(Path(limit).read_text()))
    return found
