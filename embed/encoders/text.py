"""Text encoders from transformers: base model, any layers, pooling that minds the padding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pal.embed.batching import equal_length_batches, joined_batches, token_budget_batches
from pal.embed.chat import RefusedByTemplate
from pal.embed.encoder import Batch, Encoder, EncoderSource, Inputs, require_modality
from pal.embed.encoders import unpadded
from pal.embed.encoders.compiled import compile_blocks
from pal.embed.encoders.mixed import MIXED, mix, weight_dtype
from pal.embed.encoders.packed import pack
from pal.embed.encoders.padding import to_right
from pal.embed.encoders.pooling import pool
from pal.embed.encoders.pretrained import Loaded, load_text, require_own_weights
from pal.embed.encoders.rotary import unchanged_up_to
from pal.embed.encoders.taps import Taps
from pal.embed.encoders.trial import Trial
from pal.embed.odd import Failure, Failures, failure_of, unreadable
from pal.embed.peak import flops_per_token
from pal.embed.render import Rendered, Renderer, Tokens
from pal.embed.transfer import pinned, to_device
from pal.errors import EncoderError
from pal.items import Item, Text


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
        if not compiled:
            pack(self.model, self.device)
        self.dense = [layer.to(self.device) for layer in loaded.dense]
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        self.accepted = set(inspect.signature(model.forward).parameters)
        self.layers = list(layers) or [config.layer]
        self.counts_positions = False
        """whether the positions of real tokens are given to the model, which would count padding"""
        self.pads = True
        """whether texts of unequal length may share a batch"""
        self.joins = False
        """whether texts stand end to end in a batch, without any padding"""
        self.sharing = unchanged_up_to(self.model)
        """up to which length texts of different lengths may share a batch, often infinity"""
        trial = Trial(self)
        first = trial.texts[0]
        self.taps = Taps(self.model, self.layers, config.norm, source.name, self._arguments(*first))
        require_own_weights(source, loaded, lambda: self.pooled(*first))
        trial.settle()
        if compiled:
            compile_blocks(self.model)

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
        n_tokens = np.diff(tokens.starts).astype(np.int32)
        for row in np.flatnonzero(n_tokens == 0).tolist():
            nothing = Failure("tokenize", "EmptyText", "the tokenizer leaves nothing")
            failures.setdefault(row, nothing)
        return Inputs(n_tokens, truncated, tokens, failures, answers_cut)

    @property
    def may_run_at_once(self) -> bool:
        """Not where the model keeps what the longest text of a pass decided."""
        return self.config.max_length <= self.sharing

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
        cut = joined_batches if self.joins else cut
        lengths = inputs.n_tokens[kept]
        alone = lengths > self.sharing
        for some, cut_some in ((alone, equal_length_batches), (~alone, cut)):
            for rows in cut_some(lengths[some], self.token_budget):
                yield kept[some][rows]

    def stack(self, inputs: Inputs, rows: np.ndarray) -> Batch:
        """Lay token ids out: end to end, or as ids, mask and, where there are several, kinds,
        (len(rows), longest) each."""
        tokens: Tokens = inputs.payload
        if self.joins:
            row = unpadded.Row.of_tokens(tokens, rows, self.device)
            return Batch(rows, row, padded=row.ids.numel())
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
        tensors = tuple(pinned(torch.from_numpy(array), self.device) for array in arrays)
        return Batch(rows, tensors, padded=mask.size)

    def flops(self, inputs: Inputs, rows: np.ndarray) -> float:
        return flops_per_token(self.model) * float(inputs.n_tokens[rows].sum())

    @torch.inference_mode()
    def encode(self, batch: Batch) -> list[torch.Tensor]:
        """Return (n, dim) float32 features of each tap."""
        if isinstance(batch.tensors, unpadded.Row):
            return self.pooled_row(batch.tensors.to(self.device))
        return self.pooled(*to_device(batch.tensors, self.device))

    def features_of(self, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of token ids that somebody else padded, on whichever side, (n, dim)
        each; both are (n, length)."""
        ids, mask = to_right(ids, mask.bool(), self.pad_id)
        if self.pads and ids.shape[1] <= self.sharing:  # most models: nothing waits for a device
            return self.pooled(ids, mask)
        lengths = mask.sum(dim=1).tolist()
        longest = max([1, *lengths])
        ids, mask = ids[:, :longest], mask[:, :longest]
        if (self.pads and longest <= self.sharing) or bool(mask.all()):
            return self.pooled(ids, mask)
        alone = [
            self.pooled(ids[row : row + 1, :length], mask[row : row + 1, :length])
            for row, length in enumerate(lengths)
        ]
        return [torch.cat(tap) for tap in zip(*alone, strict=True)]

    def pooled(
        self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Return the features of padded texts, all (n, length), as (n, dim) of each tap."""
        states = self._states(ids, self._arguments(ids, mask, types))
        return [self._finished(pool(states[n], mask, self.config.pooling)) for n in self.layers]

    def pooled_row(self, row: unpadded.Row) -> list[torch.Tensor]:
        """Return the features of texts that stand end to end."""
        arguments = {**self._arguments(row.ids, None, row.types), **row.arguments()}
        with unpadded.end_to_end():
            states = self._states(row.ids, arguments)
        return [self._finished(row.pooled(states[n], self.config.pooling)) for n in self.layers]

    def _finished(self, feature: torch.Tensor) -> torch.Tensor:
        """Return a pooled state, (n, dim), as the feature that it becomes."""
        for layer in self.dense:
            feature = layer(feature)
        return torch.nn.functional.normalize(feature, dim=1) if self.config.normalize else feature

    def _states(self, ids: torch.Tensor, arguments: dict[str, Any]) -> dict[int, torch.Tensor]:
        """Return the states of all taps, (n, length, dim) each."""
        states = self.taps.run(arguments)
        for layer, state in states.items():
            if state.shape[:2] != ids.shape:
                raise EncoderError(
                    f"layer {layer} of encoder {self.name} gives no state for each token; use "
                    "layer: -1"
                )
        return states

    def _arguments(
        self, ids: torch.Tensor, mask: torch.Tensor | None, types: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """Return what of a batch the model's forward takes."""
        given: dict[str, Any] = {"use_cache": False, "token_type_ids": types}
        if mask is not None:
            given["attention_mask"] = mask.long()
        if self.counts_positions and mask is not None:
            given["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        known = {key: v for key, v in given.items() if key in self.accepted and v is not None}
        return {"input_ids": ids, **known}
