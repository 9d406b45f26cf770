"""What stage one asks of an encoder, and the encoders by kind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pal.config import EncoderConfig
from pal.errors import EncoderError


@dataclass
class Inputs:
    """Items of one shard, ready to be encoded."""

    n_tokens: np.ndarray
    """(n,) int32, what encoding the item costs, without padding"""
    truncated: np.ndarray
    """(n,) bool"""
    payload: Any
    """what the encoder itself needs"""
    failures: dict[int, tuple[str, str, str]] = field(default_factory=dict)
    """rows that cannot be encoded: stage, class and message of the error"""


class Encoder(Protocol):
    """A loaded frozen model."""

    def prepare(self, items: Any) -> Inputs:
        """Tokenise or decode rows of ``items.parquet`` (a pyarrow Table); runs in its own thread."""
        ...

    def encode(self, inputs: Inputs, rows: np.ndarray) -> np.ndarray:
        """Encode some rows as one batch: (len(rows), dim * itemsize) uint8, the stored bytes.

        Raises EncoderError if a value is finite when computed but not when stored.
        """
        ...

    def batches(self, inputs: Inputs) -> Iterator[np.ndarray]:
        """Cut the rows into batches; the same inputs give the same batches."""
        ...

    def is_finite(self, stored: np.ndarray) -> np.ndarray:
        """Tell for each stored row whether all its values are finite."""
        ...


@dataclass(frozen=True)
class EncoderSource:
    """An encoder that is located but not loaded: enough for its specification."""

    name: str
    config: EncoderConfig
    folder: Path | None
    """files of the model; None where there are none"""
    spec: dict[str, Any]
    """the ``encoder`` block of the cache's specification"""
    revision: str
    """where the files came from: a commit, ``local``, a package"""
    untrained: bool
    """random weights: numbers made with them say nothing about the real model"""


def locate(name: str, config: EncoderConfig, digests: Path) -> EncoderSource:
    """Find an encoder's files and state its specification, loading no model.

    ``digests`` is a JSON file that remembers hashes of weight files by size and time stamp.
    """
    if config.kind == "identity":
        spec = {"kind": "identity", "store_dtype": config.store_dtype}
        return EncoderSource(name, config, None, spec, revision="none", untrained=False)
    from pal.embed.weights import text_source

    return text_source(name, config, digests)


def load(source: EncoderSource, device: str, token_budget: int) -> Encoder:
    """Load an encoder on a device."""
    if source.config.kind == "identity":
        from pal.embed.identity import IdentityEncoder

        return IdentityEncoder(source.config)
    from pal.embed.text import TextEncoder

    return TextEncoder.load(source, device, token_budget)


def require_modality(name: str, present: Sequence[str], wanted: str) -> None:
    """Raise EncoderError if a dataset has items that an encoder of this kind cannot read."""
    others = sorted(set(present) - {wanted})
    if others:
        raise EncoderError(
            f"encoder {name} reads {wanted} items, but the dataset has {', '.join(others)} items; "
            f"choose another --encoder"
        )
