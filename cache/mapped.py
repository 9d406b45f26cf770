"""Features of a cache as a table whose rows are looked up: in memory, or where they lie."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pal.cache.reader import FeatureStore

Where = Literal["auto", "memory", "mapped"]
MEMORY_SHARE = 0.3
"""of the machine's memory that features may take: folds, heads and validation want some too"""


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

    @cached_property
    def whole(self) -> Tensor:
        """All rows at once, for heads that need them all."""
        return self.store.features(str(self.device))


Features = Tensor | MappedFeatures
"""a table (rows, dim) that has a device and is read by row numbers"""


def features_of(store: FeatureStore, where: Where = "auto", device: str = "cpu") -> Features:
    """Return the features of a cache for a device; ``auto``: in memory, unless they are more than
    ``MEMORY_SHARE`` of the machine's (of a GPU's, where that is the device)."""
    if where == "auto":
        size = store.rows * store.dim * getattr(torch, store.dtype).itemsize
        where = "mapped" if size > MEMORY_SHARE * memory_of(device) else "memory"
    return MappedFeatures(store, device) if where == "mapped" else store.features(device)


def whole(features: Features) -> Tensor:
    """Return a table as one tensor."""
    return features if isinstance(features, Tensor) else features.whole


def memory_of(device: str) -> int:
    """Return the bytes of memory that a device has."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(torch.device(device)).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
