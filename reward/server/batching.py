"""The one thread that touches the model: requests wait in a bounded queue and become batches."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pal.config import ServeConfig
from pal.errors import RewardError
from pal.reward.model import RewardModel, Row
from pal.reward.server.metrics import Metrics


class Full(Exception):
    """The queue is full."""


@dataclass
class RowsJob:
    """Rows that one request waits for: its rewards, a list of float."""

    rows: Sequence[Row]
    vectors: Tensor
    """(n, R) of the rows' users"""
    future: Future[list[float]] = field(default_factory=Future)

    @property
    def size(self) -> int:
        return len(self.rows)


@dataclass
class CallJob:
    """A call that only the model's thread may make."""

    call: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
    size = 1


Job = RowsJob | CallJob


class Worker:
    """Scores jobs in batches of at most ``max_batch`` rows; each job gets its own rows' rewards."""

    def __init__(self, model: RewardModel, settings: ServeConfig, metrics: Metrics) -> None:
        self.model, self.settings, self.metrics = model, settings, metrics
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.waiting = 0
        """rows accepted and not yet answered"""
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, name="reward-model", daemon=True)

    def submit(self, job: Job) -> Future[Any]:
        """Queue a job and return its future; raises Full.

        A request larger than the whole queue is taken only by an idle one.
        """
        with self._lock:
            if self.waiting and self.waiting + job.size > self.settings.queue:
                raise Full
            self.waiting += job.size
        self.jobs.put(job)
        return job.future

    def stop(self) -> None:
        """Do what was accepted, then end."""
        self.jobs.put(None)
        self.thread.join()

    def _run(self) -> None:
        running = True
        while running:
            batch, running = self._next_batch()
            self._do(batch)
            with self._lock:
                self.waiting -= sum(job.size for job in batch)

    def _next_batch(self) -> tuple[list[Job], bool]:
        """Wait for jobs; return some of them, and whether more may come."""
        first = self.jobs.get()
        if first is None:
            return [], False
        batch, size = [first], first.size
        until = time.monotonic() + self.settings.max_wait_ms / 1000
        while size < self.settings.max_batch:
            try:
                job = self.jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                return batch, False
            batch.append(job)
            size += job.size
        return batch, True

    def _do(self, batch: list[Job]) -> None:
        """Answer jobs; one whose request has gone away is left out."""
        wanted = [job for job in batch if job.future.set_running_or_notify_cancel()]
        for job in wanted:
            if isinstance(job, CallJob):
                try:
                    job.future.set_result(job.call())
                except BaseException as error:
                    job.future.set_exception(error)
        self._score([job for job in wanted if isinstance(job, RowsJob)])

    def _score(self, jobs: list[RowsJob]) -> None:
        rows = [row for job in jobs for row in job.rows]
        if not rows:
            return
        try:
            vectors = torch.cat([job.vectors for job in jobs])
            rewards, failures = self.model.score_rows(rows, vectors)
        except BaseException as error:
            for job in jobs:
                job.future.set_exception(error)
            return
        self.metrics.batches.inc()
        self.metrics.rows.inc(len(rows))
        start = 0
        for job in jobs:
            stop = start + job.size
            bad = [row for row in failures if start <= row < stop]
            if bad:
                first = min(bad)
                job.future.set_exception(
                    RewardError(f"row {first - start} cannot be scored: {failures[first]}")
                )
            else:
                job.future.set_result(rewards[start:stop].tolist())
            start = stop
