"""Stage one from start to end: locate, plan, encode what is missing, write the manifest."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pal.cache.plan import ShardTask
from pal.cache.reader import SCORE_HEAD, FeatureStore
from pal.cache.records import Provenance, Receipt
from pal.cache.spec import Spec, encoder_of
from pal.cache.summary import total_seconds
from pal.cache.writer import CacheWriter, Unfinished, clear
from pal.cluster import require_ahead
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.embed.choose import claimed_job
from pal.embed.devices import require_device
from pal.embed.encoder import EncoderSource
from pal.embed.job import Job
from pal.embed.reuse import take_over
from pal.errors import CacheError, EncoderError, PalWarning
from pal.files import atomic_file, inflight
from pal.records import Entry, write_tensors

Progress = Callable[[int], None]
Tell = Callable[[str], None]


class EmbedSeconds(Entry):
    """Where the time went: the whole call, and the work on new shards added up."""

    total: float
    read: float
    wait: float
    encode: float
    write: float


class EmbedResult(Entry):
    """What ``pal embed`` did; with several layers, all but ``dirs`` is about the first.

    Of a cache that is not complete, it counts what is there so far.
    """

    dataset: str
    encoder: str
    untrained: bool
    items_total: int
    """mentions of items by comparisons"""
    items_unique: int
    fingerprint: str
    dir: str
    dirs: list[str]
    """one per layer"""
    compute_dtype: str
    """the arithmetic of its features"""
    complete: bool
    """false of a SLURM job array until its last task is done"""
    dim: int | None
    """null as long as no shard is there"""
    encoded: int
    reused: int
    """items that this cache or another one of the same encoder had already"""
    errors: int
    tokens_real: int
    tokens_padded: int
    truncated: int
    answers_cut: int
    seconds: EmbedSeconds
    rows_per_s: float


def embed(
    config: Config,
    dataset: PreparedDataset,
    progress: Progress = lambda rows: None,
    retry_errors: bool = False,
    tell: Tell = lambda line: None,
    expect: Progress = lambda rows: None,
) -> EmbedResult:
    """Fill the cache of a dataset under an encoder and return what was done.

    ``progress`` is called with the number of items finished since the last call, ``expect`` once
    with that of all items. A complete and undamaged cache is left as it is; no model is loaded for
    it. ``retry_errors`` encodes shards with failed items again. ``tell`` gets a line about the
    arithmetic where ``auto`` chose it.
    """
    began = time.perf_counter()
    job = claimed_job(config, dataset)
    job.retry_errors = retry_errors
    if job.arithmetic:
        tell(job.arithmetic)
    new: list[Receipt] = []
    stores = [_complete(folder, spec) for folder, spec in zip(job.folders, job.specs, strict=True)]
    if any(store is None or (retry_errors and store.manifest.errors) for store in stores):
        require_ahead(config.embed.executor, config.embed.ray_address)
        if config.embed.executor != "ray":  # whose nodes have devices of their own
            require_device(config.embed)
        for note in job.source.notes:
            warnings.warn(note, PalWarning, stacklevel=2)
        writers, tasks = job.open()
        expect(sum(len(task) for task in tasks))
        new.extend(_encode(job, writers, tasks, progress))
        try:
            _finish(job, writers, tasks, began)
        except Unfinished:
            if config.embed.executor != "slurm":
                raise
            return _result(job, _contents_so_far(job, writers[0], tasks), new, began)
    else:
        for complete in filter(None, stores):
            clear(complete.folder, complete.manifest)
    store = FeatureStore.open(job.folders[0], job.specs[0])
    _point_to(job.folders[0], config.encoder)
    contents = _Contents(True, store.fingerprint, store.dim, store.rows, store.manifest.errors)
    return _result(job, contents, new, began)


class _Contents(NamedTuple):
    """What a cache holds."""

    complete: bool
    fingerprint: str
    dim: int | None
    rows: int
    errors: int


def _contents_so_far(job: Job, writer: CacheWriter, tasks: Sequence[ShardTask]) -> _Contents:
    """Say what is in a cache that other members of a job array still fill, and warn of it."""
    receipts = [receipt for task in tasks if (receipt := writer.receipt_on_disk(task)) is not None]
    warnings.warn(
        f"{job.folders[0]}: the shards of this task are done, and {len(receipts)} of {len(tasks)} "
        f"in all; whichever task of the job array ends last completes the cache",
        PalWarning,
        stacklevel=3,
    )
    rows, errors = (sum(getattr(r, name) for r in receipts) for name in ("rows", "errors"))
    dim = receipts[0].dim if receipts else None
    return _Contents(False, writer.fingerprint, dim, rows, errors)


def _result(job: Job, there: _Contents, new: Sequence[Receipt], began: float) -> EmbedResult:
    encoded, spent = sum(receipt.rows - receipt.reused for receipt in new), total_seconds(new)
    total = time.perf_counter() - began
    counts = job.dataset.card.counts
    return EmbedResult(
        dataset=job.dataset.name,
        encoder=job.config.encoder,
        untrained=job.source.untrained,
        items_total=counts.item_mentions,
        items_unique=counts.items,
        fingerprint=there.fingerprint,
        dir=str(job.folders[0]),
        dirs=[str(folder) for folder in job.folders],
        compute_dtype=job.dtype,
        complete=there.complete,
        dim=there.dim,
        encoded=encoded,
        reused=there.rows - encoded,
        errors=there.errors,
        tokens_real=sum(receipt.tokens_real for receipt in new),
        tokens_padded=sum(receipt.tokens_padded for receipt in new),
        truncated=sum(receipt.truncated for receipt in new),
        answers_cut=sum(receipt.answers_cut for receipt in new),
        seconds=EmbedSeconds(total=round(total, 4), **dict(spent)),
        rows_per_s=round(encoded / spent.encode, 1) if spent.encode else 0.0,
    )


def _encode(
    job: Job, writers: list[CacheWriter], tasks: list[ShardTask], progress: Progress
) -> Iterator[Receipt]:
    """Encode what is missing, in a job array what nobody else has; yields new receipts."""
    from pal.embed.engines.engine import execute

    # a shard missing in one tap is encoded for all
    numbers = {task.number for writer in writers for task in writer.pending(tasks)}
    pending = [task for task in tasks if task.number in numbers]
    progress(sum(len(task) for task in tasks) - sum(len(task) for task in pending))
    for receipt in chain(_taken_over(job, writers, pending), execute(job, writers, pending)):
        yield receipt
        progress(receipt.rows + receipt.errors)
        _require_few_errors(writers[0], tasks, job.config.embed.max_error_rate)


def _taken_over(
    job: Job, writers: list[CacheWriter], pending: list[ShardTask]
) -> Iterator[Receipt]:
    """Take over the shards that other caches have as a whole, and take them from ``pending``."""
    known = job.known if pending else []
    if known:
        done = set()
        for receipt in take_over(writers, known, pending, job.item_ids):
            done.add(receipt.shard)
            yield receipt
        pending[:] = [task for task in pending if task.number not in done]


def _finish(
    job: Job, writers: Sequence[CacheWriter], tasks: Sequence[ShardTask], began: float
) -> None:
    """Write the manifests; raises Unfinished if shards are missing."""
    counts = job.dataset.card.counts
    provenance = Provenance(
        dataset=job.dataset.name,
        encoder=job.config.encoder,
        revision=job.source.revision,
        untrained=job.source.untrained,
        dedup_ratio=counts.item_mentions / max(1, counts.items),
        seconds=time.perf_counter() - began,
    )
    for writer in writers:
        writer.finalize(tasks, provenance, _keep_score_head(job.source, writer))


def _keep_score_head(source: EncoderSource, writer: CacheWriter) -> dict[str, str]:
    """Lay a reward model's own linear head beside the features that it reads; return its seal."""
    if source.config.kind != "hf-text":
        return {}
    from pal.embed.weights import score_head

    block = encoder_of(writer.spec)
    if (block["norm"], block["pooling"]) != ("post", "last"):
        return {}
    weight = score_head(source)
    if weight is None:
        return {}
    with atomic_file(writer.folder / SCORE_HEAD) as temporary:
        return {SCORE_HEAD: write_tensors(temporary, {"weight": weight})}


def _complete(folder: Path, spec: Spec) -> FeatureStore | None:
    """Return the cache if it is complete and undamaged; anything else is the writer's business."""
    try:
        return FeatureStore.open(folder, spec)
    except CacheError:
        return None


def _require_few_errors(writer: CacheWriter, tasks: Sequence[ShardTask], most: float) -> None:
    classes = writer.failures(tasks)
    total, failed = sum(len(task) for task in tasks), classes.total()
    if failed > most * total:
        listed = ", ".join(f"{name} ({count})" for name, count in classes.most_common(3))
        raise EncoderError(
            f"{failed} of {total} items failed, more than embed.max_error_rate = {most} allows: "
            f"{listed}; see {writer.folder / 'errors'}, correct the source or raise the rate"
        )


def _point_to(folder: Path, encoder: str) -> None:
    """Let ``cache/<dataset>/<encoder>`` lead to the current cache: a fixed name for make."""
    link = folder.parent / encoder
    if link.is_symlink() and link.readlink() == Path(folder.name):
        return
    if link.exists() and not link.is_symlink():
        return
    with inflight(link) as temporary:
        temporary.symlink_to(folder.name)
        temporary.rename(link)
