"""What stage one asks of an encoder, and the encoders by kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pal.config import EncoderConfig
from pal.embed.arithmetic import require_float32, settled
from pal.embed.beside import Dense
from pal.embed.odd import Failures, is_about_items, odd_ones
from pal.errors import EncoderError
from pal.items import Feature, Image, Item, Text
from pal.records import JsonObject

if TYPE_CHECKING:
    import torch

MODALITIES: dict[type[Item], str] = {Text: "text", Image: "image", Feature: "feature"}
STAND_IN = Text("-")
"""read in the place of a text that cannot be"""


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

    @property
    def kept(self) -> np.ndarray:
        """The rows without a failure."""
        return np.array([row for row in range(len(self.n_tokens)) if row not in self.failures], int)


@dataclass
class Batch:
    """Some rows of a shard in the model's own form, still on the CPU."""

    rows: np.ndarray
    """the rows that could be loaded; those that could not are in ``failures``"""
    tensors: Any
    failures: Failures = field(default_factory=dict)
    padded: int = 0
    """tokens that the model computes, padding included"""


class Encoder(ABC):
    """A loaded frozen model. Several taps are several features of one forward pass, in order.

    What it cannot take costs only itself, everywhere: the libraries behind ``read``, ``stack`` and
    ``encode`` may raise what they like, and the items at fault are found one by one.
    """

    @abstractmethod
    def read(self, items: Sequence[Item]) -> Inputs:
        """Tokenise or measure items; may raise for one that is odd."""

    @abstractmethod
    def batches(self, inputs: Inputs) -> Iterator[np.ndarray]:
        """Cut the rows without a failure into batches; the same inputs give the same batches."""

    @abstractmethod
    def stack(self, inputs: Inputs, rows: np.ndarray) -> Batch:
        """Pad or decode some rows; may raise for one that is odd."""

    @abstractmethod
    def flops(self, inputs: Inputs, rows: np.ndarray) -> float:
        """Return the operations that the real tokens of some rows need (pal.embed.peak)."""

    @abstractmethod
    def encode(self, batch: Batch) -> list[torch.Tensor]:
        """Return one (n, dim) tensor per tap, on the device, perhaps before they are computed."""

    @property
    def may_run_at_once(self) -> bool:
        """Whether several threads may run the model: a pass changes nothing of it."""
        return True

    def prepare(self, items: Sequence[Item]) -> Inputs:
        """Read items; runs ahead in a thread of its own. Odd ones have their failures."""
        try:
            return self.read(items)
        except BaseException as error:
            if not is_about_items(error):
                raise
        odd = odd_ones(
            range(len(items)), lambda rows: self.read([items[row] for row in rows]), "tokenize"
        )
        try:
            inputs = self.read([STAND_IN if row in odd else item for row, item in enumerate(items)])
        except Exception as error:
            raise EncoderError(
                f"the encoder can read no item, not even {STAND_IN.text!r} "
                f"({type(error).__name__}: {error}); check the files of its tokenizer"
            ) from error
        inputs.failures.update(odd)
        return inputs

    def load_batch(self, inputs: Inputs, rows: np.ndarray) -> Batch:
        """Pad or decode some rows; runs ahead in several threads. Odd ones have their failures."""
        try:
            return self.stack(inputs, rows)
        except BaseException as error:
            if not is_about_items(error):
                raise
        odd = odd_ones(rows.tolist(), lambda some: self.stack(inputs, np.array(some)), "decode")
        rest = rows[[row not in odd for row in rows.tolist()]]
        batch = self.stack(inputs, rest) if len(rest) else Batch(rest, None)
        batch.failures.update(odd)
        return batch

    def encode_each(
        self, inputs: Inputs, batch: Batch, failures: Failures
    ) -> Iterator[tuple[np.ndarray, list[torch.Tensor]]]:
        """Encode a batch whole; without memory in halves, after other errors without the odd ones.

        Yields rows and their features; what cannot be encoded goes to ``failures``.
        """
        import torch

        failures.update(batch.failures)
        rows = batch.rows
        if not len(rows):
            return
        try:
            yield rows, self.encode(batch)
            return
        except BaseException as error:
            if not is_about_items(error):
                raise
            parts = 2 if isinstance(error, torch.OutOfMemoryError) else 1
        if parts == 1 or len(rows) == 1:
            odd = odd_ones(rows.tolist(), lambda some: self._encode_some(inputs, some), "encode")
            failures.update(odd)
            rows = rows[[row not in odd for row in rows.tolist()]]
            parts = 1 if odd else len(rows)  # what fails only together is encoded apart
        for part in np.array_split(rows, parts):
            if len(part):
                yield from self.encode_each(inputs, self.load_batch(inputs, part), failures)

    def _encode_some(self, inputs: Inputs, rows: Sequence[int]) -> list[torch.Tensor]:
        return self.encode(self.load_batch(inputs, np.array(rows)))


@dataclass(frozen=True)
class EncoderSource:
    """An encoder that is located but not loaded: enough for its specification."""

    name: str
    config: EncoderConfig
    """without any ``auto`` that files decide"""
    folder: Path | None
    """files of the model, or the file of its weights; None where there are none"""
    spec: JsonObject
    """the ``encoder`` block of the cache's specification"""
    revision: str
    """where the files came from: a commit, ``local``, a package"""
    untrained: bool
    """random weights: numbers made with them say nothing about the real model"""
    code_commit: str | None = None
    """of the other repository that a trusted model takes its code from"""
    attention: str = "sdpa"
    """how transformers computes attention (pal.embed.architecture)"""
    dense: tuple[Dense, ...] = ()
    """layers behind the pooling"""
    notes: tuple[str, ...] = ()
    """sentences about what lies beside the model and is not followed"""


def locate(name: str, config: EncoderConfig, digests: Path | None) -> EncoderSource:
    """Find an encoder's files and state its specification, loading no model.

    ``digests`` is a file of our own that remembers hashes of weight files by size and time stamp;
    without one they are computed. ``compute_dtype: auto`` is what this machine is fast at.
    """
    config = settled(config)
    if config.kind == "identity":
        spec: JsonObject = {"kind": "identity", "store_dtype": config.store_dtype}
        return EncoderSource(name, config, None, spec, revision="none", untrained=False)
    if config.kind == "open-clip":
        from pal.embed.encoders.openclip import open_clip_source

        return _with_images(open_clip_source(name, config, digests))
    from pal.embed.weights import hub_source

    source = hub_source(name, config, digests)
    return source if config.kind == "hf-text" else _with_images(source)


def _with_images(source: EncoderSource) -> EncoderSource:
    """Add to a specification how images are decoded."""
    from pal.embed.images import AS_SEEN

    how = AS_SEEN if source.config.images == "as-seen" else source.config.images
    return replace(source, spec={**source.spec, "images": how})


def load(
    source: EncoderSource, device: str, token_budget: int, layers: Sequence[int], compiled: bool
) -> Encoder:
    """Load an encoder on a device; ``layers`` are its taps, and all but text models have one.

    From then on this process computes products and convolutions of float32 in float32 on every
    GPU: by itself torch lets convolutions, which make tokens of images, lose 13 of 23 bits (TF32).
    """
    config = source.config
    require_float32()
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
    elif config.kind == "hf-clip":
        from pal.embed.encoders.hfclip import hf_clip_towers

        towers = hf_clip_towers(source, device)
    else:
        from pal.embed.encoders.hfimage import hf_image_tower

        towers = hf_image_tower(source, device)
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
