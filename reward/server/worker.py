"""The threads that touch the model: rows in batches, and between them answers of new users.

On a CPU there are several, each with its own batch and its share of the cores: while one waits for
the interpreter, or for a core that a connection uses, the others go on. A GPU has one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Any

import torch

from pal.config import ServeConfig
from pal.reward.model import RewardModel
from pal.reward.server.batching import AnswersJob, Part, RowsJob, Scored, Turns
from pal.reward.server.metrics import Metrics

ANSWERS_SHARE = 0.5
"""seconds for answers after each second for rows, while rows keep coming"""
QUIET_SECONDS, QUIET_SLICE = 1.0, 0.1
"""after so long without rows answers are encoded for so long at once"""
NEWEST = 0.2
"""weight of the newest measurement in a mean"""
MOST_THREADS = 4
"""each holds the states of its batch in memory, and the interpreter is one for all"""
_settling = threading.Lock()


class Full(Exception):
    """Too much is waiting."""


class Ending(Exception):
    """The server is ending."""


class Worker:
    """Scores rows in batches; users are learned in slices that are short beside a batch."""

    def __init__(
        self, model: RewardModel, settings: ServeConfig, metrics: Metrics, threads: int = 1
    ) -> None:
        """``threads``: how many batches may be at the model at once; it must allow it."""
        self.model, self.settings, self.metrics = model, settings, metrics
        self.turns = Turns(settings.max_batch, settings.max_batch_bytes)
        self.answers: deque[AnswersJob] = deque()
        self.items_waiting = 0
        """items of answers that are not encoded yet"""
        self.pace = Pace()
        self.is_ending = False
        self.busy = 0
        """threads that have something to do"""
        self.cores = torch.get_num_threads()
        self._changed = threading.Condition()
        self.threads = [
            threading.Thread(target=self._run, name=f"reward-model-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        for thread in self.threads:
            thread.start()

    @property
    def is_running(self) -> bool:
        return all(thread.is_alive() for thread in self.threads)

    def submit_rows(self, job: RowsJob) -> Future[Scored]:
        """Queue rows and return the future of their rewards; raises Full and Ending."""
        with self._changed:
            self._require_place(self.turns.waiting, len(job.rows), self.settings.queue)
            self.turns.put(job)
            self._changed.notify()
        return job.future

    def submit_answers(self, job: AnswersJob) -> Future[torch.Tensor]:
        """Queue answers and return the future of their user's vector; raises Full and Ending."""
        with self._changed:
            self._require_place(self.items_waiting, job.left, self.settings.adapt_queue)
            self.answers.append(job)
            self.items_waiting += job.left
            self._changed.notify()
        return job.future

    def require_place(self, items: int) -> None:
        """Raise Full and Ending where so many items of answers would be refused now."""
        with self._changed:
            self._require_place(self.items_waiting, items, self.settings.adapt_queue)

    def _require_place(self, waiting: int, more: int, most: int) -> None:
        if self.is_ending:
            raise Ending
        if waiting + more > most:
            raise Full

    def stop(self) -> None:
        """End after the batches at hand; whoever still waits is told."""
        with self._changed:
            self.is_ending = True
            self._changed.notify_all()
        for thread in self.threads:
            if thread.ident is not None:
                thread.join()
        for rows in self.turns.jobs:
            _fail(rows.future, Ending())
        for answers in self.answers:
            _fail(answers.future, Ending())
        torch.set_num_threads(self.cores)  # new threads have what was set last

    def _run(self) -> None:
        while (parts := self._next()) is not None:
            try:
                if parts:
                    self._score(parts)
                self._learn()
            finally:
                with self._changed:
                    self.busy -= 1

    def _next(self) -> list[Part] | None:
        """Wait for work and return the next batch, which has no parts where only answers wait;
        None at the end."""
        with self._changed:
            if not self._wait():
                return None
            idle = len(self.threads) - self.busy
            self.busy += 1
            parts = self.turns.next_batch(idle)
            is_more = bool(self.turns.jobs or (parts and self.answers))
            if is_more and idle > 1:
                self._changed.notify()
            at_once = min(len(self.threads), self.busy + is_more)
        if len(self.threads) > 1:  # of this thread; what is alone has all cores
            torch.set_num_threads(max(1, self.cores // at_once))
        return parts

    def _wait(self) -> bool:
        """Wait for work, and where it is less than a batch shortly for more; False at the end. What
        has waited enough does so for all threads that share it."""
        while not (self.turns.jobs or self.answers or self.is_ending):
            self._changed.wait()
        while self.turns.jobs and not self.turns.due and not self.is_ending:
            waited = time.monotonic() - min(job.arrived for job in self.turns.jobs)
            left = self.settings.max_wait_ms / 1000 - waited
            if self.turns.left >= self.settings.max_batch or left <= 0:
                self.turns.due = self.turns.left
            else:
                self._changed.wait(left)
        return not self.is_ending

    def _score(self, parts: list[Part]) -> None:
        rows = [row for part in parts for row in part.job.rows[part.rows]]
        vectors = torch.cat([part.job.vectors[part.rows] for part in parts])
        began = time.perf_counter()
        try:
            rewards, failures = self.model.score_rows(rows, vectors)
        except BaseException as error:
            for part in parts:
                _fail(part.job.future, error)
            rewards, failures = torch.zeros(len(rows)), {}
        seconds = time.perf_counter() - began
        self.metrics.batches.inc()
        self.metrics.rows.inc(len(rows))
        start, ready = 0, []
        with self._changed:
            self.pace.batch_took(seconds)
            for part in parts:
                job, stop = part.job, start + part.rows.stop - part.rows.start
                own = {row - start: why for row, why in failures.items() if start <= row < stop}
                job.scored[part.rows.start] = Scored(rewards[start:stop], own)
                if job.is_scored:  # its last part, whichever thread had the others
                    ready.append(job)
                start = stop
            self.turns.waiting -= len(rows)  # who is answered finds the place free
        for job in ready:
            _answer(job.future, job.result())

    def _learn(self) -> None:
        """Encode some answers of the next user; those of all users take turns."""
        with self._changed:
            job = self.answers.popleft() if self.answers else None
        if job is None:
            return
        before = job.left
        found = None if job.future.done() else self._encode(job)
        with self._changed:
            if found is not None or job.future.done():
                self.items_waiting -= before
            else:
                self.items_waiting -= before - job.left
                self.answers.append(job)
        if isinstance(found, BaseException):
            _fail(job.future, found)
        elif found is not None:
            _answer(job.future, found)

    def _encode(self, job: AnswersJob) -> torch.Tensor | BaseException | None:
        """Encode some items, and return what came of all, or why nothing did; None: more wait."""
        count = job.fitting(self.pace.cost_at_once())
        cost = sum(job.costs[job.asked.encoded :][:count])
        began = time.perf_counter()
        try:
            job.asked.encode(count)
            self.pace.answers_took(time.perf_counter() - began, cost)
            return None if job.left else job.asked.solve()
        except BaseException as error:
            return error


def threads_for(model: RewardModel) -> int:
    """Return how many batches a model is given at once."""
    can_share = model.encoder.device == "cpu" and model.encoder.may_run_at_once
    return min(torch.get_num_threads(), MOST_THREADS) if can_share else 1


class Pace:
    """How much of the answers fits between two batches of rows, by what both took lately.

    A slice of few items takes hardly less than one of some more, so that what an item takes cannot
    be told from one slice: slices grow until they take the time that they may, and shrink after.
    """

    def __init__(self) -> None:
        self.batch_seconds, self.last_batch = 0.0, -QUIET_SECONDS
        self.cost_per_second = 1.0

    def batch_took(self, seconds: float) -> None:
        self.batch_seconds += NEWEST * (seconds - self.batch_seconds)
        self.last_batch = time.monotonic()

    def answers_took(self, seconds: float, cost: int) -> None:
        wanted = self.slice_seconds()
        is_whole = 2 * cost >= self.cost_per_second * wanted  # and not the end of a user's answers
        if is_whole or seconds > wanted:
            self.cost_per_second *= min(2.0, max(0.5, wanted / seconds))

    def slice_seconds(self) -> float:
        is_quiet = time.monotonic() - self.last_batch > QUIET_SECONDS
        return QUIET_SLICE if is_quiet else ANSWERS_SHARE * self.batch_seconds

    def cost_at_once(self) -> float:
        """Return the cost of answers to encode now."""
        return self.cost_per_second * self.slice_seconds()


def _answer(future: Future[Any], result: Any) -> None:
    if _is_ours(future):
        future.set_result(result)


def _fail(future: Future[Any], error: BaseException) -> None:
    if _is_ours(future):
        future.set_exception(error)


def _is_ours(future: Future[Any]) -> bool:
    """Say whether nobody has answered, given up or failed yet; from now on nobody else does."""
    with _settling:
        if future.done() or future.running():
            return False
        return future.set_running_or_notify_cancel()
