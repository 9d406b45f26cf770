"""One shard at a time: read, encode, commit. Reading the next and writing the last happen meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pal.cache.plan import ShardTask
from pal.cache.writer import CacheWriter, EncodedShard
from pal.embed.batching import padded_tokens
from pal.embed.encoder import Encoder, Inputs
from pal.embed.storage import moments
from pal.errors import EncoderError, PalError
from pal.tables import ID_BYTES


@dataclass
class _Read:
    item_ids: np.ndarray
    inputs: Inputs
    seconds: float


class ShardRunner:
    """Holds a loaded encoder and does tasks; every executor gives it the same work in any order."""

    def __init__(
        self, encoder: Encoder, items: Any, writer: CacheWriter, device: str, producer: dict[str, str]
    ) -> None:
        """``items``: the pyarrow Table of ``items.parquet``, sorted by id, as the plan numbers them."""
        self.encoder = encoder
        self.items = items
        self.writer = writer
        self.device = device
        self.producer = producer

    def run(self, tasks: Sequence[ShardTask]) -> Iterator[dict[str, Any]]:
        """Do the tasks in order and yield each receipt once its shard is committed."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as committer:
            following = reader.submit(self._read, tasks[0]) if tasks else None
            committing: Future[dict[str, Any]] | None = None
            for number, task in enumerate(tasks):
                assert following is not None
                began = time.perf_counter()
                read = following.result()
                waited = time.perf_counter() - began
                if number + 1 < len(tasks):
                    following = reader.submit(self._read, tasks[number + 1])
                encoded = self._encode(read, waited)
                if committing is not None:
                    yield committing.result()
                committing = committer.submit(self.writer.commit, task, encoded, self.producer)
            if committing is not None:
                yield committing.result()

    def _read(self, task: ShardTask) -> _Read:
        began = time.perf_counter()
        rows = self.items.slice(task.start, len(task))
        ids = np.array(rows.column("item_id").to_pylist(), dtype="S16")
        return _Read(ids, self.encoder.prepare(rows), time.perf_counter() - began)

    def _encode(self, read: _Read, waited: float) -> EncodedShard:
        began = time.perf_counter()
        inputs, total = read.inputs, len(read.item_ids)
        dtype = self.writer.spec["encoder"]["store_dtype"]
        stored: np.ndarray | None = None
        failures = dict(inputs.failures)
        padded = 0
        for batch in self.encoder.batches(inputs):
            rows = np.array([row for row in batch if row not in failures], dtype=np.int64)
            if not len(rows):
                continue
            padded += padded_tokens(inputs.n_tokens, rows)
            for part, values in self._encode_batch(inputs, rows, failures):
                if stored is None:
                    stored = np.zeros((total, values.shape[1]), np.uint8)
                stored[part] = values
                for row in part[~self.encoder.is_finite(values)]:
                    failures[int(row)] = ("nonfinite", "NonFinite", "the feature holds NaN or infinity")
        if stored is None:
            examples = sorted({message for _, _, message in failures.values()})
            raise EncoderError(f"no item of a whole shard of {total} could be encoded: {'; '.join(examples[:3])}")
        kept = np.array([row for row in range(total) if row not in failures], dtype=np.int64)
        return EncodedShard(
            item_ids=read.item_ids[kept],
            n_tokens=inputs.n_tokens[kept],
            truncated=inputs.truncated[kept],
            features=stored[kept],
            dtype=dtype,
            errors=[
                {
                    "item_id": bytes(read.item_ids[row]).ljust(ID_BYTES, b"\0"),
                    "stage": stage,
                    "error_class": kind,
                    "message": message,
                    "attempts": 1,
                }
                for row, (stage, kind, message) in sorted(failures.items())
            ],
            seconds={"read": read.seconds, "wait": waited, "encode": time.perf_counter() - began},
            statistics=moments(stored[kept], dtype),
            measures={
                "tokens_real": int(inputs.n_tokens[kept].sum()),
                "tokens_padded": padded,
                "device": self.device,
            },
        )

    def _encode_batch(
        self, inputs: Inputs, rows: np.ndarray, failures: dict[int, tuple[str, str, str]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Encode a batch whole; if that fails, item by item, so that one bad item costs only itself."""
        try:
            yield rows, self.encoder.encode(inputs, rows)
            return
        except PalError:
            raise
        except Exception as error:
            if len(rows) == 1:
                failures[int(rows[0])] = ("encode", type(error).__name__, str(error)[:500])
                return
        for row in rows:
            yield from self._encode_batch(inputs, np.array([row]), failures)
