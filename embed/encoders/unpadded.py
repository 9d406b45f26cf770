"""Texts of a batch end to end, with attention of variable length: nothing is computed for padding.

transformers hands attention to a function of ours, which does what SDPA does wherever a batch is
padded, and keeps texts apart where they stand end to end. Whether a model computes the same either
way is tried as it is loaded, on texts longer than its windows; where it does not, batches are
padded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from pal.embed.render import Tokens
from pal.embed.transfer import pinned, to_device

NAME = "pal_unpadded"
HALVES = (torch.bfloat16, torch.float16)
"""dtypes that attention of variable length knows"""
REACH = ("sliding_window", "local_attention", "attention_window", "attention_chunk_size")
"""settings of models that bound how far a token looks"""
REFUSALS = (
    NotImplementedError, RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError,
)  # fmt: skip
"""what models raise that cannot do with texts end to end"""
SAID = {
    "cache_position", "cu_seq_lens_k", "deterministic", "dropout", "max_length_k",
    "output_attentions", "output_hidden_states", "position_ids", "return_dict", "use_cache",
}  # fmt: skip
"""what models tell attention that it may leave unheard, all of it without dropout or a cache"""

_end_to_end: ContextVar[bool] = ContextVar("end_to_end", default=False)


@dataclass
class Row:
    """n texts as one row of T tokens."""

    ids: torch.Tensor
    """(1, T)"""
    starts: torch.Tensor
    """(n + 1,) int32: text i is ``ids[0, starts[i]:starts[i + 1]]``"""
    longest: int
    types: torch.Tensor | None = None
    """(1, T)"""

    @classmethod
    def of(cls, texts: Sequence[torch.Tensor]) -> Row:
        """Join texts, (1, length) each."""
        lengths = torch.tensor([0, *(text.shape[1] for text in texts)])
        starts = lengths.cumsum(0).int().to(texts[0].device)
        return cls(torch.cat(list(texts), dim=1), starts, int(lengths.max()))

    @classmethod
    def of_tokens(cls, tokens: Tokens, rows: np.ndarray, device: torch.device) -> Row:
        """Join some of many texts, as their tokens lie in memory; ready for a device."""
        begin, end = tokens.starts[rows], tokens.starts[rows + 1]
        lengths = end - begin
        starts = np.concatenate([[0], np.cumsum(lengths)])
        where = np.arange(starts[-1]) + np.repeat(begin - starts[:-1], lengths)

        def ready(array: np.ndarray, dtype: type) -> torch.Tensor:
            return pinned(torch.from_numpy(array.astype(dtype)), device)

        types = None if tokens.types is None else ready(tokens.types[where][None], np.int64)
        ids = ready(tokens.ids[where][None], np.int64)
        return cls(ids, ready(starts, np.int32), int(lengths.max()), types)

    def to(self, device: torch.device) -> Row:
        """Return the row on a device, perhaps before it is there."""
        ids, starts = to_device([self.ids, self.starts], device)
        types = None if self.types is None else to_device([self.types], device)[0]
        return Row(ids, starts, self.longest, types)

    def arguments(self) -> dict[str, Any]:
        """Return what a model's forward takes beside the ids."""
        lengths = (self.starts[1:] - self.starts[:-1]).long()
        before = torch.repeat_interleave(
            self.starts[:-1].long(), lengths, output_size=self.ids.shape[1]
        )
        positions = torch.arange(self.ids.shape[1], device=self.ids.device) - before
        return {
            "position_ids": positions[None],
            "cu_seq_lens_q": self.starts, "cu_seq_lens_k": self.starts,
            "max_length_q": self.longest, "max_length_k": self.longest,
        }  # fmt: skip

    def pooled(self, states: torch.Tensor, pooling: str) -> torch.Tensor:
        """Pool the states of all texts, (1, T, dim), to (n, dim) float32."""
        if pooling == "mean":
            starts = self.starts.long()
            return torch.segment_reduce(states[0].float(), "mean", offsets=starts, axis=0)
        place = self.starts[:-1] if pooling == "cls" else self.starts[1:] - 1
        return states[0, place.long()].float()


