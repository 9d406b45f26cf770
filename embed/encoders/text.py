"""Text encoders from transformers: base model, any layers, pooling that minds the padding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pal.embed.batching import equal_length_batches, token_budget_batches
from pal.embed.chat import RefusedByTemplate
from pal.embed.encoder import Batch, Encoder, EncoderSource, Inputs, require_modality
from pal.embed.encoders.mixed import MIXED, mix, weight_dtype
from pal.embed.encoders.padding import changes_values, to_right
from pal.embed.encoders.pretrained import Loaded, load_text, require_own_weights
from pal.embed.encoders.taps import Taps
from pal.embed.odd import Failure, Failures, failure_of
from pal.embed.peak import flops_per_token
from pal.embed.render import Rendered, Renderer, Tokens
from pal.errors import EncoderError
from pal.items import Item, Text, is_unicode

PROBE = ("Yes.", "Nobody agrees about everything, and most people about something.")
"""texts of two lengths, which show what padding does to a model"""


class TextEncoder(Encoder):
    """A frozen base model (no language-model head) with its tokenizer and pooling."""

    def __init__(
        self,
        loaded: Loaded,
        source: EncoderSource,
        device: str,
        token_budget: int,
        layers: Sequence[int] = (),
        compiled: bool = False,
    ) -> None:
        """``layers`` are the taps, in this order; none means the encoder's own."""
        config, model, tokenizer = source.config, loaded.model, loaded.tokenizer
        self.name = source.name
        self.config = config
        self.token_budget = token_budget
        self.renderer = Renderer(source.name, tokenizer, config)
        if not loaded.is_placed:
            model = model.to(device=device, dtype=weight_dtype(config.compute_dtype))
        self.model = model.eval().requires_grad_(False)
        self.device = torch.device(model.device if loaded.is_placed else device)
        if config.compute_dtype == MIXED:
            mix(self.model, self.device)
        self.dense = [layer.to(self.device) for layer in loaded.dense]
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.accepted = set(inspect.signature(model.forward).parameters)
        self.layers = list(layers) or [config.layer]
        self.forward: Any = self.model
        self.counts_positions = False
        """whether the positions of real tokens are given to the model, which would count padding"""
        self.pads = True
        """whether texts of unequal length may share a batch"""
        probe = self._probe()
        first = self._arguments(*probe[0])
        self.taps = Taps(self.model, self.layers, config.norm, source.name, first)
        require_own_weights(source, loaded, lambda: self._pooled(*probe[0]))
        self._settle_padding(probe)
        if compiled:
            self.forward = torch.compile(self.model, dynamic=True)

    @classmethod
    def load(
        cls,
        source: EncoderSource,
        device: str,
        token_budget: int,
        layers: Sequence[int] = (),
        compiled: bool = False,
    ) -> TextEncoder:
        """Load weights and tokenizer from the located files, or those of the random model."""
        return cls(load_text(source), source, device, token_budget, layers, compiled)

    def _probe(self) -> list[list[torch.Tensor]]:
        """Return two texts as the model reads them, each alone: ids and mask, (1, length)."""
        special = not self.renderer.is_chat
        read = self.renderer.tokenizer(list(PROBE), add_special_tokens=special, verbose=False)
        ids = [torch.tensor([row[: self.config.max_length]]) for row in read["input_ids"]]
        return [
            to_device((row, torch.ones_like(row, dtype=torch.bool)), self.device) for row in ids
        ]

    @torch.inference_mode()
    def _settle_padding(self, probe: list[list[torch.Tensor]]) -> None:
        """Find out whether padding leaves features alone; raises EncoderError where it is wanted
        at the left and does not."""
        side = self.config.padding_side
        alone = [self._pooled(*text) for text in probe]

        def changes() -> bool:
            return changes_values(
                self._pooled, probe, alone, self.pad_id, side, self.config.compute_dtype
            )

        if not changes():
            return
        if side == "right":
            self.pads = False
            return
        if "position_ids" in self.accepted:
            self.counts_positions = True
            if not changes():
                return
        raise EncoderError(
            f"encoder {self.name} gives other features behind padding; set "
            f"embed.{self.name}.padding_side to right"
        )

    def read(self, items: Sequence[Item]) -> Inputs:
        """Render and tokenise texts behind their context."""
        require_modality(self.name, items, Text)
        failures: Failures = {}
        rendered = []
        for row, text in enumerate(item for item in items if isinstance(item, Text)):
            result = self._render(text)
            if isinstance(result, Failure):
                failures[row] = result
            rendered.append(Rendered("", 0) if isinstance(result, Failure) else result)
        tokens, truncated, answers_cut = self.renderer.tokenise(rendered)
        return Inputs(
            np.diff(tokens.starts).astype(np.int32), truncated, tokens, failures, answers_cut
        )

    def _render(self, text: Text) -> Rendered | Failure:
        failure = unreadable(text)
        if failure is not None:
            return failure
        try:
            return self.renderer.render(text)
        except RefusedByTemplate as error:
            return failure_of("tokenize", error)

    def batches(self, inputs: Inputs) -> Iterator[np.ndarray]:
        kept = inputs.kept
        cut = token_budget_batches if self.pads else equal_length_batches
        for rows in cut(inputs.n_tokens[kept], self.token_budget):
            yield kept[rows]

    def stack(self, inputs: Inputs, rows: np.ndarray) -> Batch:
        """Lay token ids out: ids, mask and, where there are several, kinds, (len(rows), longest)
        each."""
        tokens: Tokens = inputs.payload
        lengths = inputs.n_tokens[rows]
        longest = max(1, int(lengths.max()))
        column = np.arange(longest)
        shift = longest - lengths if self.config.padding_side == "left" else np.zeros_like(lengths)
        place = column[None, :] - shift[:, None]
        mask = (place >= 0) & (place < lengths[:, None])
        ids = np.full(mask.shape, self.pad_id, np.int64)
        where = (tokens.starts[rows][:, None] + place)[mask]
        ids[mask] = tokens.ids[where]
        arrays = [ids, mask]
        if tokens.types is not None:
            types = np.zeros(mask.shape, np.int64)
            types[mask] = tokens.types[where]
            arrays.append(types)
        return Batch(rows, tuple(map(torch.from_numpy, arrays)), padded=mask.size)

    def flops(self, inputs: Inputs, rows: np.ndarray) -> float:
        return flops_per_token(self.model) * float(inputs.n_tokens[rows].sum())

    @torch.inference_mode()
    def encode(self, batch: Batch) -> list[torch.Tensor]:
        """Return (n, dim) float32 features of each tap."""
        return self._pooled(*to_device(batch.tensors, self.device))

    def features_of(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of token ids that somebody else padded, on whichever side, (n, dim)
        each; both are (n, length)."""
        ids, mask = to_right(ids, mask.bool(), self.pad_id)
        if self.pads or bool(mask.all()):
            return self._pooled(ids, mask)
        lengths = mask.sum(dim=1).tolist()
        alone = [
            self._pooled(ids[row : row + 1, :length], mask[row : row + 1, :length])
            for row, length in enumerate(lengths)
        ]
        return [torch.cat(tap) for tap in zip(*alone, strict=True)]

    def _pooled(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        states = self._hidden_states(ids, mask, types)
        return [self._finished(pool(states[n], mask, self.config.pooling)) for n in self.layers]

    def _finished(self, feature: torch.Tensor) -> torch.Tensor:
        """Return a pooled state, (n, dim), as the feature that it becomes."""
        for layer in self.dense:
            feature = layer(feature)
        return torch.nn.functional.normalize(feature, dim=1) if self.config.normalize else feature

    def _hidden_states(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
    ) -> dict[int, torch.Tensor]:
        """Return the states of all taps, (n, length, dim) each."""
        states = self.taps.run(self._arguments(ids, mask, types), self.forward)
        for layer, state in states.items():
            if state.shape[:2] != ids.shape:
                raise EncoderError(
                    f"layer {layer} of encoder {self.name} gives no state for each token; use "
                    "layer: -1"
                )
        return states

    def _arguments(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Return what of a batch the model's forward takes."""
        given = {"attention_mask": mask.long(), "use_cache": False, "token_type_ids": types}
        if self.counts_positions:
            given["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        known = {key: v for key, v in given.items() if key in self.accepted and v is not None}
        return {"input_ids": ids, **known}


def unreadable(text: Text) -> Failure | None:
    """Return why a text cannot be read, None where it can."""
    if not all(is_unicode(turn.role + turn.content) for turn in text.turns):
        return Failure(
            "decode",
            "UnicodeDecodeError",
            "the text, or a turn before it, is not UTF-8 or holds half of a surrogate pair",
        )
    if not text.text.strip():
        return Failure("tokenize", "EmptyText", "the text is empty")
    return None


def to_device(tensors: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Copy without waiting where the device allows it."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    return [tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors]


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool (n, length, dim) states over the real tokens, in float32, whatever the padding side."""
    mask = mask.bool()
    everyone = torch.arange(len(hidden), device=hidden.device)
    if pooling == "mean":
        weight = mask.unsqueeze(-1).float()
        mean: torch.Tensor = (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
        return mean
    position = torch.arange(mask.shape[1], device=hidden.device)
    if pooling == "cls":
        first = torch.where(mask, position, mask.shape[1]).amin(dim=1).clamp(max=mask.shape[1] - 1)
        return hidden[everyone, first].float()
    last = torch.where(mask, position, -1).amax(dim=1).clamp(min=0)
    return hidden[everyone, last].float()
