"""Features of what was encoded lately: the same answers asked for another user cost no encoding."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

RECENT_BYTES = 64 << 20
"""tens of thousands of features of 384 numbers, thousands of 4,096"""
ENTRY_BYTES = 512
"""about what keeping a feature costs beside its numbers"""


class RecentFeatures:
    """Features (dim,) by the ids of their items, as many as fit; the longest unused go first.

    Of one thread at a time: whoever shares it takes turns (live.py)."""

    def __init__(self, most_bytes: int = RECENT_BYTES) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def found(self, ids: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Return those that are kept, which counts as a use."""
        found = {}
        for one in ids:
            feature = self._kept.get(one)
            if feature is not None:
                self._kept.move_to_end(one)
                found[one] = feature
        return found

    def keep(self, features: Mapping[bytes, Tensor]) -> None:
        with torch.inference_mode(False):  # users learn by gradients, and may use it later
            for one, feature in features.items():
                if one not in self._kept:
                    self._kept[one] = feature.clone()  # not the whole batch that it is a row of
                    self.bytes += _size(feature)
        while self.bytes > self.most_bytes:
            _, feature = self._kept.popitem(last=False)
            self.bytes -= _size(feature)


def _size(feature: Tensor) -> int:
    return feature.numel() * feature.element_size() + ENTRY_BYTES