def can_be(model: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Say whether a device has attention of variable length in a dtype, and whether a model lets
    its attention be chosen."""
    if device.type != "cuda" or dtype not in HALVES or kernel() is None:
        return False
    return bool(getattr(model, "_supports_attention_backend", False))


def kernel() -> Any:
    """Return torch's attention of variable length; None where torch has none with windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def attend_by_us(model: Any) -> None:
    """Let a model, loaded with SDPA, compute attention here from now on."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    model.set_attn_implementation(NAME)


def attend_by_sdpa(model: Any) -> None:
    """Undo ``attend_by_us``."""
    model.set_attn_implementation("sdpa")


def reach_of(settings: Any) -> int:
    """Return how far tokens of a model look at most, by its settings; 0: at all of them."""
    found = [getattr(settings, name, None) for name in REACH]
    return max((n for n in found if isinstance(n, int) and n > 0), default=0)


def longer_than(reach: int, ids: torch.Tensor, most: int) -> torch.Tensor:
    """Return a text, (1, length), said again until it is longer than a window, if it may be."""
    times = -(-min(most, reach + 1) // ids.shape[1])
    return ids.repeat(1, max(1, times))[:, :most]


@contextmanager
def end_to_end() -> Iterator[None]:
    """Have the masks of a forward pass left out, in this thread."""
    token = _end_to_end.set(True)
    try:
        yield
    finally:
        _end_to_end.reset(token)


def mask(*places: Any, **options: Any) -> Any:
    """Return SDPA's mask of a padded batch, none of texts end to end."""
    from transformers.masking_utils import sdpa_mask

    return None if _end_to_end.get() else sdpa_mask(*places, **options)


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each text; (1, heads, T, dim) each to (1, T, heads, dim). Padded batches, (n,
    heads, length, dim), go to SDPA.

    Raises NotImplementedError for a model that asks for anything else.
    """
    starts, longest = others.pop("cu_seq_lens_q", None), others.pop("max_length_q", None)
    if starts is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        kept = {"scaling": scaling, "is_causal": is_causal, **others}
        found = sdpa_attention_forward(module, query, key, value, attention_mask, **kept)
        return found[0], None
    asked = [name for name, one in others.items() if one is not None and name not in SAID]
    if asked or attention_mask is not None:
        raise NotImplementedError(f"attention with {', '.join(asked) or 'a mask'}")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    back = -1 if sliding_window is None else sliding_window - 1
    window = (back, 0 if causal else back)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    if q.device.type != "cuda":
        return _one_by_one(q, k, v, starts, window, scaling)[None], None
    return _at_once(q, k, v, starts, int(longest), window, scaling)[None], None


def _at_once(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    window: tuple[int, int],
    scale: float | None,
) -> torch.Tensor:
    """Attend on a GPU, (T, heads, dim); of float32, as rotated states of ``mixed`` are, in
    bfloat16."""
    found: Any = kernel()
    dtype = query.dtype if query.dtype in HALVES else torch.bfloat16
    options: dict[str, Any] = {"scale": scale, "window_size": window}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" in inspect.signature(found).parameters:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    parts = (part.to(dtype).contiguous() for part in (query, key, value))
    out: torch.Tensor = found(*parts, starts, starts, longest, longest, **options)
    return out.to(query.dtype)


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    window: tuple[int, int],
    scale: float | None,
) -> torch.Tensor:
    """Attend text by text, (T, heads, dim): what the kernel of a GPU computes, for comparison."""
    found = []
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        q, k, v = (part[start:stop].transpose(0, 1)[None] for part in (query, key, value))
        place = torch.arange(stop - start, device=query.device)
        ahead = place[None, :] - place[:, None]
        seen = torch.ones_like(ahead, dtype=torch.bool)
        if window[0] >= 0:
            seen &= -ahead <= window[0]
        if window[1] >= 0:
            seen &= ahead <= window[1]
        out = scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True)
        found.append(out[0].transpose(0, 1))
    return torch.cat(found)
