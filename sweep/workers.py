"""Stacks of a sweep spread over the devices of this machine: a process for each, which takes the
next stack when it is done.

Heads are small, so a device gains more from stacks of its own than from a share of every batch:
nothing is exchanged but what comes of a stack. Each device has a ``ProcessPoolExecutor`` of one
process: a single pool of several would hand stacks out just as well, but could not say which
process has which device.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch

from pal.config import Config
from pal.errors import TrainError
from pal.memory import kept
from pal.sweep.stacks import Outcome, Stack, StackTrainer


def devices_of(workers: int | str, device: str) -> list[str]:
    """Return the device of each worker; ``auto``: every GPU, where any GPU may be taken, and else
    one worker."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    count = max(1, gpus) if workers == "auto" else int(workers)
    return [f"cuda:{number % gpus}" if gpus else device for number in range(count)]


class Workers:
    """Processes that train stacks of one sweep, one for each device, alive until ``close``.

    They end with the process that made them, however that ends.
    """

    def __init__(self, config: Config, name: str, devices: Sequence[str]) -> None:
        context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
        threads = max(1, torch.get_num_threads() // len(devices))
        self.pools = [
            ProcessPoolExecutor(1, context, _start, (config, name, device, threads))
            for device in devices
        ]
        before = set(multiprocessing.active_children())
        with _not_interrupted():
            for pool in self.pools:
                pool.submit(os.getpid)  # a pool starts its process for its first task
        self.processes = set(multiprocessing.active_children()) - before

    def train(self, stacks: Sequence[Stack]) -> Iterator[Outcome]:
        """Train stacks; yields what comes of each as it is done, in no order.

        Raises TrainError if a worker dies, after what was finished by then. It is not tried again:
        memory that ran out here would run out again.
        """
        waiting = iter(stacks)
        running: dict[Future[bytes], ProcessPoolExecutor] = {}
        idle = list(self.pools)
        while True:
            for pool, stack in zip(idle, waiting, strict=False):
                running[pool.submit(_train, stack)] = pool
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            idle = [running.pop(future) for future in finished]
            for future in sorted(finished, key=lambda one: one.exception() is not None):
                yield _result(future)

    def close(self) -> None:
        """End all processes; a stack that one of them is at is lost."""
        for process in self.processes:
            process.terminate()
        for pool in self.pools:
            pool.shutdown(cancel_futures=True)


def _result(future: Future[bytes]) -> Outcome:
    try:
        outcome: Outcome = pickle.loads(future.result())
        return outcome
    except BrokenProcessPool as error:
        raise TrainError(
            "a sweep worker was ended from outside, perhaps as memory ran out; run the sweep again"
        ) from error


@contextmanager
def _not_interrupted() -> Iterator[None]:
    """Start processes that do not hear Ctrl-C, not even while they import: this one ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


_trainer: StackTrainer | None = None
"""that of this worker process"""


def _start(config: Config, name: str, device: str, threads: int) -> None:
    global _trainer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _trainer = StackTrainer(config, name, device)


@kept()
def _train(stack: Stack) -> bytes:
    assert _trainer is not None, "_start made it"
    # as bytes: torch would send tensors as open files, which end with the process that they are of
    return pickle.dumps(_trainer.train(stack))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
