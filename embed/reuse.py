"""What other caches hold of a shard's items is put among what is encoded now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from pal.cache.donors import Known
from pal.cache.plan import ShardTask
from pal.cache.records import Receipt, Seconds
from pal.cache.spec import store_dtype
from pal.cache.writer import CacheWriter, EncodedShard
from pal.embed.storage import moments

TAKEN_OVER = {"pal": "taken over from other caches of the same encoder"}
"""what receipts call the maker of a shard of which nothing was encoded"""


def known_to_all(known: Sequence[Known], item_ids: np.ndarray) -> np.ndarray:
    """Return which items are known in every tap, (n,) bool; one ``Known`` for each."""
    if not known:
        return np.zeros(len(item_ids), bool)
    return np.logical_and.reduce([one.has(item_ids) for one in known])


def take_over(
    writers: Sequence[CacheWriter],
    known: Sequence[Known],
    tasks: Iterable[ShardTask],
    item_ids: np.ndarray,
) -> Iterator[Receipt]:
    """Commit the shards of which every item is known, which takes no model; yields their receipts
    of the first tap. ``item_ids``: (n,) S16, all of the plan."""
    for task in tasks:
        ids = item_ids[task.start : task.stop]
        if len(ids) and known_to_all(known, ids).all():
            parts = zip(writers, known_shards(writers, known, ids), strict=True)
            receipts = [writer.commit(task, shard, TAKEN_OVER) for writer, shard in parts]
            yield receipts[0]


def known_shards(
    writers: Sequence[CacheWriter], known: Sequence[Known], ids: np.ndarray
) -> list[EncodedShard]:
    """Return shards of items that are all known, one per tap."""
    found = []
    for writer, one in zip(writers, known, strict=True):
        dtype, rows = store_dtype(writer.spec), one.rows(ids)
        told = moments(rows.features, dtype)
        found.append(
            EncodedShard(ids, *rows, dtype, told, Seconds(), tokens_real=0, reused=len(ids))
        )
    return found


def joined(
    encoded: EncodedShard, known: Known, item_ids: np.ndarray, own: np.ndarray
) -> EncodedShard:
    """Return a shard with the known items put in between, in the order of the plan.

    ``item_ids``: (n,) all items of the task; ``own``: (n,) bool, which of them are known.
    """
    if not own.any():
        return encoded
    names = np.concatenate([encoded.item_ids, item_ids[own]])
    place = {bytes(name): number for number, name in enumerate(item_ids)}
    order = np.argsort([place[bytes(name)] for name in names], kind="stable")
    rows = known.rows(item_ids[own])
    features = np.concatenate([encoded.features, rows.features])[order]
    return replace(
        encoded,
        item_ids=names[order],
        n_tokens=np.concatenate([encoded.n_tokens, rows.n_tokens])[order],
        truncated=np.concatenate([encoded.truncated, rows.truncated])[order],
        features=features,
        statistics=moments(features, encoded.dtype),
        reused=int(own.sum()),
    )
