"""One shard at a time: read, encode, commit; reading ahead and writing happen meanwhile."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from pal.cache.donors import Known
from pal.cache.failures import FailedItem
from pal.cache.plan import ShardTask
from pal.cache.records import Receipt, Seconds
from pal.cache.spec import encoder_of, store_dtype
from pal.cache.writer import CacheWriter, EncodedShard
from pal.embed.encoder import Batch, Encoder, Inputs
from pal.embed.encoders.mixed import product_dtype
from pal.embed.odd import Failures
from pal.embed.peak import matrix_rate
from pal.embed.reuse import joined, known_shards, known_to_all
from pal.embed.storage import moments, to_stored, unstorable
from pal.embed.transfer import Leaving
from pal.errors import EncoderError
from pal.items import ID_BYTES, items_of

BATCHES_AHEAD = 2
MOST_LOADERS = 16


@dataclass
class _Read:
    item_ids: np.ndarray
    """all of the task"""
    known: np.ndarray
    """(n,) bool, which of them need no encoding"""
    inputs: Inputs
    """of the others"""
    attempts: dict[bytes, int]
    seconds: float


@dataclass
class _Done:
    """What has been encoded of a shard so far: one array of stored bytes per tap."""

    rows: int
    taps: int
    failures: Failures
    stored: list[np.ndarray | None] = field(init=False)
    """per tap: (rows, dim * itemsize) uint8"""
    is_stored: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.stored = [None] * self.taps
        self.is_stored = np.zeros(self.rows, bool)

    def store(self, rows: np.ndarray, features: list[torch.Tensor], dtype: str) -> None:
        """Bring features into their rows; what is not finite becomes a failure."""
        for tap, feature in enumerate(features):
            values = to_stored(feature, dtype)
            stored = self.stored[tap]
            if stored is None:
                stored = self.stored[tap] = np.zeros((self.rows, values.shape[1]), np.uint8)
            stored[rows] = values
            odd = unstorable(feature, values, dtype)
            self.failures.update({int(rows[place]): why for place, why in odd.items()})
        self.is_stored[rows] = True


@contextmanager
def _threads_of_one(count: int) -> Iterator[ThreadPoolExecutor]:
    """Start threads that each compute alone: the threads that torch would start in every one of
    them, for single images, keep each other waiting."""
    usual = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield threads
    finally:
        torch.set_num_threads(usual)  # what threads that are started later have


class ShardRunner:
    """Holds a loaded encoder and does tasks; every engine gives it the same work in any order."""

    def __init__(
        self,
        encoder: Encoder,
        items: pa.Table,
        writers: Sequence[CacheWriter],
        device: str,
        producer: dict[str, str],
        loaders: int | None = None,
        known: Sequence[Known] = (),
    ) -> None:
        """``items``: rows in the order of the plan; one writer per tap of the encoder, and what
        other caches have for it."""
        self.encoder = encoder
        self.items = items
        self.writers = list(writers)
        self.dtype = store_dtype(self.writers[0].spec)
        self.known = list(known)
        self.device = device
        self.producer = producer
        self.peak: float | None = None
        """operations per second of the device's matrix product, measured when first needed"""
        self.loaders = loaders or min(MOST_LOADERS, os.cpu_count() or 1)

    def run(self, tasks: Iterable[ShardTask]) -> Iterator[Receipt]:
        """Do the tasks in order, asking for each when the one before is read; yields each one's
        receipt (of the first tap) once committed."""
        with (
            ThreadPoolExecutor(1) as reader,
            _threads_of_one(self.loaders) as self._loading,
            ThreadPoolExecutor(1) as committer,
        ):
            waiting = iter(tasks)
            task = next(waiting, None)
            following = None if task is None else reader.submit(self._read, task)
            committing: Future[Receipt] | None = None
            while task is not None and following is not None:
                began = time.perf_counter()
                read = following.result()
                waited = time.perf_counter() - began
                after = next(waiting, None)
                following = None if after is None else reader.submit(self._read, after)
                encoded = self._encode(read, waited)
                if committing is not None:
                    yield committing.result()
                committing = committer.submit(self._commit, task, encoded)
                task = after
            if committing is not None:
                yield committing.result()

    def _read(self, task: ShardTask) -> _Read:
        began = time.perf_counter()
        rows = self.items.slice(task.start, len(task))
        ids = np.array(rows.column("item_id").to_pylist(), dtype="S16")
        attempts = self.writers[0].earlier_attempts(task)
        known = known_to_all(self.known, ids)
        new = rows.filter(pa.array(~known)) if known.any() else rows
        inputs = self.encoder.prepare(items_of(new))
        return _Read(ids, known, inputs, attempts, time.perf_counter() - began)

    def _commit(self, task: ShardTask, encoded: list[EncodedShard]) -> Receipt:
        receipts = [
            w.commit(task, shard, self.producer)
            for w, shard in zip(self.writers, encoded, strict=True)
        ]
        return receipts[0]

    def _encode(self, read: _Read, waited: float) -> list[EncodedShard]:
        """Encode a shard; one batch stays on the device while the next is begun."""
        began = time.perf_counter()
        if read.known.all() and len(read.known):
            return known_shards(self.writers, self.known, read.item_ids)
        new = len(read.known) - int(read.known.sum())
        done = _Done(new, len(self.writers), dict(read.inputs.failures))
        padded = 0
        running: tuple[np.ndarray, Leaving] | None = None
        for batch, wait in self._loaded(read.inputs):
            waited += wait
            padded += batch.padded
            for rows, features in self.encoder.encode_each(read.inputs, batch, done.failures):
                leaving = Leaving(features)
                if running is not None:
                    done.store(running[0], running[1].arrived(), self.dtype)
                running = rows, leaving
        if running is not None:
            done.store(running[0], running[1].arrived(), self.dtype)
        if not done.is_stored.any():
            done.stored = self._no_rows(done)
        seconds = Seconds(read=read.seconds, wait=waited, encode=time.perf_counter() - began)
        return self._shards(read, done, padded, seconds)

    def _no_rows(self, done: _Done) -> list[np.ndarray | None]:
        """Return the values of a shard in which every item failed; their width must be known."""
        widths = [writer.width() for writer in self.writers]
        if self.known:
            widths = [one.width for one in self.known]
        if None in widths:
            examples = sorted({failure.message for failure in done.failures.values()})
            raise EncoderError(
                f"none of the first {done.rows} items could be encoded: {'; '.join(examples[:3])}"
            )
        return [np.zeros((done.rows, width or 0), np.uint8) for width in widths]

    def fraction_of_peak(self, inputs: Inputs, rows: np.ndarray, seconds: float) -> float | None:
        """Return the share of the GPU's matrix rate that the real tokens of some rows reached."""
        flops = self.encoder.flops(inputs, rows) if self.device.startswith("cuda") else 0.0
        if not flops:
            return None
        if self.peak is None:
            dtype = str(encoder_of(self.writers[0].spec)["compute_dtype"])
            self.peak = matrix_rate(self.device, product_dtype(dtype))
        return round(flops / max(seconds, 1e-9) / self.peak, 4)

    def _loaded(self, inputs: Inputs) -> Iterator[tuple[Batch, float]]:
        """Yield the batches in order, and how long each was waited for."""
        ahead: deque[Future[Batch]] = deque()
        numbers = self.encoder.batches(inputs)

        def submit() -> None:
            for rows in numbers:
                ahead.append(self._loading.submit(self.encoder.load_batch, inputs, rows))
                return

        for _ in range(self.loaders + BATCHES_AHEAD):
            submit()
        while ahead:
            began = time.perf_counter()
            batch = ahead.popleft().result()
            waited = time.perf_counter() - began
            submit()
            yield batch, waited

    def _shards(
        self, read: _Read, done: _Done, padded: int, seconds: Seconds
    ) -> list[EncodedShard]:
        """Return what there is to commit, one shard per tap."""
        inputs = read.inputs
        kept = np.array(
            [row for row in range(done.rows) if row not in done.failures], dtype=np.int64
        )
        new = read.item_ids[~read.known]
        names = [bytes(value).ljust(ID_BYTES, b"\0") for value in new]
        errors = [
            FailedItem(names[row], *failure, attempts=read.attempts.get(names[row], 0) + 1)
            for row, failure in sorted(done.failures.items())
        ]
        fraction = self.fraction_of_peak(inputs, kept, seconds.encode)
        shards = []
        for stored in done.stored:
            assert stored is not None
            shards.append(
                EncodedShard(
                    item_ids=new[kept],
                    n_tokens=inputs.n_tokens[kept],
                    truncated=inputs.truncated[kept],
                    features=stored[kept],
                    dtype=self.dtype,
                    statistics=moments(stored[kept], self.dtype),
                    seconds=seconds,
                    errors=errors,
                    tokens_real=int(inputs.n_tokens[kept].sum()),
                    tokens_padded=padded,
                    answers_cut=inputs.answers_cut,
                    device=self.device,
                    fraction_of_peak=fraction,
                )
            )
        if not self.known:
            return shards
        both = zip(shards, self.known, strict=True)
        return [joined(shard, one, read.item_ids, read.known) for shard, one in both]
