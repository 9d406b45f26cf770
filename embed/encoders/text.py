"""Text encoders from transformers: base model, any layers, pooling that minds the padding."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pal.embed.batching import token_budget_batches
from pal.embed.encoder import Batch, Encoder, EncoderSource, Inputs, require_modality
from pal.embed.odd import Failure, Failures, failure_of
from pal.embed.peak import flops_per_token
from pal.embed.render import RefusedByTemplate, Rendered, Renderer, Tokens
from pal.embed.trust import loading, loading_options
from pal.embed.weights import RANDOM, require_whole
from pal.errors import EncoderError
from pal.items import Item, Text, is_unicode


class _LastLayerReached(Exception):
    """Ends a forward pass at the highest wanted layer; the layers above never run."""


class TextEncoder(Encoder):
    """A frozen base model (no language-model head) with its tokenizer and pooling."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        source: EncoderSource,
        device: str,
        token_budget: int,
        layers: Sequence[int] = (),
        compiled: bool = False,
    ) -> None:
        """``layers`` are the taps, in this order; none means the encoder's own."""
        config = source.config
        self.name = source.name
        self.config = config
        self.device = torch.device(device)
        self.token_budget = token_budget
        self.renderer = Renderer(source.name, tokenizer, config)
        self.model = (
            model.to(device=self.device, dtype=getattr(torch, config.compute_dtype))
            .eval()
            .requires_grad_(False)
        )
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.options = {"use_cache": False} if "use_cache" in accepted else {}
        self.layers = list(layers) or [config.layer]
        self.taps = {layer: tap_of(model, layer, config.norm, source.name) for layer in self.layers}
        self.forward = torch.compile(self.model, dynamic=True) if compiled else self.model

    @classmethod
    def load(
        cls,
        source: EncoderSource,
        device: str,
        token_budget: int,
        layers: Sequence[int] = (),
        compiled: bool = False,
    ) -> TextEncoder:
        """Load weights and tokenizer from the located files, or build the random model."""
        assert source.config.model is not None
        if source.config.model.startswith(RANDOM):
            from pal.embed.encoders.random_models import byte_tokenizer, random_model

            model = random_model(source.config.model.removeprefix(RANDOM))
            return cls(model, byte_tokenizer(), source, device, token_budget, layers, compiled)
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        options = loading_options(source)
        with loading(source):
            tokenizer = AutoTokenizer.from_pretrained(source.folder, **options)
            model, info = AutoModel.from_pretrained(
                source.folder,
                dtype=getattr(torch, source.config.compute_dtype),
                attn_implementation="sdpa",
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
            require_whole(info)
        return cls(model, tokenizer, source, device, token_budget, layers, compiled)

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
        for rows in token_budget_batches(inputs.n_tokens[kept], self.token_budget):
            yield kept[rows]

    def stack(self, inputs: Inputs, rows: np.ndarray) -> Batch:
        """Lay token ids out, both (len(rows), longest): ids and mask."""
        tokens: Tokens = inputs.payload
        lengths = inputs.n_tokens[rows]
        longest = max(1, int(lengths.max()))
        column = np.arange(longest)
        shift = longest - lengths if self.config.padding_side == "left" else np.zeros_like(lengths)
        place = column[None, :] - shift[:, None]
        mask = (place >= 0) & (place < lengths[:, None])
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask] = tokens.ids[(tokens.starts[rows][:, None] + place)[mask]]
        return Batch(rows, (torch.from_numpy(ids), torch.from_numpy(mask)), padded=mask.size)

    def flops(self, inputs: Inputs, rows: np.ndarray) -> float:
        return flops_per_token(self.model) * float(inputs.n_tokens[rows].sum())

    @torch.inference_mode()
    def encode(self, batch: Batch) -> list[torch.Tensor]:
        """Return (n, dim) float32 features of each tap."""
        ids, mask = to_device(batch.tensors, self.device)
        states = self._hidden_states(ids, mask)
        pooled = [pool(states[layer], mask, self.config.pooling) for layer in self.layers]
        return (
            [torch.nn.functional.normalize(p, dim=1) for p in pooled]
            if self.config.normalize
            else pooled
        )

    def _hidden_states(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[int, torch.Tensor]:
        """Return the states of all taps, (n, length, dim) each."""
        arguments: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": mask.long(),
            **self.options,
        }
        if self.takes_positions and self.config.padding_side == "left":
            # else left padding would shift the positions of models that count from the margin
            arguments["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        reached: dict[int, torch.Tensor] = {}
        wanted = {layer: block for layer, block in self.taps.items() if block is not None}
        runs_through = len(wanted) < len(self.taps)
        highest = max(wanted, default=0)

        def keep(layer: int) -> Any:
            def hook(module: Any, args: Any, output: Any) -> None:
                reached[layer] = output[0] if isinstance(output, tuple) else output
                if layer == highest and not runs_through:
                    raise _LastLayerReached

            return hook

        handles = [block.register_forward_hook(keep(layer)) for layer, block in wanted.items()]
        try:
            last = torch.as_tensor(
                (self.model if wanted else self.forward)(**arguments).last_hidden_state
            )
            reached.update((layer, last) for layer, block in self.taps.items() if block is None)
        except _LastLayerReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return reached


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


def to_device(tensors: Any, device: torch.device) -> list[torch.Tensor]:
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


def tap_of(model: Any, layer: int, norm: str | None, name: str) -> Any:
    """Return the block after which a layer is read, None for the model's own last state."""
    if layer == -1 and norm != "pre":
        return None
    blocks = blocks_of(model)
    if -layer > len(blocks):
        raise EncoderError(
            f"encoder {name} has {len(blocks)} blocks, so layer {layer} does not exist"
        )
    return blocks[layer]


def blocks_of(model: Any) -> Any:
    """Return a model's stack of transformer blocks: its longest list of modules.

    Block -1 ends in the states that the final norm reads; ``layer: -2`` is the output of block -2.
    """
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    if not stacks:
        raise EncoderError(
            f"{type(model).__name__} has no stack of blocks; only layer -1 can be read from it"
        )
    return max(stacks, key=len)
