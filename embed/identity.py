"""The encoder of datasets that bring their own features: it checks them and stores them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pal.config import EncoderConfig
from pal.embed.encoder import Inputs, require_modality
from pal.embed.storage import finite_rows, to_stored
from pal.errors import EncoderError


class IdentityEncoder:
    """Features are float32 vectors of one length in the items' ``feature`` column."""

    def __init__(self, config: EncoderConfig) -> None:
        self.store_dtype = config.store_dtype

    def prepare(self, items: Any) -> Inputs:
        require_modality("identity", items.column("modality").to_pylist(), "feature")
        raw = items.column("feature").to_pylist()
        lengths = sorted({len(value) for value in raw})
        if len(lengths) > 1 or (lengths and lengths[0] % 4):
            raise EncoderError(f"features must be float32 vectors of one length, found lengths of {lengths} bytes")
        values = np.frombuffer(b"".join(raw), np.float32).reshape(len(raw), -1)
        return Inputs(np.ones(len(raw), np.int32), np.zeros(len(raw), bool), values)

    def batches(self, inputs: Inputs) -> Iterator[np.ndarray]:
        yield np.arange(len(inputs.n_tokens))

    def encode(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray:
        import torch

        return to_stored(torch.from_numpy(inputs.payload[rows]), self.store_dtype)

    def is_finite(self, stored: np.ndarray) -> np.ndarray:
        return finite_rows(stored, self.store_dtype)
