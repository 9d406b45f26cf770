"""This machine does the shards: this process, or one process for each device."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from typing import TYPE_CHECKING

from pal.cache.plan import ShardTask
from pal.cache.records import Receipt
from pal.cache.writer import CacheWriter
from pal.embed.devices import token_budget
from pal.errors import EncoderError
from pal.memory import kept

if TYPE_CHECKING:
    from pal.embed.job import Job
    from pal.embed.runner import ShardRunner

POLL_SECONDS = 0.2
PRELOADED = ["transformers.modeling_utils", "pal.embed.runner", "pal.embed.encoders.text"]
"""modules that take seconds to import"""


def load_runner(job: Job, writers: list[CacheWriter], device: str) -> ShardRunner:
    """Load the encoder and return what does the tasks with it."""
    from pal.embed.encoder import load
    from pal.embed.runner import ShardRunner

    settings = job.config.embed
    budget = settings.token_budget if settings.token_budget != "auto" else token_budget(device)
    encoder = load(job.source, device, budget, job.layers, settings.compile)
    producer, known = _producer(device), job.known
    return ShardRunner(encoder, job.items(), writers, device, producer, settings.workers, known)


def _producer(device: str) -> dict[str, str]:
    """Return the software and hardware that make the features, for the receipts."""
    import torch
    import transformers

    import pal

    is_gpu = device.startswith("cuda")
    return {
        "pal": pal.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": torch.cuda.get_device_name(device) if is_gpu else platform.machine(),
    }


def in_this_process(
    job: Job, writers: list[CacheWriter], tasks: Sequence[ShardTask], device: str
) -> Iterator[Receipt]:
    """Do the tasks, as a member of a job array those that nobody else does; yields receipts.

    No model is loaded where there is nothing to do.
    """
    if job.config.embed.executor != "slurm":
        yield from load_runner(job, writers, device).run(tasks)
        return
    from pal.embed.engines.slurm import Claims

    with Claims(writers, tasks) as claims:
        first = next(iter(claims), None)
        if first is not None:
            yield from load_runner(job, writers, device).run(chain([first], claims))


def in_processes(
    job: Job, writers: list[CacheWriter], tasks: list[ShardTask], devices: list[str]
) -> Iterator[Receipt]:
    """Use one process per device; yields receipts as they come.

    Each does every n-th task, as a member of a job array whatever nobody else does.

    The processes end at once when this one is interrupted, fails or is killed.
    """
    context = _context()
    alive, ours = context.Pipe(duplex=False)
    done: SimpleQueue[Receipt] = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // len(devices)) if devices[0] == "cpu" else None
    workers = min(len(devices), len(tasks))
    is_claiming = job.config.embed.executor == "slurm"
    shares = [tasks if is_claiming else tasks[n::workers] for n in range(workers)]
    with ProcessPoolExecutor(len(shares), context, _start_worker, (alive, done, threads)) as pool:
        try:
            working = [
                pool.submit(_work, job, device, share)
                for device, share in zip(devices, shares, strict=False)
            ]
            yield from _as_they_come(done, None if is_claiming else len(tasks), working)
        except BaseException:
            ours.close()
            raise


def _context() -> BaseContext:
    """Return how processes are started: none is forked from this one, which may have used a GPU.

    Where the system can, one process imports all libraries for all workers, and is used again.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


_done: SimpleQueue[Receipt] | None = None
"""where this worker process puts its receipts"""


def _start_worker(alive: Connection, done: SimpleQueue[Receipt], threads: int | None) -> None:
    global _done
    import torch

    _done = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends us
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    if threads:
        torch.set_num_threads(threads)


def _end_with_parent(alive: Connection) -> None:
    """Wait until the other end of the pipe is closed: by the parent, or because it is dead."""
    with suppress(EOFError, OSError):
        alive.recv()
    os._exit(1)


@kept()
def _work(job: Job, device: str, tasks: Sequence[ShardTask]) -> None:
    """Do some tasks in a process of their own."""
    assert _done is not None, "_start_worker made it"
    writers, _ = job.open()
    for receipt in in_this_process(job, writers, tasks, device):
        _done.put(receipt)


def _as_they_come(
    done: SimpleQueue[Receipt], count: int | None, working: Sequence[Future[None]]
) -> Iterator[Receipt]:
    """Yield so many receipts, or all; raises what a worker raised, or EncoderError if one was
    killed."""
    left = "some" if count is None else str(count)
    while count != 0:
        ended, running = wait(working, POLL_SECONDS, FIRST_EXCEPTION)
        try:
            for future in ended:
                future.result()
        except BrokenProcessPool:
            raise EncoderError(
                f"a worker was killed with {left} shards undone, perhaps for lack of memory; run "
                f"pal embed again: finished shards are kept"
            ) from None
        while not done.empty():
            yield done.get()
            if count is not None:
                count -= 1
                left = str(count)
        if not running and count is None:
            return
        if count and not running:
            raise EncoderError(f"the workers ended with {left} shards undone; run pal embed again")
