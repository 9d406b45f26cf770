"""Who does the shards: this process, one process per GPU, the actors of a Ray cluster, or the tasks
of a SLURM array.

All do the same tasks with the same ``ShardRunner``, and all durability lies in the cache: an
executor only schedules, and any of them finishes what another began.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pal.cache.plan import ShardTask
from pal.cache.writer import CacheWriter
from pal.config import Config
from pal.errors import ConfigError, EncoderError, PalError

if TYPE_CHECKING:
    from pal.embed.run import Job
    from pal.embed.runner import ShardRunner

CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = (
    1024,
    65_536,
)  # padded tokens; on a CPU a batch should stay in its caches
POLL_SECONDS = 0.2


def execute(
    job: Job, writers: list[CacheWriter], tasks: list[ShardTask]
) -> Iterator[dict[str, Any]]:
    """Do the tasks and yield their receipts; no model is loaded where there are none."""
    if not tasks:
        return
    if job.config.embed.executor == "ray":
        yield from on_ray(job, writers, tasks)
        return
    devices = devices_of(job.config)
    if len(devices) == 1:
        yield from runner(job, writers, devices[0]).run(tasks)
    else:
        yield from in_processes(job, writers, tasks, devices)


def devices_of(config: Config) -> list[str]:
    """Return the devices of this machine's workers."""
    import torch

    if config.embed.device != "auto":
        return [config.embed.device]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return ["cpu"] * (config.embed.actors or 1)
    return [f"cuda:{number}" for number in range(min(count, config.embed.actors or count))]


def runner(job: Job, writers: list[CacheWriter], device: str) -> ShardRunner:
    """Load the encoder and return what does the tasks with it."""
    from pal.embed.encoder import load
    from pal.embed.runner import ShardRunner

    settings = job.config.embed
    budget = settings.token_budget
    if budget == "auto":
        budget = GPU_TOKEN_BUDGET if device.startswith("cuda") else CPU_TOKEN_BUDGET
    encoder = load(job.source, device, budget, job.layers, settings.compile)
    return ShardRunner(encoder, job.items(), writers, device, _producer(device), settings.workers)


def _producer(device: str) -> dict[str, str]:
    """Return the software and hardware that make the features, for the record."""
    import torch
    import transformers

    import pal

    hardware = (
        torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    )
    return {
        "pal": pal.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": hardware,
    }


def work(job: Job, device: str, tasks: Sequence[ShardTask], threads: int | None = None) -> None:
    """Do some tasks in a process of their own."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    writers, _ = job.open()
    for _ in runner(job, writers, device).run(tasks):
        pass


def in_processes(
    job: Job, writers: list[CacheWriter], tasks: list[ShardTask], devices: list[str]
) -> Iterator[dict[str, Any]]:
    """One process per device, every n-th task each; receipts are seen as they appear in the
    cache."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // len(devices)) if devices[0] == "cpu" else None
    shares = [tasks[number :: len(devices)] for number in range(len(devices))]
    processes = [
        context.Process(target=work, args=(job, device, share, threads), daemon=True)
        for device, share in zip(devices, shares, strict=True)
        if share
    ]
    for process in processes:
        process.start()
    try:
        yield from _as_they_appear(
            writers, tasks, lambda: any(process.is_alive() for process in processes)
        )
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _as_they_appear(
    writers: list[CacheWriter], tasks: list[ShardTask], is_busy: Any
) -> Iterator[dict[str, Any]]:
    """Yield receipts until all tasks have theirs; raises EncoderError if the workers end before."""
    missing = list(tasks)
    while missing:
        busy = is_busy()
        still = []
        for task in missing:
            receipts = [writer.receipt(task) for writer in writers]
            if all(receipts):
                yield receipts[0]  # type: ignore[misc]
            else:
                still.append(task)
        if still and not busy:
            raise EncoderError(
                f"the workers ended with {len(still)} shards undone; see their messages, run again"
            )
        if still == missing:
            time.sleep(POLL_SECONDS)
        missing = still


def on_ray(
    job: Job, writers: list[CacheWriter], tasks: list[ShardTask]
) -> Iterator[dict[str, Any]]:
    """Actors that keep the model warm; one shard is one call, and a call lost with its node is made
    again."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--executor ray needs Ray; install the extra: pip install 'pal-heads[ray]'"
        ) from error
    settings = job.config.embed
    started = not ray.is_initialized()
    if started:
        local: dict[str, Any] = {
            "include_dashboard": False,
            "num_cpus": settings.actors or os.cpu_count(),
        }
        ray.init(
            settings.ray_address, log_to_driver=False, **({} if settings.ray_address else local)
        )
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = min(len(tasks), settings.actors or gpus or 1)
        # restarts and repeated calls are Ray's; what a call already committed is seen by its
        # receipt
        job = (
            job.with_absolute_paths()
        )  # all nodes see the same file system, but work in other folders
        build = ray.remote(
            num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=-1
        )(Actor)
        actors = [
            build.remote(job, "cuda:0" if gpus else settings.device.replace("auto", "cpu"))
            for _ in range(count)
        ]
        waiting = list(tasks)
        running: dict[Any, Any] = {}
        idle = list(actors)
        while waiting or running:
            while waiting and idle:
                actor = idle.pop()
                running[actor.run.remote(waiting.pop(0))] = actor
            done, _ = ray.wait(list(running))
            idle.append(running.pop(done[0]))
            yield ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PalError):
            raise error.cause from None
        raise
    finally:
        if started:
            ray.shutdown()


class Actor:
    """A Ray actor: one loaded encoder."""

    def __init__(self, job: Job, device: str) -> None:
        self.job, self.device = job, device
        self.writers: list[CacheWriter] = []
        self.runner: ShardRunner | None = None

    def run(self, task: ShardTask) -> dict[str, Any]:
        """Do one task and return its receipt; one that is done already is only looked up."""
        self.writers = self.writers or self.job.open()[0]
        receipts = [writer.receipt(task) for writer in self.writers]
        if all(receipts):
            return receipts[0]  # type: ignore[return-value]
        self.runner = self.runner or runner(self.job, self.writers, self.device)
        return next(iter(list(self.runner.run([task]))))


def share_of_this_task(config: Config, tasks: list[ShardTask]) -> list[ShardTask]:
    """Return the tasks of this member of a SLURM array; all of them for other executors."""
    if config.embed.executor != "slurm":
        return tasks
    try:
        index, first, last, step = (
            int(os.environ[f"SLURM_ARRAY_TASK_{name}"]) for name in ("ID", "MIN", "MAX", "STEP")
        )
    except KeyError as error:
        raise ConfigError(
            f"--executor slurm runs inside a job array, but {error.args[0]} is not set; submit it "
            "with sbatch --array"
        ) from error
    place, workers = (index - first) // step, (last - first) // step + 1
    return [task for task in tasks if task.number % workers == place]
