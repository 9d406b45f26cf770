"""Encoders with an image tower and a text tower, whichever library they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pal.embed.encoder import Batch, EncoderSource, Failures, Inputs, require_modality
from pal.embed.encoders.text import texts_of, to_device
from pal.embed.images import ImageReader, Pointer, decode_filtered

READABLE = ["image", "text"]


@dataclass
class Towers:
    """A loaded model as functions. L is the text length that the model pads to, P its pixels'
    shape."""

    transform: Callable[[Any], torch.Tensor]
    """a PIL image to (3, P, P) float32: the model's own preprocessing"""
    tokenise: Callable[[list[str]], tuple[torch.Tensor, np.ndarray]]
    """texts to ids (n, L), and the number of tokens that each text has uncut, (n,)"""
    images: Callable[[torch.Tensor], torch.Tensor]
    """(n, 3, P, P) to (n, dim)"""
    texts: Callable[[torch.Tensor], torch.Tensor]
    """(n, L) to (n, dim)"""
    image_tokens: int
    text_tokens: int
    image_flops: float
    """operations per token of an image, in matrices alone"""
    text_flops: float


@dataclass
class Contents:
    """The items of a shard: an image's pointer, or the row of a text's ids."""

    pointers: list[Pointer | None]
    ids: torch.Tensor


class TowersEncoder:
    """Images through one tower, texts through the other. Widths that differ are filled up with
    zeros."""

    def __init__(
        self, towers: Towers, source: EncoderSource, device: str, token_budget: int, compiled: bool
    ) -> None:
        self.towers = towers
        self.name = source.name
        self.normalize = source.config.normalize
        self.device = torch.device(device)
        self.dtype = getattr(torch, source.config.compute_dtype)
        self.token_budget = token_budget
        self.reader = ImageReader()
        self.images, self.texts = towers.images, towers.texts
        if compiled:
            self.images, self.texts = torch.compile(self.images), torch.compile(self.texts)
        self.dim: int | None = None

    def prepare(self, items: Any) -> Inputs:
        """Tokenise the texts; images are decoded batch by batch, since a shard of pixels is
        large."""
        kinds = items.column("modality").to_pylist()
        require_modality(self.name, kinds, READABLE)
        is_text = np.array([kind == "text" for kind in kinds])
        texts, unreadable = texts_of(items)
        failures = {row: failure for row, failure in unreadable.items() if is_text[row]}
        ids, lengths = self.towers.tokenise(
            [text if is_text[row] else "" for row, text in enumerate(texts)]
        )
        n_tokens = np.where(
            is_text, np.minimum(lengths, self.towers.text_tokens), self.towers.image_tokens
        )
        truncated = is_text & (lengths > self.towers.text_tokens)
        return Inputs(
            n_tokens.astype(np.int32), truncated, Contents(Pointer.of(items), ids), failures
        )

    def batches(self, inputs: Inputs) -> Iterator[np.ndarray]:
        """Cut rows in their order, which is that of the source, images and texts apart."""
        is_image = np.array([pointer is not None for pointer in inputs.payload.pointers])
        for wanted, cost in (
            (is_image, self.towers.image_tokens),
            (~is_image, self.towers.text_tokens),
        ):
            rows, size = np.flatnonzero(wanted), max(1, self.token_budget // cost)
            for start in range(0, len(rows), size):
                yield rows[start : start + size]

    def load_batch(self, inputs: Inputs, rows: np.ndarray) -> Batch:
        """Read, decode and transform images, or pick the ids of texts."""
        contents: Contents = inputs.payload
        if contents.pointers[int(rows[0])] is None:
            ids = contents.ids[torch.from_numpy(rows)]
            return Batch(rows, (ids,), padded=ids.numel())
        pixels: list[torch.Tensor] = []
        kept: list[int] = []
        failures: Failures = {}
        for row in rows.tolist():
            pointer, stage = contents.pointers[row], "fetch"
            assert pointer is not None
            try:
                raw = self.reader.bytes_of(pointer)
                stage = "decode"
                pixels.append(self.towers.transform(decode_filtered(raw, pointer)))
                kept.append(row)
            except (
                Exception
            ) as error:  # whatever a damaged file makes a decoder say is that item's error
                failures[row] = (stage, type(error).__name__, f"{pointer.file}: {error}"[:500])
        stacked = torch.stack(pixels) if pixels else torch.empty(0)
        return Batch(
            np.array(kept, dtype=np.int64),
            (stacked,),
            failures,
            padded=len(kept) * self.towers.image_tokens,
        )

    def flops(self, inputs: Inputs, rows: np.ndarray) -> float:
        is_image = np.array(
            [inputs.payload.pointers[row] is not None for row in rows.tolist()], bool
        )
        per_token = np.where(is_image, self.towers.image_flops, self.towers.text_flops)
        return float((per_token * inputs.n_tokens[rows]).sum())

    @torch.inference_mode()
    def encode(self, batch: Batch) -> list[torch.Tensor]:
        """Return (n, dim) float32 features."""
        (inputs,) = to_device(batch.tensors, self.device)
        feature = (
            self.images(inputs.to(self.dtype)) if inputs.is_floating_point() else self.texts(inputs)
        ).float()
        feature = torch.nn.functional.normalize(feature, dim=1) if self.normalize else feature
        return [torch.nn.functional.pad(feature, (0, self.width() - feature.shape[1]))]

    def width(self) -> int:
        """Return the wider tower's number of dimensions."""
        if self.dim is None:
            text = self.towers.texts(self.towers.tokenise([""])[0].to(self.device))
            blank = (
                torch.zeros_like(self.towers.transform(_blank()))
                .unsqueeze(0)
                .to(self.device, self.dtype)
            )
            self.dim = max(text.shape[1], self.towers.images(blank).shape[1])
        return self.dim


def _blank() -> Any:
    from PIL import Image

    return Image.new("RGB", (64, 64))
