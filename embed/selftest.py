"""Does the cache hold what the model says? A sample of cached features against a live forward pass,
one item a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pal.cache.reader import FeatureStore
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.embed.encoder import Encoder, load
from pal.embed.engines.local import devices_of
from pal.embed.run import locate_job
from pal.errors import CacheError, EncoderError

TOLERANCE = {"float32": 2e-4, "float16": 4e-3, "bfloat16": 3e-2}
"""largest difference, relative to the feature's largest value, that rounding in a dtype explains"""


def self_test(config: Config, dataset: PreparedDataset, sample: int = 16) -> dict[str, Any]:
    """Encode a sample of items alone and compare with the cache; raises CacheError naming the worst
    item.

    For a reward model, feature times score weight is compared with the model's own logit too.
    """
    job = locate_job(config, dataset)
    store = FeatureStore.open(job.folders[0], job.specs[0])
    chosen = np.sort(
        np.random.default_rng(config.seed).choice(
            store.rows, min(sample, store.rows), replace=False
        )
    )
    ids = store.item_ids[chosen]
    table = job.items()
    place = {
        name: row
        for row, name in enumerate(np.array(table.column("item_id").to_pylist(), dtype="S16"))
    }
    items = table.take([place[name] for name in ids])
    dtype = job.source.config.compute_dtype if job.source.config.kind != "identity" else "float32"
    tolerance = max(TOLERANCE[dtype], TOLERANCE[store.dtype])
    encoder = load(job.source, devices_of(config)[0], 1, job.layers[:1], False)
    live = one_by_one(encoder, items)
    cached = store.gather(chosen).float()
    worst = (cached - live).abs().amax(dim=1) / live.abs().amax(dim=1).clamp(min=1e-9)
    row = int(worst.argmax())
    if float(worst[row]) > tolerance:
        name = bytes(ids[row]).ljust(16, b"\0").hex()
        raise CacheError(
            f"{job.folders[0]}: item {name} differs from a live forward pass by "
            f"{float(worst[row]):.2g} of its largest "
            f"value, more than {tolerance} allows; remove the folder and run pal embed again"
        )
    result = {
        "dir": str(job.folders[0]),
        "items": len(chosen),
        "largest_difference": float(worst[row]),
    }
    weight = store.score_weight()
    if weight is not None:
        result["largest_logit_difference"] = _compare_logits(
            job, encoder, items, cached @ weight.T, tolerance
        )
    return result


@torch.inference_mode()
def one_by_one(encoder: Encoder, items: Any) -> torch.Tensor:
    """Encode rows of items as batches of one, (n, dim) float32 on the CPU."""
    inputs = encoder.prepare(items)
    rows = [
        encoder.encode(encoder.load_batch(inputs, np.array([row])))[0] for row in range(len(items))
    ]
    return torch.cat(rows).float().cpu()


@torch.inference_mode()
def _compare_logits(
    job: Any, encoder: Any, items: Any, scores: torch.Tensor, tolerance: float
) -> float:
    """Return the largest difference between cached feature x score weight and the whole model's
    logit."""
    from transformers import AutoModelForSequenceClassification

    whole = AutoModelForSequenceClassification.from_pretrained(
        job.source.folder,
        dtype=getattr(torch, job.source.config.compute_dtype),
        local_files_only=True,
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
            f"feature x score weight differs from the logit of {job.source.name} by "
            f"{difference:.2g} of the largest; "
            f"check embed.{job.source.name}.pooling, layer and template"
        )
    return difference
