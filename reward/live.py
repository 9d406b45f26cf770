"""Features of items that no cache knows: the frozen encoder runs live, and rounds as the cache
does."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import JsonValue

from pal.config import EncoderConfig
from pal.embed.devices import token_budget
from pal.embed.encoder import EncoderSource, Inputs, load, locate
from pal.embed.odd import Failures
from pal.embed.storage import from_stored, to_stored, unstorable
from pal.errors import RewardError, shown
from pal.files import canonical_json
from pal.items import Image, Item, Text
from pal.reward.recent import RecentFeatures

PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"}
PROBE = Text("Is the encoder well?")
"""what every encoder of texts or images can read, unless something else is wrong"""


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
        with _no_reports():
            self.encoder: Any = load(source, device, token_budget(device), layers, False)
        self.recent = RecentFeatures()
        self.encoded = 0
        """items that the encoder has read"""
        self._under_way: dict[bytes, Future[dict[bytes, torch.Tensor]]] = {}
        """passes by the ids of their items; each gives the features that came of it"""
        self._shared = threading.Lock()
        """of the two above"""
        self._reading = threading.Lock()
        """tokenizers refuse two threads at once"""
        self._passes = threading.Semaphore(1)

    @classmethod
    def locate(
        cls,
        name: str,
        config: EncoderConfig,
        digests: Path | None,
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

    def allow(self, passes: int) -> None:
        """Let so many threads encode at once, each items of its own; without this they take turns,
        since each pass needs memory."""
        self._passes = threading.Semaphore(passes)

    @property
    def may_run_at_once(self) -> bool:
        """Whether several threads may encode; of code that came with a model nobody knows."""
        trusted = self.source.config.trust_remote_code
        return not trusted and self.encoder.may_run_at_once

    def features(self, items: Sequence[Item]) -> Features:
        """Encode items, equal ones once, those of lately not again and those that another thread
        encodes just now neither; what fails is that row's failure and nobody else's."""
        place: dict[Item, int] = {}
        number = [place.setdefault(item, len(place)) for item in items]
        unique = self._known_or_encoded(list(place))
        failures = {row: unique.failures[n] for row, n in enumerate(number) if n in unique.failures}
        return Features(unique.values[torch.tensor(number, dtype=torch.long)], failures)

    def _known_or_encoded(self, items: list[Item]) -> Features:
        names = [item.id for item in items]
        own: Future[dict[bytes, torch.Tensor]] = Future()
        with self._shared:
            features = self.recent.found(names)
            missing = [(row, n) for row, n in enumerate(names) if n not in features]
            others = {n: self._under_way[n] for _, n in missing if n in self._under_way}
            new = {row: n for row, n in missing if n not in others}
            self._under_way |= dict.fromkeys(new.values(), own)
        made, failures = self._encoded_for_all(items, new, own) if new else ({}, {})
        features |= made
        for name, other in others.items():
            features |= {name: other.result()[name]} if name in other.result() else {}
        failed = [row for row, n in missing if n in others and n not in features]
        if failed:  # in the other thread: this one tries, and has the reason
            again = self._known_or_encoded([items[row] for row in failed])
            for place, row in enumerate(failed):
                if place in again.failures:
                    failures[row] = again.failures[place]
                else:
                    features[names[row]] = again.values[place]
        if not features:
            return Features(torch.zeros(len(items), 1), failures)
        none = torch.zeros_like(next(iter(features.values())))
        return Features(torch.stack([features.get(name, none) for name in names]), failures)

    def _encoded_for_all(
        self,
        items: list[Item],
        new: dict[int, bytes],
        told: Future[dict[bytes, torch.Tensor]],
    ) -> tuple[dict[bytes, torch.Tensor], dict[int, str]]:
        """Encode some rows, given with the ids of their items, keep their features and tell them
        to who waits for them; returns them, and why some rows have none."""
        good: dict[bytes, torch.Tensor] = {}
        try:
            made = self._encode([items[row] for row in new])
            for place, name in enumerate(new.values()):
                if place not in made.failures:
                    good[name] = made.values[place]
            rows = list(new)
            return good, {rows[place]: why for place, why in made.failures.items()}
        finally:
            with self._shared:
                self.encoded += len(new)
                self.recent.keep(good)
                for name in new.values():
                    self._under_way.pop(name, None)
            told.set_result(good)

    def _encode(self, items: list[Item]) -> Features:
        with self._reading:
            inputs = self.encoder.prepare(items)
        with self._passes:
            return self._encode_read(items, inputs)

    def _encode_read(self, items: list[Item], inputs: Inputs) -> Features:
        failures = dict(inputs.failures)
        dtype = self.source.config.store_dtype
        done: list[tuple[np.ndarray, torch.Tensor]] = []
        for rows in self.encoder.batches(inputs):
            batch = self.encoder.load_batch(inputs, rows)
            for encoded, taps in self.encoder.encode_each(inputs, batch, failures):
                stored = to_stored(taps[0], dtype)
                odd = unstorable(taps[0], stored, dtype)
                failures.update({int(encoded[place]): why for place, why in odd.items()})
                done.append((encoded, from_stored(stored, dtype)))
        if not done:
            self._require_sound(failures)
        width = done[0][1].shape[1] if done else 1
        values = torch.zeros(len(items), width, dtype=getattr(torch, dtype))
        for rows, feature in done:
            values[torch.from_numpy(rows)] = feature
        return Features(values, {row: failure.message for row, failure in failures.items()})

    def _require_sound(self, failures: Failures) -> None:
        """Raise RewardError where nothing can be encoded and no item is to blame."""
        found = [failure for failure in failures.values() if failure.stage == "encode"]
        if not found:
            return
        inputs = self.encoder.prepare([PROBE])
        for rows in self.encoder.batches(inputs):
            own: Failures = {}
            batch = self.encoder.load_batch(inputs, rows)
            if any(True for _ in self.encoder.encode_each(inputs, batch, own)):
                return
        raise RewardError(
            f"encoder {self.source.name} fails at every item ({found[0].message}); look after the "
            "device, then run the command again"
        )


@contextmanager
def _no_reports() -> Iterator[None]:
    """Keep transformers from telling that a merged folder has a head too, which no encoder reads;
    what is missing is an error of ours."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


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
            if not Path(image).is_file():  # a pipe would wait, a device has no end
                raise RewardError(f"image {shown(image, 200)} is no file; give an existing one")
            return Image.of_bytes(Path(image).read_bytes())
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RewardError(
                f"cannot read image {shown(image, 200)}: {reason}; give an existing file"
            ) from error
    if not hasattr(image, "save"):
        raise RewardError(f"an image is a path, bytes or a PIL image, not {type(image).__name__}")
    out = io.BytesIO()
    try:
        image.save(out, "PNG" if image.mode in PNG_MODES else "TIFF")
    except Exception as error:  # PIL reads late, and has many ways of refusing
        raise RewardError(f"the image cannot be read ({type(error).__name__}: {error})") from error
    return Image.of_bytes(out.getvalue())
