"""The engine that the settings name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pal.cache.plan import ShardTask
from pal.cache.records import Receipt
from pal.cache.writer import CacheWriter

if TYPE_CHECKING:
    from pal.embed.job import Job


def execute(job: Job, writers: list[CacheWriter], tasks: list[ShardTask]) -> Iterator[Receipt]:
    """Do the tasks and yield their receipts; no model is loaded where there are none."""
    if not tasks:
        return
    if job.config.embed.executor == "ray":
        from pal.embed.engines.ray import on_ray

        yield from on_ray(job, writers, tasks)
        return
    from pal.embed.devices import devices_of
    from pal.embed.engines.local import in_processes, in_this_process

    devices = devices_of(job.config.embed, job.source.config)
    if len(devices) == 1:
        yield from in_this_process(job, writers, tasks, devices[0])
    else:
        yield from in_processes(job, writers, tasks, devices)
