"""Which item belongs to which shard: a pure function of the item ids, written once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pal.files import atomic_file
from pal.items import ID_BYTES
from pal.records import Damaged, read_table, write_table

PLAN = "plan.parquet"
MOST_ROWS, FEWEST_ROWS, SHARDS = 8192, 512, 16
"""of a shard by default: few items are cut into several, so that a kill loses a share of them; many
into shards of the same size, whose overhead no longer shows"""


@dataclass(frozen=True)
class ShardTask:
    """One unit of work, of commit and of resume: the rows ``start:stop`` of the items."""

    number: int
    total: int
    start: int
    stop: int
    items: str
    """digest of the ids of these items: a receipt that has another is of another plan"""

    @property
    def stem(self) -> str:
        return f"part-{self.number:05d}-of-{self.total:05d}"

    def __len__(self) -> int:
        return self.stop - self.start


def default_rows(items: int) -> int:
    """Return the items of a shard where the user says nothing."""
    return min(max(-(-items // SHARDS), FEWEST_ROWS), MOST_ROWS)


def make_plan(item_ids: np.ndarray, rows_per_shard: int) -> list[ShardTask]:
    """Cut items, (n,) S16 in the order of encoding, into shards."""
    starts = range(0, max(1, len(item_ids)), rows_per_shard)
    return _tasks(item_ids, [min(rows_per_shard, len(item_ids) - start) for start in starts])


def write_plan(path: Path, item_ids: np.ndarray, tasks: list[ShardTask], owner: str) -> None:
    """Write ``item_id, shard, position``; the caller sees to it that who plans first plans for all.

    ``owner`` is the fingerprint of the cache.
    """
    shard = np.concatenate([np.full(len(task), task.number, np.int32) for task in tasks])
    position = np.concatenate([np.arange(len(task), dtype=np.int32) for task in tasks])
    buffer = pa.py_buffer(np.ascontiguousarray(item_ids))
    ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), len(item_ids), [None, buffer])
    with atomic_file(path) as temporary:
        table = pa.table({"item_id": ids, "shard": shard, "position": position})
        write_table(temporary, table, "plan", of=owner)


def read_plan(path: Path, item_ids: np.ndarray, owner: str) -> list[ShardTask]:
    """Return the tasks of a written plan; it outlives later changes of ``rows_per_shard``.

    Raises Damaged unless it is sound, of this cache, and of these items in this order.
    """
    table = read_table(path, "plan", of=owner)
    ids = np.array(table.column("item_id").to_pylist(), dtype=f"S{ID_BYTES}")
    if not np.array_equal(ids, item_ids):
        raise Damaged("is of other items, or of another order of them")
    shard = table.column("shard").to_numpy()
    return _tasks(item_ids, np.bincount(shard, minlength=1).tolist())


def _tasks(item_ids: np.ndarray, sizes: Iterable[int]) -> list[ShardTask]:
    stops = np.cumsum(list(sizes)).tolist()
    starts = [0, *stops[:-1]]
    return [
        ShardTask(number, len(stops), start, stop, _digest(item_ids[start:stop]))
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]


def _digest(item_ids: np.ndarray) -> str:
    return hashlib.blake2b(item_ids.tobytes(), digest_size=16).hexdigest()
