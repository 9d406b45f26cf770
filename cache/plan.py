"""Which item belongs to which shard: a pure function of the item ids, written once."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pal.dataset import ID_BYTES
from pal.errors import CacheError
from pal.files import inflight

DEFAULT_ROWS_PER_SHARD = 8192


@dataclass(frozen=True)
class ShardTask:
    """One unit of work, of commit and of resume: the rows ``start:stop`` of the sorted items."""

    number: int
    total: int
    start: int
    stop: int

    @property
    def stem(self) -> str:
        return f"part-{self.number:05d}-of-{self.total:05d}"

    def __len__(self) -> int:
        return self.stop - self.start


def make_plan(rows: int, rows_per_shard: int) -> list[ShardTask]:
    """Cut ``rows`` sorted items into shards."""
    total = max(1, -(-rows // rows_per_shard))
    return [
        ShardTask(n, total, n * rows_per_shard, min(rows, (n + 1) * rows_per_shard))
        for n in range(total)
    ]


def write_plan(path: Path, item_ids: np.ndarray, tasks: list[ShardTask]) -> None:
    """Write ``item_id, shard, position``; ``item_ids``: (n,) of dtype S16, sorted."""
    shard = np.concatenate([np.full(len(task), task.number, np.int32) for task in tasks])
    position = np.concatenate([np.arange(len(task), dtype=np.int32) for task in tasks])
    buffer = pa.py_buffer(np.ascontiguousarray(item_ids))
    ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), len(item_ids), [None, buffer])
    with inflight(path) as temporary:
        pq.write_table(
            pa.table({"item_id": ids, "shard": shard, "position": position}),
            temporary,
            compression="zstd",
        )
        with suppress(FileExistsError):  # whoever plans first plans for all
            os.link(temporary, path)


def read_plan(path: Path) -> list[ShardTask]:
    """Return the tasks of a written plan; it outlives later changes of ``rows_per_shard``."""
    try:
        shard = pq.read_table(path, columns=["shard"]).column(0).to_numpy()
    except (OSError, pa.ArrowInvalid) as error:
        raise CacheError(
            f"{path} is damaged; remove {path.parent} and run pal embed again"
        ) from error
    sizes = np.bincount(shard)
    stops = np.cumsum(sizes)
    return [
        ShardTask(n, len(sizes), int(stops[n] - sizes[n]), int(stops[n])) for n in range(len(sizes))
    ]
