"""Which arithmetic a cache is made in, where ``compute_dtype: auto`` leaves it open.

In this order: that of the cache that is there, complete or begun; the one in which other caches
hold most of the items; what the machine is fast at, if the model's features keep their values in it
(pal.embed.fidelity). So no machine encodes again what another has, whoever began holds everybody to
one arithmetic, and readers find what was made without asking any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pal.cache.spec import Spec
from pal.cache.writer import CacheWriter
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.embed.arithmetic import EXACT, FAST, either, fastest
from pal.embed.devices import devices_of
from pal.embed.encoder import EncoderSource
from pal.embed.fidelity import known_fidelity, learn_fidelity
from pal.embed.job import Job, job_under
from pal.files import locked

MOST = 0.5
"""share of the items that other caches must hold for their arithmetic to be taken"""
NO_CHOICE = "the one that auto means for images, quantised or spread models, and random weights"


def locate_cache(config: Config, dataset: PreparedDataset) -> tuple[EncoderSource, Spec, Path]:
    """Return the encoder, the specification and the folder of the cache that is asked for."""
    embed = config.embed.model_copy(update={"layers": ()})
    job = locate_job(config.model_copy(update={"embed": embed}), dataset)
    return job.source, job.specs[0], job.folders[0]


def locate_job(config: Config, dataset: PreparedDataset) -> Job:
    """Return what there is to embed: the encoder's own layer, or all of ``embed.layers``."""
    encoder = config.encoder_config()
    jobs = [job_under(one, config, dataset) for one in either(encoder)]
    if len(jobs) > 1:
        return _chosen(jobs)
    is_told = encoder.compute_dtype == "auto" and encoder.kind != "identity"
    return replace(jobs[0], why=NO_CHOICE if is_told else "")


def claimed_job(config: Config, dataset: PreparedDataset) -> Job:
    """Return what there is to embed, and hold everybody who comes later to its arithmetic.

    The first on a cache tries the model in both, which takes as long as loading it twice, once for
    each model.
    """
    job = locate_job(config, dataset)
    if not job.is_open:
        return job
    if job.dtype == FAST and known_fidelity(job) is None:
        learn_fidelity(job, job_under(either(config.encoder_config())[0], config, dataset))
    with locked(config.paths.cache / dataset.name / config.encoder):
        job = locate_job(config, dataset)  # somebody may have begun meanwhile
        for folder, spec in zip(job.folders, job.specs, strict=True):
            CacheWriter(folder, spec)
    return replace(job, is_open=False)


def _chosen(jobs: Sequence[Job]) -> Job:
    """Return one of some jobs that differ in their arithmetic alone."""
    complete = [job for job in jobs if job.is_complete]
    there = complete or [job for job in jobs if job.is_begun]
    if len(there) == 1:
        how = "is complete" if complete else "was begun"
        return replace(there[0], why=f"as the cache that {how} here")
    rich = [job for job in jobs if job.known_rows > MOST * len(job.item_ids)] if not there else []
    if len(rich) == 1:
        return replace(rich[0], why="as other caches hold most of these items", is_open=True)
    exact, fast = (next(job for job in jobs if job.dtype == dtype) for dtype in (EXACT, FAST))
    settings = exact.config.embed
    if fastest(devices_of(settings, exact.source.config)[0]) == EXACT:
        why = "since this machine is hardly faster in bfloat16"
        return replace(exact, why=why, is_open=not there)
    fidelity = known_fidelity(fast) if not there else None
    if fidelity is not None and fidelity.reason:
        return replace(exact, why=fidelity.reason, is_open=True)
    return replace(fast, why="which this machine is fast at", is_open=not there)
