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
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from pal.cache.plan import ShardTask
from pal.cache.records import Receipt
from pal.cache.writer import CacheWriter
from pal.embed.devices import token_budget
from pal.errors import EncoderError

if TYPE_CHECKING:
    from pal.embed.run import Job
    from pal.embed.runner import ShardRunner

POLL_SECONDS = 0.2


def load_runner(job: Job, writers: list[CacheWriter], device: str) -> ShardRunner:
    """Load the encoder and return what does the tasks with it."""
    from pal.embed.encoder import load
    from pal.embed.runner import ShardRunner

    settings = job.config.embed
    budget = settings.token_budget if settings.token_budget != "auto" else token_budget(device)
    encoder = load(job.source, device, budget, job.layers, settings.compile)
    return ShardRunner(encoder, job.items(), writers, device, _producer(device), settings.workers)


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


def in_processes(
    job: Job, writers: list[CacheWriter], tasks: list[ShardTask], devices: list[str]
) -> Iterator[Receipt]:
    """Use one process per device, every n-th task each; yields receipts as the cache shows them.

    The processes end at once when this one is interrupted, fails or is killed.
    """
    context = multiprocessing.get_context("spawn")  # a forked process could not use a GPU
    alive, ours = context.Pipe(duplex=False)
    threads = max(1, (os.cpu_count() or 1) // len(devices)) if devices[0] == "cpu" else None
    shares = [tasks[number :: len(devices)] for number in range(min(len(devices), len(tasks)))]
    with ProcessPoolExecutor(len(shares), context, _start_worker, (alive, threads)) as pool:
        try:
            working = [
                pool.submit(_work, job, device, share)
                for device, share in zip(devices, shares, strict=False)
            ]
            yield from _as_they_appear(writers, tasks, working)
        except BaseException:
            ours.close()
            raise


def _start_worker(alive: Connection, threads: int | None) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends us
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
    if threads:
        torch.set_num_threads(threads)


def _end_with_parent(alive: Connection) -> None:
    """Wait until the other end of the pipe is closed: by the parent, or because it is dead."""
    with suppress(EOFError, OSError):
        alive.recv()
    os._exit(1)


def _work(job: Job, device: str, tasks: Sequence[ShardTask]) -> None:
    """Do some tasks in a process of their own."""
    writers, _ = job.open()
    for _ in load_runner(job, writers, device).run(tasks):
        pass


def _as_they_appear(
    writers: list[CacheWriter], tasks: list[ShardTask], working: Sequence[Future[None]]
) -> Iterator[Receipt]:
    """Yield receipts until all tasks have theirs.

    Raises what a worker raised, or EncoderError if the workers end before.
    """
    missing = list(tasks)
    while missing:
        ended, running = wait(working, POLL_SECONDS, FIRST_EXCEPTION)
        try:
            for future in ended:
                future.result()
        except BrokenProcessPool:
            raise EncoderError(
                f"a worker was killed with {len(missing)} shards undone, perhaps for lack of "
                f"memory; run pal embed again: finished shards are kept"
            ) from None
        still = []
        for task in missing:
            receipts = [receipt for w in writers if (receipt := w.receipt(task)) is not None]
            if len(receipts) == len(writers):
                yield receipts[0]
            else:
                still.append(task)
        if still and not running:
            raise EncoderError(
                f"the workers ended with {len(still)} shards undone; run pal embed again"
            )
        missing = still
