"""The encoder of datasets that bring their own features: it checks them and hands them on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pal.embed.encoder import Batch, Encoder, Inputs, require_modality
from pal.embed.odd import Failure, Failures
from pal.errors import EncoderError
from pal.items import Feature, Item

if TYPE_CHECKING:
    import torch


class IdentityEncoder(Encoder):
    """Features are float32 vectors of one length that the items hold themselves."""

    def __init__(self) -> None:
        self.length: int | None = None
        """bytes of a feature: what most features have"""

    def read(self, items: Sequence[Item]) -> Inputs:
        require_modality("identity", items, Feature)
        raw = [item.raw if isinstance(item, Feature) else b"" for item in items]
        if self.length is None:
            whole = Counter(len(value) for value in raw if value and len(value) % 4 == 0)
            if raw and not whole:
                raise EncoderError("none of the features is a float32 vector; correct the dataset")
            self.length = whole.most_common(1)[0][0] if whole else None
        length = self.length or 0
        failures: Failures = {
            row: Failure(
                "decode",
                "WrongLength",
                f"the feature has {len(value)} bytes, but features are vectors of {length // 4} "
                f"float32 numbers, {length} bytes",
            )
            for row, value in enumerate(raw)
            if len(value) != length
        }
        values = b"".join(bytes(length) if row in failures else v for row, v in enumerate(raw))
        features = np.frombuffer(values, np.float32).reshape(len(raw), length // 4)
        return Inputs(np.ones(len(raw), np.int32), np.zeros(len(raw), bool), features, failures)

    def batches(self, inputs: Inputs) -> Iterator[np.ndarray]:
        if len(inputs.kept):
            yield inputs.kept

    def stack(self, inputs: Inputs, rows: np.ndarray) -> Batch:
        import torch

        return Batch(rows, torch.from_numpy(inputs.payload[rows]), padded=len(rows))

    def flops(self, inputs: Inputs, rows: np.ndarray) -> float:
        return 0.0

    def encode(self, batch: Batch) -> list[torch.Tensor]:
        return [batch.tensors]
