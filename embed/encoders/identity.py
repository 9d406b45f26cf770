"""The encoder of datasets that bring their own features: it checks them and hands them on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pal.embed.encoder import Batch, Inputs, require_modality
from pal.errors import EncoderError
from pal.items import Feature, Item

if TYPE_CHECKING:
    import torch


class IdentityEncoder:
    """Features are float32 vectors of one length that the items hold themselves."""

    def prepare(self, items: Sequence[Item]) -> Inputs:
        require_modality("identity", items, Feature)
        raw = [item.raw for item in items if isinstance(item, Feature)]
        lengths = sorted({len(value) for value in raw})
        if len(lengths) > 1 or (lengths and lengths[0] % 4):
            raise EncoderError(
                f"features must be float32 vectors of one length, found lengths of {lengths} bytes"
            )
        values = np.frombuffer(b"".join(raw), np.float32).reshape(len(raw), -1)
        return Inputs(np.ones(len(raw), np.int32), np.zeros(len(raw), bool), values)

    def batches(self, inputs: Inputs) -> Iterator[np.ndarray]:
        yield np.arange(len(inputs.n_tokens))

    def load_batch(self, inputs: Inputs, rows: np.ndarray) -> Batch:
        import torch

        return Batch(rows, torch.from_numpy(inputs.payload[rows]), padded=len(rows))

    def flops(self, inputs: Inputs, rows: np.ndarray) -> float:
        return 0.0

    def encode(self, batch: Batch) -> list[torch.Tensor]:
        return [batch.tensors]
