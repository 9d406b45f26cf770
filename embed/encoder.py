"""What stage one asks of an encoder, and the encoders by kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from pal.config import EncoderConfig
from pal.errors import EncoderError
from pal.items import Feature, Image, Item, Text
from pal.records import JsonObject

if TYPE_CHECKING:
    import torch

MODALITIES: dict[type[Item], str] = {Text: "text", Image: "image", Feature: "feature"}


class Failure(NamedTuple):
    """Why an item cannot be encoded."""

    stage: str
    """fetch, decode, tokenize, encode or nonfinite"""
    error_class: str
    message: str


Failures = dict[int, Failure]
"""by row"""


@dataclass
class Inputs:
    """Items of one shard, read but not yet in batches."""

    n_tokens: np.ndarray
    """(n,) int32, what encoding the item costs, without padding"""
    truncated: np.ndarray
    """(n,) bool"""
    payload: Any
    """what the encoder itself needs"""
    failures: Failures = field(default_factory=dict)
    answers_cut: int = 0
    """truncated items with context of which even the text itself was too long"""


@dataclass
class Batch:
    """Some rows of a shard in the model's own form, still on the CPU."""

    rows: np.ndarray
    """the rows that could be loaded; those that could not are in ``failures``"""
    tensors: Any
    failures: Failures = field(default_factory=dict)
    padded: int = 0
    """tokens that the model computes, padding included"""


class Encoder(Protocol):
    """A loaded frozen model. Several taps are several features of one forward pass, in order."""

    def prepare(self, items: Sequence[Item]) -> Inputs:
        """Tokenise or measure items; runs ahead in a thread of its own."""
        ...

    def batches(self, inputs: Inputs) -> Iterator[np.ndarray]:
        """Cut the rows into batches; the same inputs give the same batches."""
        ...

    def load_batch(self, inputs: Inputs, rows: np.ndarray) -> Batch:
        """Pad or decode some rows; runs ahead in several threads."""
        ...

    def flops(self, inputs: Inputs, rows: np.ndarray) -> float:
        """Return the operations that the real tokens of some rows need (pal.embed.peak)."""
        ...

    def encode(self, batch: Batch) -> list[torch.Tensor]:
        """Return one (n, dim) tensor per tap, on the device, perhaps before they are computed."""
        ...


@dataclass(frozen=True)
class EncoderSource:
    """An encoder that is located but not loaded: enough for its specification."""

    name: str
    config: EncoderConfig
    folder: Path | None
    """files of the model, or the file of its weights; None where there are none"""
    spec: JsonObject
    """the ``encoder`` block of the cache's specification"""
    revision: str
    """where the files came from: a commit, ``local``, a package"""
    untrained: bool
    """random weights: numbers made with them say nothing about the real model"""


def locate(name: str, config: EncoderConfig, digests: Path) -> EncoderSource:
    """Find an encoder's files and state its specification, loading no model.

    ``digests`` is a file that remembers hashes of weight files by size and time stamp.
    """
    if config.kind == "identity":
        spec: JsonObject = {"kind": "identity", "store_dtype": config.store_dtype}
        return EncoderSource(name, config, None, spec, revision="none", untrained=False)
    if config.kind == "open-clip":
        from pal.embed.encoders.openclip import open_clip_source

        return open_clip_source(name, config, digests)
    from pal.embed.weights import hub_source

    return hub_source(name, config, digests)


def load(
    source: EncoderSource, device: str, token_budget: int, layers: Sequence[int], compiled: bool
) -> Encoder:
    """Load an encoder on a device; ``layers`` are its taps, and all but text models have one."""
    config = source.config
    if config.kind == "hf-text":
        from pal.embed.encoders.text import TextEncoder

        return TextEncoder.load(source, device, token_budget, layers, compiled)
    if len(layers) > 1:
        raise EncoderError(
            f"encoder {source.name} gives one layer at a time; run pal embed once for each of "
            f"{layers}"
        )
    if config.kind == "identity":
        from pal.embed.encoders.identity import IdentityEncoder

        return IdentityEncoder()
    if config.kind == "open-clip":
        from pal.embed.encoders.openclip import open_clip_towers

        towers = open_clip_towers(source, device)
    else:
        from pal.embed.encoders.hfclip import hf_clip_towers

        towers = hf_clip_towers(source, device)
    from pal.embed.encoders.towers import TowersEncoder

    return TowersEncoder(towers, source, device, token_budget, compiled)


def require_modality(name: str, items: Sequence[Item], *readable: type[Item]) -> None:
    """Raise EncoderError if there are items that an encoder of this kind cannot read."""
    others = sorted(MODALITIES[kind] for kind in {type(item) for item in items} - {*readable})
    if others:
        raise EncoderError(
            f"encoder {name} reads {' and '.join(sorted(MODALITIES[k] for k in readable))} items, "
            f"but the dataset has {', '.join(others)} items; choose another --encoder"
        )
