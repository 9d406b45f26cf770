"""Does the cache hold what the model says? Some cached features against the library's own passes of
one item (pal.embed.reference)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pal.cache.reader import FeatureStore
from pal.cache.spec import embed_command
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.embed.choose import locate_job
from pal.embed.devices import devices_of, require_device
from pal.embed.encoder import EncoderSource
from pal.embed.encoders.padding import TOLERANCE
from pal.embed.reference import TextReference, reference_of
from pal.errors import CacheError, EncoderError
from pal.items import Item, items_of
from pal.records import Entry

if TYPE_CHECKING:
    import pyarrow as pa


class SelfTest(Entry):
    """How well a sample of a cache agrees with the model."""

    dir: str
    items: int
    largest_difference: float
    """relative to the largest value of the feature"""
    largest_logit_difference: float | None = None
    """of a reward model: feature x score weight against its own logit, relative to the largest"""


def self_test(config: Config, dataset: PreparedDataset, sample: int = 16) -> SelfTest:
    """Let the library alone encode a sample of items and compare with the cache; raises CacheError
    on a difference.

    For a reward model, feature times score weight is compared with the model's own logit too.
    """
    job = locate_job(config, dataset)
    store = FeatureStore.open(job.folders[0], job.specs[0])
    generator = np.random.default_rng(config.seed)
    chosen = np.sort(generator.choice(store.rows, min(sample, store.rows), replace=False))
    ids = store.item_ids[chosen]
    items = _items_named(job.items(), ids)
    require_device(config.embed)
    device = devices_of(config.embed, job.source.config)[0]
    cached = store.gather(chosen).float()
    live, tolerance = _one_by_one(
        _with_layer(job.source, job.layers[0]), device, items, cached.shape[1]
    )
    tolerance = max(tolerance, TOLERANCE[store.dtype])
    worst = (cached - live).abs().amax(dim=1) / live.abs().amax(dim=1).clamp(min=1e-9)
    row = int(worst.argmax())
    if float(worst[row]) > tolerance:
        name = bytes(ids[row]).ljust(16, b"\0").hex()
        raise CacheError(
            f"{job.folders[0]}: item {name} differs from a live forward pass by "
            f"{float(worst[row]):.2g} of its largest value, and rounding explains "
            f"{tolerance:.2g}; remove the folder and run {embed_command(job.folders[0])} again"
        )
    weight, logits = store.score_weight(), None
    if weight is not None:
        scores = cached @ weight.T
        logits = _compare_logits(job.source, device, items, scores, tolerance)
    return SelfTest(
        dir=str(job.folders[0]),
        items=len(chosen),
        largest_difference=float(worst[row]),
        largest_logit_difference=logits,
    )


def _items_named(table: pa.Table, ids: np.ndarray) -> list[Item]:
    names = np.array(table.column("item_id").to_pylist(), dtype="S16")
    place = {name: row for row, name in enumerate(names)}
    return items_of(table.take([place[name] for name in ids]))


def _with_layer(source: EncoderSource, layer: int) -> EncoderSource:
    return replace(source, config=source.config.model_copy(update={"layer": layer}))


@torch.inference_mode()
def _one_by_one(
    source: EncoderSource, device: str, items: Sequence[Item], dim: int
) -> tuple[torch.Tensor, float]:
    """Return features by the library alone, (n, dim) float32 on the CPU, and how far others may be
    from them by rounding."""
    reference = reference_of(source, device)
    rows = [reference(item) for item in items]
    features = torch.stack([torch.nn.functional.pad(row, (0, dim - len(row))) for row in rows])
    if isinstance(reference, TextReference):
        return features, reference.tolerance(min(items, key=lambda item: len(reference.ids(item))))
    is_computed = source.config.kind != "identity"
    return features, TOLERANCE[source.config.compute_dtype if is_computed else "float32"]


@torch.inference_mode()
def _compare_logits(
    source: EncoderSource,
    device: str,
    items: Sequence[Item],
    scores: torch.Tensor,
    tolerance: float,
) -> float:
    """Return the largest difference between ``scores``, (n, labels), and the model's logits."""
    whole = TextReference(source, device, classifier=True)
    own = torch.stack([whole.logits(item) for item in items])
    difference = float((own - scores).abs().max() / own.abs().max().clamp(min=1e-9))
    if difference > 4 * tolerance:  # a sum of many rounded products
        raise EncoderError(
            f"feature x score weight differs from the logit of {source.name} by {difference:.2g} "
            f"of the largest; check embed.{source.name}.pooling, layer and template"
        )
    return difference
