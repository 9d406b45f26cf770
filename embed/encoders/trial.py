"""What a loaded text model can take, tried on two texts: padding, and texts end to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pal.embed.encoders import unpadded
from pal.embed.encoders.mixed import product_dtype
from pal.embed.encoders.padding import changes_values, difference, tolerance
from pal.embed.transfer import to_device
from pal.errors import EncoderError

if TYPE_CHECKING:
    from pal.embed.encoders.text import TextEncoder

TEXTS = ("Yes.", "Nobody agrees about everything, and most people about something.")
"""of two lengths, which show what padding does to a model"""


class Trial:
    """Two texts as an encoder reads them, each alone, and what it makes of them."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        special = not encoder.renderer.is_chat
        read = encoder.renderer.tokenizer(list(TEXTS), add_special_tokens=special, verbose=False)
        most = encoder.config.max_length
        ids = [torch.tensor([row[:most]]) for row in read["input_ids"]]
        self.texts = [
            to_device((row, torch.ones_like(row, dtype=torch.bool)), encoder.device) for row in ids
        ]
        """ids and mask of each, (1, length)"""

    @torch.inference_mode()
    def settle(self) -> None:
        """Set how the encoder lays texts out; raises EncoderError where padding is wanted at the
        left and changes features."""
        alone = [self.encoder.pooled(*text) for text in self.texts]
        allowed = self._rounding(alone[-1])
        self._settle_padding(alone, allowed)
        self.encoder.joins = self._can_join(allowed)

    def _rounding(self, alone: list[torch.Tensor]) -> float:
        """Return how much of a difference in features is the arithmetic's own."""
        copies = [part.expand(3, -1) for part in self.texts[-1]]
        both = zip(self.encoder.pooled(*copies), alone, strict=True)
        noise = max(difference(found[:1], wanted) for found, wanted in both)
        blocks = getattr(self.encoder.model.config, "num_hidden_layers", 1)
        return tolerance(self.encoder.config.compute_dtype, blocks, noise)

    def _settle_padding(self, alone: list[list[torch.Tensor]], allowed: float) -> None:
        encoder, side = self.encoder, self.encoder.config.padding_side

        def changes() -> bool:
            return changes_values(encoder.pooled, self.texts, alone, encoder.pad_id, side, allowed)

        if not changes():
            return
        if side == "right":
            encoder.pads = False
            return
        if "position_ids" in encoder.accepted:
            encoder.counts_positions = True
            if not changes():
                return
        raise EncoderError(
            f"encoder {encoder.name} gives other features behind padding; set "
            f"embed.{encoder.name}.padding_side to right"
        )

    def _can_join(self, allowed: float) -> bool:
        """Find out whether texts end to end have the features that each has alone; the model
        computes attention for that from then on."""
        encoder, config = self.encoder, self.encoder.config
        if getattr(encoder.model.config, "_attn_implementation", None) != "sdpa":
            return False
        if not unpadded.can_be(encoder.model, encoder.device, product_dtype(config.compute_dtype)):
            return False
        reach = unpadded.reach_of(encoder.model.config)
        texts = [unpadded.longer_than(reach, ids, config.max_length) for ids, _ in self.texts]
        alone = [encoder.pooled(ids, torch.ones_like(ids, dtype=torch.bool)) for ids in texts]
        unpadded.attend_by_us(encoder.model)
        try:
            together = encoder.pooled_row(unpadded.Row.of(texts))
            wanted = [torch.cat(tap) for tap in zip(*alone, strict=True)]
            worst = max(map(difference, together, wanted))
        except unpadded.REFUSALS:
            worst = float("inf")
        if worst <= allowed:  # which NaN is not
            return True
        unpadded.attend_by_sdpa(encoder.model)
        return False
