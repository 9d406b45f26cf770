"""Stacks of a sweep as tasks of a Ray cluster.

A stack is one task: one that is lost with its worker or node is done again elsewhere. What comes of
it goes to the process that asked, which alone writes results. Features go to each node once, into
memory that its tasks share, or, where they are too large for it, stay in the cache's files; dataset
and cache are read from a folder that all nodes see.
"""

from __future__ import annotations

import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import torch

from pal.cluster import RETRIES, Lost, joined
from pal.config import Config
from pal.errors import ConfigError, PalError
from pal.evaluate.inputs import open_inputs
from pal.sweep.fit import choose_width
from pal.sweep.lent import lendable
from pal.sweep.plan import Candidate
from pal.sweep.stacks import Outcome, Stack, StackTrainer
from pal.train.probe import choose_device


class Job(NamedTuple):
    """What all tasks of a sweep are told."""

    token: str
    """of this sweep alone: a worker process may have served another before"""
    config: Config
    name: str
    device: str


class RayWorkers:
    """The tasks of one sweep on a Ray cluster, which is joined or started here until ``close``."""

    def __init__(self, config: Config, name: str) -> None:
        settings = config.sweep
        workers = None if settings.workers == "auto" else settings.workers
        self._open = ExitStack()
        here = max(workers or 1, torch.get_num_threads())
        self.cluster = self._open.enter_context(joined(settings.ray_address, here))
        self.share = self.cluster.share(workers, config.train.device != "cpu", for_nodes=True)
        self.folder = Path.cwd()
        job = Job(uuid4().hex, config, name, self.share.device)
        self._job = self.cluster.put(job)
        self._lent: tuple[tuple[str, ...], Any] = ((), None)
        self._running: Generator[tuple[int, Any], None, None] | None = None

    def train(self, stacks: Sequence[Stack]) -> Iterator[Outcome]:
        """Train stacks; yields what comes of each as it is done, in no order."""
        calls = ((self._job, self._features(stack.members[0]), stack) for stack in stacks)
        self._running = self.cluster.run(self.share, _train, calls, self.folder)
        for number, found in self._running:
            if isinstance(found, Lost):
                why = f"its worker was lost {1 + RETRIES} times ({found.reason})"
                yield Outcome.failed(stacks[number], why)
            else:
                yield found

    def choose_width(self, group: Sequence[Candidate]) -> tuple[int, list[str]]:
        """Return how many heads of a group to train together, as a node finds it, and what is worth
        a word."""
        calls = [(self._job, self._features(group[0]), group)]
        ((_, found),) = self.cluster.run(self.share, _choose, calls, self.folder)
        return (1, []) if isinstance(found, Lost) else found

    def close(self) -> None:
        """Leave the cluster; a stack that one of its workers is at is lost."""
        if self._running is not None:
            self._running.close()
        self._lent = ((), None)
        self._open.close()

    def _features(self, one: Candidate) -> Any:
        """Return a reference to the features of a head, None where they stay in the cache's files:
        those of the last cache are kept, as stacks come world by world."""
        where = one.config.train.features
        wanted = (one.digests.cache, where)
        if self._lent[0] != wanted:
            self._lent = ((), None)
            try:
                lent = lendable(open_inputs(one.config)[1], where)
            except PalError:
                lent = None  # the stack fails by itself, in the same words
            self._lent = (wanted, None if lent is None else self.cluster.put(lent))
        return self._lent[1]


_held: tuple[str, StackTrainer] | None = None
"""token and trainer of this worker process: a world stays for the next stack of the sweep"""


def _trainer(job: Job, lent: np.ndarray | None) -> StackTrainer:
    global _held
    if _held is None or _held[0] != job.token:
        paths, dataset = job.config.paths, job.config.dataset
        if not (paths.data / dataset).is_dir():
            raise ConfigError(
                f"node {socket.gethostname()} of the Ray cluster does not see "
                f"{Path.cwd() / paths.data / dataset}; a sweep needs a folder that all nodes share"
            )
        _held = None  # its features, before there are others
        _held = job.token, StackTrainer(job.config, job.name, choose_device(job.device))
    _held[1].worlds.lent = lent
    return _held[1]


def _train(job: Job, lent: np.ndarray | None, stack: Stack) -> Outcome:
    return _trainer(job, lent).train(stack)


def _choose(job: Job, lent: np.ndarray | None, group: Sequence[Candidate]) -> tuple[int, list[str]]:
    lines: list[str] = []
    return choose_width(_trainer(job, lent).worlds, group, lines.append), lines
