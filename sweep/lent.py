"""Features that the processes of a node have in memory together."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from pal.cache.mapped import Where, stay
from pal.cache.reader import FeatureStore


def lendable(store: FeatureStore, where: Where) -> np.ndarray | None:
    """Return all features of a cache as bytes, (rows, dim * item size) uint8, to be lent; None
    where they stay in its files."""
    return None if stay(store, where) else store.features("cpu").view(torch.uint8).numpy()


class LentFeatures(FeatureStore):
    """A cache whose features were read by somebody else; they are not copied, and only read."""

    def __init__(self, store: FeatureStore, lent: np.ndarray) -> None:
        super().__init__(store.folder, store.manifest)
        self.lent = lent

    def features(self, device: str = "cpu", out: np.ndarray | None = None) -> torch.Tensor:
        """Return all features on a device, (rows, dim) in the dtype of the cache; on the CPU they
        are the lent ones themselves."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")  # nobody writes to features
            values = torch.from_numpy(self.lent)
        return values.view(getattr(torch, self.dtype)).to(device)
