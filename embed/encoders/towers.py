"""Encoders with an image tower and a text tower, whichever library they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pal.embed.encoder import Batch, Encoder, EncoderSource, Inputs, require_modality
from pal.embed.encoders.compiled import compile_blocks
from pal.embed.encoders.packed import pack
from pal.embed.images import ImageReader, decode_filtered
from pal.embed.odd import Failure, Failures, failure_of, is_about_items, unreadable
from pal.embed.render import plain_text
from pal.embed.transfer import pinned, to_device
from pal.items import Image, Item, Place, Text

Pixels = dict[str, torch.Tensor]
"""what a tower reads of images, by the names that its library has for it"""


@dataclass
class Towers:
    """A loaded model as functions. L is the text length that the model pads to.

    A model of images alone has no ``tokenise`` and no ``texts``.
    """

    transform: Callable[[Any], Pixels]
    """a PIL image to the tensors that the model reads of one: its own preprocessing"""
    images: Callable[..., torch.Tensor]
    """those of n images, stacked, by name, to (n, dim)"""
    image_tokens: int
    image_flops: float
    """operations per token of an image, in matrices alone"""
    tokenise: Callable[[list[str]], tuple[torch.Tensor, np.ndarray]] | None = None
    """texts to ids (n, L), and the number of tokens that each text has uncut, (n,)"""
    texts: Callable[[torch.Tensor], torch.Tensor] | None = None
    """(n, L) to (n, dim)"""
    text_tokens: int = 1
    text_flops: float = 0.0
    parts: Sequence[Any] = ()
    """the modules of the model whose blocks ``embed.compile`` compiles"""


IDS = "input_ids"


@dataclass
class Contents:
    """The items of a shard: the places of images, the token ids of texts."""

    places: list[Place | None]
    """None where the item is a text"""
    ids: torch.Tensor
    """(n, L), (n, 0) of a model that reads no texts"""

    @property
    def is_image(self) -> np.ndarray:
        return np.array([place is not None for place in self.places], bool)


class TowersEncoder(Encoder):
    """Images through one tower, texts through the other; the narrower is filled with zeros."""

    def __init__(
        self, towers: Towers, source: EncoderSource, device: str, token_budget: int, compiled: bool
    ) -> None:
        self.towers = towers
        self.name = source.name
        self.normalize = source.config.normalize
        self.decoded = source.config.images
        self.device = torch.device(device)
        self.dtype = getattr(torch, source.config.compute_dtype)
        self.token_budget = token_budget
        self.reader = ImageReader()
        for part in towers.parts:
            if compiled:
                compile_blocks(part)
            else:
                pack(part, self.device)
        self.dim: int | None = None

    def read(self, items: Sequence[Item]) -> Inputs:
        """Tokenise the texts; images wait for their batch, since a shard of pixels is large."""
        readable = (Image,) if self.towers.tokenise is None else (Image, Text)
        require_modality(self.name, items, *readable)
        failures: Failures = {}
        texts = ["" for _ in items]
        for row, item in enumerate(items):
            if isinstance(item, Text):
                failure = unreadable(item)
                if failure is None:
                    texts[row] = plain_text(item)
                else:
                    failures[row] = failure
        ids, lengths = torch.zeros(len(items), 0), np.zeros(len(items), np.int64)
        if self.towers.tokenise is not None:
            ids, lengths = self.towers.tokenise(texts)
        contents = Contents([i.place if isinstance(i, Image) else None for i in items], ids)
        is_text = ~contents.is_image
        n_tokens = np.where(
            is_text, np.minimum(lengths, self.towers.text_tokens), self.towers.image_tokens
        )
        truncated = is_text & (lengths > self.towers.text_tokens)
        return Inputs(n_tokens.astype(np.int32), truncated, contents, failures)

    def batches(self, inputs: Inputs) -> Iterator[np.ndarray]:
        """Cut rows in their order, which is that of the source, images and texts apart."""
        kept, is_image = inputs.kept, inputs.payload.is_image
        for wanted, cost in (
            (is_image, self.towers.image_tokens),
            (~is_image, self.towers.text_tokens),
        ):
            rows, size = kept[wanted[kept]], max(1, self.token_budget // cost)
            for start in range(0, len(rows), size):
                yield rows[start : start + size]

    def stack(self, inputs: Inputs, rows: np.ndarray) -> Batch:
        """Read, decode and transform images, or pick the ids of texts."""
        contents: Contents = inputs.payload
        if contents.places[int(rows[0])] is None:
            ids = contents.ids[torch.from_numpy(rows)]
            return Batch(rows, {IDS: pinned(ids, self.device)}, padded=ids.numel())
        pixels: list[Pixels] = []
        kept: list[int] = []
        failures: Failures = {}
        for row in rows.tolist():
            place = contents.places[row]
            assert place is not None
            image = self._pixels(place)
            if isinstance(image, Failure):
                failures[row] = image
            else:
                pixels.append(image)
                kept.append(row)
        stacked = {
            key: pinned(torch.stack([image[key] for image in pixels]), self.device)
            for key in (pixels or [{}])[0]
        }
        padded = len(kept) * self.towers.image_tokens
        return Batch(np.array(kept, dtype=np.int64), stacked, failures, padded)

    def _pixels(self, place: Place) -> Pixels | Failure:
        stage = "fetch"
        try:
            raw = self.reader.bytes_of(place)
            stage = "decode"
            return self.towers.transform(decode_filtered(raw, place, self.decoded))
        except BaseException as error:  # whatever a damaged file makes a decoder say
            if not is_about_items(error):
                raise
            return failure_of(stage, error, f"{place.file}: " if place.file else "")

    def flops(self, inputs: Inputs, rows: np.ndarray) -> float:
        is_image = inputs.payload.is_image[rows]
        per_token = np.where(is_image, self.towers.image_flops, self.towers.text_flops)
        return float((per_token * inputs.n_tokens[rows]).sum())

    @torch.inference_mode()
    def encode(self, batch: Batch) -> list[torch.Tensor]:
        """Return (n, dim) float32 features."""
        inputs = dict(
            zip(batch.tensors, to_device(list(batch.tensors.values()), self.device), strict=True)
        )
        if IDS in inputs:
            assert self.towers.texts is not None
            feature = self.towers.texts(inputs[IDS]).float()
        else:
            feature = self.towers.images(**cast(inputs, self.dtype)).float()
        feature = torch.nn.functional.normalize(feature, dim=1) if self.normalize else feature
        return [torch.nn.functional.pad(feature, (0, self.width() - feature.shape[1]))]

    def width(self) -> int:
        """Return the wider tower's number of dimensions."""
        if self.dim is None:
            blank = blank_of(self.towers.transform, self.device, self.dtype)
            self.dim = self.towers.images(**blank).shape[1]
            if self.towers.tokenise is not None and self.towers.texts is not None:
                ids = self.towers.tokenise([""])[0].to(self.device)
                self.dim = max(self.dim, self.towers.texts(ids).shape[1])
        return self.dim


def cast(pixels: Pixels, dtype: torch.dtype) -> Pixels:
    """Return inputs with their real numbers in the dtype of the model."""
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in pixels.items()}


def blank_of(transform: Callable[[Any], Pixels], device: Any, dtype: torch.dtype) -> Pixels:
    """Return the inputs of one empty image."""
    from PIL import Image as Pil

    read = transform(Pil.new("RGB", (64, 64)))
    return cast({key: value.unsqueeze(0).to(device) for key, value in read.items()}, dtype)
