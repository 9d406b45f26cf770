"""Do a model's features keep their values in ``mixed``? A few items, encoded in both, tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pal.cache.spec import encoder_of
from pal.embed.arithmetic import FAST
from pal.embed.devices import devices_of, token_budget
from pal.embed.digests import DigestMemory, Fidelity
from pal.embed.encoder import load
from pal.embed.job import Job
from pal.embed.odd import Failures
from pal.errors import EncoderError, in_a_line
from pal.files import digest
from pal.items import Item, items_of

FAITHFUL = 0.9999
"""smallest cosine between a feature in ``mixed`` and the same in float32"""
SAMPLE = 64


def known_fidelity(job: Job) -> Fidelity | None:
    """Return what was found of the job's encoder, None as long as nobody has tried."""
    return _memory(job).fidelities.get(_key(job))


def learn_fidelity(fast: Job, exact: Job) -> None:
    """Encode a few items of a dataset in both arithmetics, and remember what becomes of them."""
    table = fast.items()
    rows = np.unique(np.linspace(0, len(table) - 1, min(SAMPLE, len(table))).astype(int))
    items = items_of(table.take(rows))
    wanted = _features(exact, items)
    try:
        found = _features(fast, items)
        fidelity = _compared(wanted, found)
    except (EncoderError, RuntimeError, TypeError, ValueError) as error:
        message = in_a_line(error)[:200]
        fidelity = Fidelity(reason=f"since it cannot compute in {FAST} ({message})")
    memory = _memory(fast)
    memory.remember_fidelity(_key(fast), fidelity)
    memory.save()


def _compared(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Fidelity:
    """Compare the features of each tap, (n, dim); rows that float32 has not count for nothing, and
    rows that only ``mixed`` has not, as zeros, make it unfaithful."""
    least = 1.0
    for exact, fast in zip(wanted, found, strict=True):
        is_there = exact.isfinite().all(dim=1) & (exact != 0).any(dim=1)
        cosines = torch.nn.functional.cosine_similarity(exact, fast, dim=1)[is_there]
        least = min([least, *cosines.nan_to_num(0.0).tolist()])
    reason = f"since {FAST} keeps its features only to a cosine of {least:.5f}"
    return Fidelity(cosine=least, reason="" if least >= FAITHFUL else reason)


@torch.inference_mode()
def _features(job: Job, items: Sequence[Item]) -> list[torch.Tensor]:
    """Return the features of some items in each tap, (n, dim) float64; zeros where it fails."""
    device = devices_of(job.config.embed, job.source.config)[0]
    encoder = load(job.source, device, token_budget(device), job.layers, False)
    inputs = encoder.prepare(items)
    failures: Failures = {}
    taps: list[torch.Tensor] = []
    for rows in encoder.batches(inputs):
        batch = encoder.load_batch(inputs, rows)
        for encoded, features in encoder.encode_each(inputs, batch, failures):
            if not taps:
                taps = [
                    torch.zeros(len(items), one.shape[1], dtype=torch.double) for one in features
                ]
            for tap, feature in zip(taps, features, strict=True):
                tap[torch.from_numpy(encoded)] = feature.double().cpu()
    if not taps:
        reasons = sorted({failure.message for failure in failures.values()})
        raise EncoderError(f"{job.source.name} encodes none of its items: {'; '.join(reasons[:3])}")
    return taps


def _memory(job: Job) -> DigestMemory:
    return DigestMemory(job.config.paths.cache / ".digests.json")


def _key(job: Job) -> str:
    return digest([encoder_of(spec) for spec in job.specs], 16)
