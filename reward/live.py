"""Features of items that no cache knows: the frozen encoder runs live, and rounds as the cache
does."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue

from pal.config import EncoderConfig
from pal.embed.devices import token_budget
from pal.embed.encoder import EncoderSource, load, locate
from pal.embed.storage import finite_rows, from_stored, to_stored
from pal.errors import RewardError
from pal.files import canonical_json
from pal.items import Image, Item

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"}


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
        layers = [source.config.layer]
        self.encoder: Any = load(source, device, token_budget(device), layers, False)

    @classmethod
    def locate(
        cls,
        name: str,
        config: EncoderConfig,
        digests: Path,
        spec: Mapping[str, JsonValue],
        device: str,
    ) -> LiveEncoder:
        """Find the encoder's files and load them; raises RewardError unless they are those of
        ``spec``.

        Where the files lie is no part of the comparison: equal weights are equal wherever they came
        from.
        """
        source = locate(name, config, digests)
        changed = [key for key in changed_settings(source.spec, spec) if key != "model"]
        if changed:
            raise RewardError(
                f"encoder {name} differs in {', '.join(changed)} from the one that the head was "
                "trained on; restore its settings and files, or name the folder that has them"
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
        inputs = self.encoder.prepare(items)
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


def changed_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two specifications differ, one of them perhaps read from JSON."""
    return sorted(
        key
        for key in {*one, *other}
        if canonical_json(one.get(key)) != canonical_json(other.get(key))
    )


def image_of(image: Any) -> Image:
    """Take an image as bytes, as the path of a file or as a PIL image, whose pixels are kept."""
    if isinstance(image, bytes | bytearray | memoryview):
        return Image.of_bytes(bytes(image))
    if isinstance(image, str | Path):
        try:
            return Image.of_bytes(Path(image).read_bytes())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RewardError(
                f"cannot read image {image}: {reason}; give an existing file"
            ) from error
    if not hasattr(image, "save"):
        raise RewardError(f"an image is a path, bytes or a PIL image, not {type(image).__name__}")
    out = io.BytesIO()
    image.save(out, "PNG" if image.mode in PNG_MODES else "TIFF")
    return Image.of_bytes(out.getvalue())
