"""Does the cache hold what the model says? Some cached features against live passes of one item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pal.cache.reader import FeatureStore
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.embed.devices import devices_of
from pal.embed.encoder import Encoder, EncoderSource, load
from pal.embed.run import locate_job
from pal.embed.trust import loading, loading_options
from pal.errors import CacheError, EncoderError
from pal.items import Item, items_of
from pal.records import Entry

if TYPE_CHECKING:
    import pyarrow as pa

TOLERANCE = {"float32": 2e-4, "float16": 4e-3, "bfloat16": 3e-2}
"""largest difference, relative to the feature's largest value, that rounding in a dtype explains"""


class SelfTest(Entry):
    """How well a sample of a cache agrees with the model."""

    dir: str
    items: int
    largest_difference: float
    """relative to the largest value of the feature"""
    largest_logit_difference: float | None = None
    """of a reward model: feature x score weight against its own logit, relative to the largest"""


def self_test(config: Config, dataset: PreparedDataset, sample: int = 16) -> SelfTest:
    """Encode a sample of items alone and compare with the cache; raises CacheError on a difference.

    For a reward model, feature times score weight is compared with the model's own logit too.
    """
    job = locate_job(config, dataset)
    store = FeatureStore.open(job.folders[0], job.specs[0])
    generator = np.random.default_rng(config.seed)
    chosen = np.sort(generator.choice(store.rows, min(sample, store.rows), replace=False))
    ids = store.item_ids[chosen]
    items = _items_named(job.items(), ids)
    dtype = job.source.config.compute_dtype if job.source.config.kind != "identity" else "float32"
    tolerance = max(TOLERANCE[dtype], TOLERANCE[store.dtype])
    encoder = load(job.source, devices_of(config.embed)[0], 1, job.layers[:1], False)
    live = one_by_one(encoder, items)
    cached = store.gather(chosen).float()
    worst = (cached - live).abs().amax(dim=1) / live.abs().amax(dim=1).clamp(min=1e-9)
    row = int(worst.argmax())
    if float(worst[row]) > tolerance:
        name = bytes(ids[row]).ljust(16, b"\0").hex()
        raise CacheError(
            f"{job.folders[0]}: item {name} differs from a live forward pass by "
            f"{float(worst[row]):.2g} of its largest value, more than {tolerance} allows; remove "
            f"the folder and run pal embed again"
        )
    weight, logits = store.score_weight(), None
    if weight is not None:
        scores = cached @ weight.T
        logits = _compare_logits(job.source, encoder, items, scores, tolerance)
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


@torch.inference_mode()
def one_by_one(encoder: Encoder, items: Sequence[Item]) -> torch.Tensor:
    """Encode items as batches of one, (n, dim) float32 on the CPU."""
    inputs = encoder.prepare(items)
    rows = [
        encoder.encode(encoder.load_batch(inputs, np.array([row])))[0] for row in range(len(items))
    ]
    return torch.cat(rows).float().cpu()


@torch.inference_mode()
def _compare_logits(
    source: EncoderSource,
    encoder: Encoder,
    items: Sequence[Item],
    scores: torch.Tensor,
    tolerance: float,
) -> float:
    """Return the largest difference between ``scores``, (n, labels), and the model's logits."""
    from transformers import AutoModelForSequenceClassification

    with loading(source):
        whole = AutoModelForSequenceClassification.from_pretrained(
            source.folder,
            dtype=getattr(torch, source.config.compute_dtype),
            use_safetensors=True,
            **loading_options(source),
        ).eval()
    inputs = encoder.prepare(items)
    logits = []
    for row in range(len(items)):
        ids, mask = encoder.load_batch(inputs, np.array([row])).tensors
        logits.append(whole(input_ids=ids, attention_mask=mask.long()).logits.float())
    own = torch.cat(logits)
    difference = float((own - scores).abs().max() / own.abs().max().clamp(min=1e-9))
    if difference > 4 * tolerance:  # a sum of many rounded products
        raise EncoderError(
            f"feature x score weight differs from the logit of {source.name} by {difference:.2g} "
            f"of the largest; check embed.{source.name}.pooling, layer and template"
        )
    return difference
