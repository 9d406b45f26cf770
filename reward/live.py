"""Features of items that no cache knows: the frozen encoder runs live, and rounds as the cache
does."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pal.config import EncoderConfig
from pal.embed.encoder import EncoderSource, load, locate
from pal.embed.engines.local import CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET
from pal.embed.images import Pointer
from pal.embed.storage import finite_rows, from_stored, to_stored
from pal.errors import RewardError
from pal.reward.rendering import Text

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"}


@dataclass(frozen=True)
class Image:
    """An image item, by its encoded bytes."""

    raw: bytes


Item = Text | Image


class InMemory:
    """Stands in for stage one's reader of image files: the pointer names a place in a list."""

    def __init__(self, images: Sequence[bytes]) -> None:
        self.images = images

    def bytes_of(self, pointer: Pointer) -> bytes:
        return self.images[int(pointer.file)]


@dataclass
class Features:
    """(n, dim) in the cache's dtype on the CPU; rows that could not be encoded are zero, with their
    reasons."""

    values: torch.Tensor
    failures: dict[int, str] = field(default_factory=dict)


class LiveEncoder:
    """A loaded encoder as a function from items to features."""

    def __init__(self, source: EncoderSource, device: str) -> None:
        self.source = source
        self.device = device
        budget = GPU_TOKEN_BUDGET if device.startswith("cuda") else CPU_TOKEN_BUDGET
        self.encoder: Any = load(source, device, budget, [source.config.layer], False)

    @classmethod
    def locate(
        cls, name: str, config: EncoderConfig, digests: Path, spec: dict[str, Any], device: str
    ) -> LiveEncoder:
        """Find the encoder's files and load them; raises RewardError unless they are those of
        ``spec``.

        Where the files lie is no part of the comparison: equal weights are equal wherever they came
        from.
        """
        source = locate(name, config, digests)
        changed = sorted(
            key
            for key in {*source.spec, *spec} - {"model"}
            if source.spec.get(key) != spec.get(key)
        )
        if changed:
            raise RewardError(
                f"encoder {name} differs in {', '.join(changed)} from the one that the head was "
                "trained on; restore "
                f"its settings and files, or name the folder that has them"
            )
        return cls(source, device)

    def features(self, items: Sequence[Item]) -> Features:
        """Encode items, equal ones once; what fails is that row's failure and nobody else's."""
        place: dict[Item, int] = {}
        number = [place.setdefault(item, len(place)) for item in items]
        unique = self._encode(list(place))
        failures = {row: unique.failures[n] for row, n in enumerate(number) if n in unique.failures}
        return Features(unique.values[torch.tensor(number, dtype=torch.long)], failures)

    def _encode(self, items: list[Item]) -> Features:
        images = [item.raw for item in items if isinstance(item, Image)]
        if images:
            self.encoder.reader = InMemory(images)
        inputs = self.encoder.prepare(table_of(items))
        failures = {row: message for row, (_, _, message) in inputs.failures.items()}
        dtype = self.source.config.store_dtype
        done: list[tuple[np.ndarray, torch.Tensor]] = []
        for rows in self.encoder.batches(inputs):
            wanted = rows[[row not in failures for row in rows.tolist()]]
            if not len(wanted):
                continue
            batch = self.encoder.load_batch(inputs, wanted)
            failures.update({row: message for row, (_, _, message) in batch.failures.items()})
            if not len(batch.rows):
                continue
            stored = to_stored(self.encoder.encode(batch)[0], dtype)
            for row in batch.rows[~finite_rows(stored, dtype)].tolist():
                failures[row] = "its feature holds NaN or infinity"
            done.append((batch.rows, from_stored(stored, dtype)))
        width = done[0][1].shape[1] if done else 1
        values = torch.zeros(len(items), width, dtype=getattr(torch, dtype))
        for rows, feature in done:
            values[torch.from_numpy(rows)] = feature
        return Features(values, failures)


def table_of(items: Sequence[Item]) -> pa.Table:
    """Lay items out as stage one reads them."""
    images = iter(range(len(items)))
    rows = [
        {"modality": "text", **_readable(item)}
        if isinstance(item, Text)
        else {"modality": "image", "image_file": str(next(images))}
        for item in items
    ]
    columns = {"modality": pa.string(), "text": pa.large_binary(), "context": pa.large_string()}
    table = pa.Table.from_pylist(rows, pa.schema({**columns, "image_file": pa.string()}))
    for name in ("image_column", "image_group", "image_row", "image_filter"):
        table = table.append_column(name, pa.nulls(len(rows)))
    return table


def _readable(item: Text) -> dict[str, Any]:
    """Return the columns of a text; one with half a surrogate pair stays as it is, for stage one to
    refuse."""
    try:
        (item.context or "").encode()
    except UnicodeEncodeError:
        return {"text": (item.context or "").encode(errors="surrogatepass")}
    return {"text": item.text.encode(errors="surrogatepass"), "context": item.context}


def image_of(image: Any) -> Image:
    """Take an image as bytes, as the path of a file or as a PIL image, whose pixels are kept
    exactly."""
    if isinstance(image, bytes | bytearray | memoryview):
        return Image(bytes(image))
    if isinstance(image, str | Path):
        try:
            return Image(Path(image).read_bytes())
        except OSError as error:
            raise RewardError(
                f"cannot read image {image}: {error.strerror}; give an existing file"
            ) from error
    if not hasattr(image, "save"):
        raise RewardError(f"an image is a path, bytes or a PIL image, not {type(image).__name__}")
    out = io.BytesIO()
    image.save(out, "PNG" if image.mode in PNG_MODES else "TIFF")
    return Image(out.getvalue())
