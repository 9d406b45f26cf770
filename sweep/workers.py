"""Stacks of a sweep spread over devices: one process for each, which takes the next stack when it
is done.

Heads are small, so a device gains more from stacks of its own than from a share of every batch:
nothing is exchanged but the finished rows, which go through the results file under its lock.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from pal.errors import TrainError
from pal.sweep.plan import Candidate

if TYPE_CHECKING:
    from pal.sweep.fit import Sweep

PATIENCE = 1.0
"""seconds without news after which the parent looks whether all workers live"""


def devices_of(workers: int | str, device: str) -> list[str]:
    """Return the device of each worker; ``auto``: every GPU, where any GPU may be taken, and else
    one worker."""
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    count = max(1, gpus) if workers == "auto" else int(workers)
    return [f"cuda:{number % gpus}" if gpus else device for number in range(count)]


class Workers:
    """Processes that train stacks of one sweep, alive until ``close``; they end with the process
    that made them."""

    def __init__(
        self, make: Callable[..., Sweep], devices: Sequence[str], report: Callable[[str], None]
    ) -> None:
        """``make(device, report)`` gives a worker its sweep; it is pickled, so it holds no open
        file or lambda."""
        context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
        self.tasks: Any = context.Queue()
        self.news: Any = context.Queue()
        self.report = report
        threads = max(1, torch.get_num_threads() // len(devices))
        self.processes = [
            context.Process(
                target=_work, args=(make, device, threads, self.tasks, self.news), daemon=True
            )
            for device in devices
        ]
        for process in self.processes:
            process.start()

    def train(self, stacks: Sequence[tuple[list[Candidate], bool]]) -> Iterator[int]:
        """Train stacks, each with whether it is one; yields the heads of each as it is done, in no
        order.

        Raises TrainError if a worker dies or fails; what was finished is on disk by then.
        """
        waiting, missing = iter(stacks), len(stacks)
        for stack in islice(
            waiting, len(self.processes) + 1
        ):  # a full pipe would keep this process from ending
            self.tasks.put(stack)
        while missing:
            try:
                kind, value = self.news.get(timeout=PATIENCE)
            except queue.Empty:
                dead = [process.exitcode for process in self.processes if not process.is_alive()]
                if dead:
                    raise TrainError(
                        f"a sweep worker ended (exit code {dead[0]}); run the sweep again"
                    ) from None
                continue
            if kind == "error":
                raise TrainError(value)
            if kind == "say":
                self.report(value)
            else:
                missing -= 1
                for stack in islice(waiting, 1):
                    self.tasks.put(stack)
                yield value

    def close(self) -> None:
        """End all processes; a stack that one of them is at is lost."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.join()
        self.tasks.cancel_join_thread()


def _work(make: Callable[..., Sweep], device: str, threads: int, tasks: Any, news: Any) -> None:
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the parent is interrupted too, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        sweep = make(device, lambda line: news.put(("say", line)))
        while True:
            members, stacked = tasks.get()
            sweep.train_stack(members, stacked)
            news.put(("done", len(members)))
    except Exception as error:
        news.put(("error", f"{type(error).__name__} in a sweep worker: {error}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
