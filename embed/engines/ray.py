"""The actors of a Ray cluster do the shards; each keeps its model loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pal.cache.plan import ShardTask
from pal.cache.records import Receipt
from pal.cache.writer import CacheWriter
from pal.cluster import joined, raise_cause
from pal.embed.engines.local import load_runner
from pal.memory import kept

if TYPE_CHECKING:
    from pal.embed.job import Job
    from pal.embed.runner import ShardRunner


def on_ray(job: Job, writers: list[CacheWriter], tasks: list[ShardTask]) -> Iterator[Receipt]:
    """Do the tasks in actors: one shard is one call, and a call lost with its node is repeated."""
    settings = job.config.embed
    with joined(settings.ray_address, settings.actors or os.cpu_count() or 1) as cluster:
        ray = cluster.ray
        gpus = sum(node.gpus for node in cluster.nodes)
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
        try:
            while waiting or running:
                while waiting and idle:
                    actor = idle.pop()
                    running[actor.run.remote(waiting.pop(0))] = actor
                done, _ = ray.wait(list(running))
                idle.append(running.pop(done[0]))
                yield ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise_cause(error)


class Actor:
    """A Ray actor: one loaded encoder."""

    def __init__(self, job: Job, device: str) -> None:
        self.job, self.device = job, device
        self.writers: list[CacheWriter] = []
        self.runner: ShardRunner | None = None

    @kept()
    def run(self, task: ShardTask) -> Receipt:
        """Do one task and return its receipt; one that is done already is only looked up."""
        self.writers = self.writers or self.job.open()[0]
        found = self.writers[0].receipt_on_disk(task)
        if found is not None and not any(writer.pending([task]) for writer in self.writers):
            return found
        self.runner = self.runner or load_runner(self.job, self.writers, self.device)
        return next(iter(list(self.runner.run([task]))))
