"""Text encoders from transformers: base model, any layer, pooling that knows where the padding is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pal.embed.batching import token_budget_batches
from pal.embed.encoder import EncoderSource, Inputs, require_modality
from pal.embed.storage import finite_rows, to_stored
from pal.embed.weights import RANDOM
from pal.errors import EncoderError

TOKENISE_AT_ONCE = 4096


@dataclass
class Tokens:
    """Token ids of many texts, end to end: text i is ``ids[starts[i]:starts[i + 1]]``."""

    ids: np.ndarray
    starts: np.ndarray


class _LayerReached(Exception):
    """Ends a forward pass at the wanted layer; the layers above never run."""


class TextEncoder:
    """A frozen base model (no language-model head) with its tokenizer and pooling."""

    def __init__(self, model: Any, tokenizer: Any, source: EncoderSource, device: str, token_budget: int) -> None:
        config = source.config
        self.name = source.name
        self.config = config
        self.device = torch.device(device)
        self.token_budget = token_budget
        self.model = (
            model.to(device=self.device, dtype=getattr(torch, config.compute_dtype)).eval().requires_grad_(False)
        )
        self.tokenizer = tokenizer
        self.tokenizer.truncation_side = config.truncation_side
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.options = {"use_cache": False} if "use_cache" in accepted else {}
        self.block = None if config.layer == -1 else blocks_of(model)[config.layer]

    @classmethod
    def load(cls, source: EncoderSource, device: str, token_budget: int) -> TextEncoder:
        """Load weights and tokenizer from the located files, or build the random model."""
        assert source.config.model is not None
        if source.config.model.startswith(RANDOM):
            from pal.embed.random_models import byte_tokenizer, random_model

            model = random_model(source.config.model.removeprefix(RANDOM))
            return cls(model, byte_tokenizer(), source, device, token_budget)
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        options = {"trust_remote_code": source.config.trust_remote_code, "local_files_only": True}
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.folder, **options)
            model = AutoModel.from_pretrained(
                source.folder, dtype=getattr(torch, source.config.compute_dtype), attn_implementation="sdpa", **options
            )
        except (OSError, ValueError) as error:
            raise EncoderError(f"cannot load encoder {source.name} from {source.folder}: {error}") from error
        return cls(model, tokenizer, source, device, token_budget)

    def prepare(self, items: Any) -> Inputs:
        """Tokenise the ``text`` column."""
        require_modality(self.name, items.column("modality").unique().to_pylist(), "text")
        texts = items.column("text").to_pylist()
        failures = {
            row: ("tokenize", "EmptyText", "the text is empty")
            for row, text in enumerate(texts)
            if not (text or "").strip()
        }
        pieces: list[np.ndarray] = []
        truncated = np.zeros(len(texts), bool)
        for start in range(0, len(texts), TOKENISE_AT_ONCE):
            # the whole text is tokenised, since only then is it known whether anything was cut
            chunk = [text or "" for text in texts[start : start + TOKENISE_AT_ONCE]]
            batch = self.tokenizer(chunk, add_special_tokens=True, verbose=False)
            for place, ids in enumerate(batch["input_ids"], start=start):
                if len(ids) > self.config.max_length:
                    truncated[place] = True
                    ids = self._cut(texts[place])
                pieces.append(np.asarray(ids, dtype=np.int32))
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int32)
        tokens = Tokens(np.concatenate(pieces or [np.empty(0, np.int32)]), np.concatenate([[0], np.cumsum(lengths)]))
        return Inputs(lengths, truncated, tokens, failures)

    def _cut(self, text: str) -> list[int]:
        """Tokenise to the maximal length, special tokens kept."""
        ids: list[int] = self.tokenizer(text, truncation=True, max_length=self.config.max_length)["input_ids"]
        return ids

    def batches(self, inputs: Inputs) -> Iterator[np.ndarray]:
        return token_budget_batches(inputs.n_tokens, self.token_budget)

    @torch.inference_mode()
    def encode(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray:
        """Run one batch and return the stored bytes of its features."""
        return to_stored(self.features(inputs, rows), self.config.store_dtype)

    @torch.inference_mode()
    def features(self, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
        """Run one batch and return (len(rows), dim) float32 features."""
        ids, mask = self._pad(inputs, rows)
        hidden = self._hidden_state(ids, mask)
        pooled = pool(hidden, mask, self.config.pooling)
        return torch.nn.functional.normalize(pooled, dim=1) if self.config.normalize else pooled

    def is_finite(self, stored: np.ndarray) -> np.ndarray:
        return finite_rows(stored, self.config.store_dtype)

    def _pad(self, inputs: Inputs, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token ids and mask, both (len(rows), longest)."""
        tokens: Tokens = inputs.payload
        lengths = inputs.n_tokens[rows]
        longest = max(1, int(lengths.max()))
        column = np.arange(longest)
        shift = longest - lengths if self.config.padding_side == "left" else np.zeros_like(lengths)
        place = column[None, :] - shift[:, None]
        mask = (place >= 0) & (place < lengths[:, None])
        ids = np.full(mask.shape, self.pad_id, np.int64)
        ids[mask] = tokens.ids[(tokens.starts[rows][:, None] + place)[mask]]
        return torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)

    def _hidden_state(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the chosen layer's states, (n, length, dim)."""
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask.long(), **self.options}
        if self.takes_positions and self.config.padding_side == "left":
            # without them, left padding would shift the positions of models that count from the margin
            arguments["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        if self.block is None:
            return torch.as_tensor(self.model(**arguments).last_hidden_state)
        reached: list[torch.Tensor] = []

        def stop_here(module: Any, args: Any, output: Any) -> None:
            reached.append(output[0] if isinstance(output, tuple) else output)
            raise _LayerReached

        handle = self.block.register_forward_hook(stop_here)
        try:
            self.model(**arguments)
        except _LayerReached:
            pass
        finally:
            handle.remove()
        return reached[0]


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool (n, length, dim) states over the real tokens, in float32; right for either padding side."""
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


def blocks_of(model: Any) -> Any:
    """Return a model's stack of transformer blocks: its longest list of modules.

    Block -1 ends in the states that the final norm reads; ``layer: -2`` is the output of block -2.
    """
    stacks = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    if not stacks:
        raise EncoderError(f"{type(model).__name__} has no stack of blocks; only layer -1 can be read from it")
    return max(stacks, key=len)
