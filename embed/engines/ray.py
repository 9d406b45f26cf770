"""The actors of a Ray cluster do the shards; each keeps its model loaded."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pal.cache.plan import ShardTask
from pal.cache.records import Receipt
from pal.cache.writer import CacheWriter
from pal.embed.engines.local import load_runner
from pal.errors import ConfigError, PalError

if TYPE_CHECKING:
    from pal.embed.run import Job
    from pal.embed.runner import ShardRunner

CONNECT_SECONDS, JOIN_SECONDS = 5.0, 25.0
JOIN = "import sys, ray; ray.init(sys.argv[1], log_to_driver=False); ray.shutdown()"


def on_ray(job: Job, writers: list[CacheWriter], tasks: list[ShardTask]) -> Iterator[Receipt]:
    """Do the tasks in actors: one shard is one call, and a call lost with its node is repeated."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "--executor ray needs Ray; install the extra: pip install 'pal-heads[ray]'"
        ) from error
    settings = job.config.embed
    started = not ray.is_initialized()
    if started:
        if settings.ray_address:
            require_cluster(settings.ray_address)
        here = {"include_dashboard": False, "num_cpus": settings.actors or os.cpu_count()}
        ray.init(
            settings.ray_address, log_to_driver=False, **({} if settings.ray_address else here)
        )
    try:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        count = min(len(tasks), settings.actors or gpus or 1)
        # all nodes see the same file system, but work in other folders
        job = job.with_absolute_paths()
        # restarts and repeated calls are Ray's; what is committed already is seen by its receipt
        build = ray.remote(
            num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=-1
        )(Actor)
        device = "cuda:0" if gpus else settings.device.replace("auto", "cpu")
        idle = [build.remote(job, device) for _ in range(count)]
        waiting = list(tasks)
        running: dict[Any, Any] = {}
        while waiting or running:
            while waiting and idle:
                actor = idle.pop()
                running[actor.run.remote(waiting.pop(0))] = actor
            done, _ = ray.wait(list(running))
            idle.append(running.pop(done[0]))
            yield ray.get(done[0])
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PalError | OSError):
            raise error.cause from None
        raise
    finally:
        if started:
            ray.shutdown()


def require_cluster(address: str) -> None:
    """Raise ConfigError within 30 s unless a cluster answers at an address.

    ``ray.init`` itself waits for minutes, and then ends the process: another process tries first.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    remedy = "give the address of a running cluster, as ray start --head prints it"
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"nothing answers at --ray-address {address} ({error}); {remedy}"
            ) from error
    try:
        joined = subprocess.run(
            [sys.executable, "-c", JOIN, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=JOIN_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"what answers at --ray-address {address} is no Ray cluster, or too slow: it could not "
            f"be joined within {JOIN_SECONDS:.0f} s; {remedy}"
        ) from error
    if joined.returncode:
        reason = (joined.stderr.strip().splitlines() or ["no reason is given"])[-1][:300]
        raise ConfigError(f"cannot join the Ray cluster at {address} ({reason}); {remedy}")


class Actor:
    """A Ray actor: one loaded encoder."""

    def __init__(self, job: Job, device: str) -> None:
        self.job, self.device = job, device
        self.writers: list[CacheWriter] = []
        self.runner: ShardRunner | None = None

    def run(self, task: ShardTask) -> Receipt:
        """Do one task and return its receipt; one that is done already is only looked up."""
        self.writers = self.writers or self.job.open()[0]
        found = self.writers[0].receipt_on_disk(task)
        if found is not None and not any(writer.pending([task]) for writer in self.writers):
            return found
        self.runner = self.runner or load_runner(self.job, self.writers, self.device)
        return next(iter(list(self.runner.run([task]))))
