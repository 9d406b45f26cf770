"""Stage one from start to end: locate, plan, encode what is missing, write the manifest."""

from __future__ import annotations

import errno
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pal.cache.plan import DEFAULT_ROWS_PER_SHARD, ShardTask
from pal.cache.reader import FeatureStore
from pal.cache.spec import Spec, folder_of, make_spec
from pal.cache.writer import CacheWriter
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.embed.encoder import EncoderSource, locate
from pal.embed.images import in_source_order
from pal.errors import CacheError, EncoderError
from pal.files import inflight

Progress = Callable[[int], None]
ITEM_COLUMNS = (
    "item_id", "modality", "text", "context", "image_file", "image_column", "image_group", "image_row",
    "image_filter", "feature",
)  # fmt: skip


@dataclass
class Job:
    """What there is to embed: one cache per tap, all from the same items in the same order."""

    config: Config
    dataset: PreparedDataset
    source: EncoderSource
    specs: list[Spec]
    folders: list[Path]

    @property
    def layers(self) -> list[int]:
        return list(self.config.embed.layers) or [self.source.config.layer]

    def with_absolute_paths(self) -> Job:
        """Return the same job for a process that works in another folder."""
        source = replace(self.source, folder=self.source.folder and self.source.folder.absolute())
        dataset = replace(self.dataset, folder=self.dataset.folder.absolute())
        folders = [folder.absolute() for folder in self.folders]
        return replace(self, source=source, dataset=dataset, folders=folders)

    def items(self) -> Any:
        """Return the items as a pyarrow Table in the order of the plan."""
        return in_source_order(self.dataset.items(list(ITEM_COLUMNS)))

    def open(self) -> tuple[list[CacheWriter], list[ShardTask]]:
        """Open the folders and return their common tasks."""
        writers = [
            CacheWriter(folder, spec) for folder, spec in zip(self.folders, self.specs, strict=True)
        ]
        ids = _ids(
            in_source_order(self.dataset.items([name for name in ITEM_COLUMNS if name != "text"]))
        )
        plans = [
            writer.plan(ids, self.config.embed.rows_per_shard or DEFAULT_ROWS_PER_SHARD)
            for writer in writers
        ]
        if any(plan != plans[0] for plan in plans):
            raise CacheError(
                f"the caches of layers {self.layers} were begun with different "
                "embed.rows_per_shard; embed one layer "
                f"at a time, or remove one of {', '.join(str(folder) for folder in self.folders)}"
            )
        return writers, plans[0]


def locate_cache(config: Config, dataset: PreparedDataset) -> tuple[EncoderSource, Spec, Path]:
    """Return the encoder, the specification and the folder of the cache that the settings ask
    for."""
    config.paths.cache.mkdir(parents=True, exist_ok=True)
    source = locate(config.encoder, config.encoder_config(), config.paths.cache / ".digests.json")
    spec = make_spec(dataset.name, dataset.items_digest, source.spec)
    return source, spec, folder_of(config.paths.cache, dataset.name, config.encoder, spec)


def locate_job(config: Config, dataset: PreparedDataset) -> Job:
    """Return what there is to embed: the encoder's own layer, or all of ``embed.layers``."""
    found = []
    for layer in config.embed.layers or (config.encoder_config().layer,):
        encoder = config.encoder_config().model_copy(update={"layer": layer})
        embed = config.embed.model_copy(update={config.encoder: encoder})
        found.append(locate_cache(config.model_copy(update={"embed": embed}), dataset))
    return Job(
        config,
        dataset,
        found[0][0],
        [spec for _, spec, _ in found],
        [folder for _, _, folder in found],
    )


def embed(
    config: Config,
    dataset: PreparedDataset,
    progress: Progress = lambda rows: None,
    retry_errors: bool = False,
) -> dict[str, Any]:
    """Fill the cache of a dataset under an encoder and return what was done (contract.md, ``pal
    embed``).

    ``progress`` is called with the number of items finished since the last call. A complete and
    undamaged cache is left as it is; no model is loaded for it. ``retry_errors`` encodes shards
    with failed items again. With several layers the answer is about the first; ``dirs`` names all.
    """
    began = time.perf_counter()
    job = locate_job(config, dataset)
    summary = {
        "dataset": dataset.name,
        "encoder": config.encoder,
        "untrained": job.source.untrained,
        "items_total": dataset.card["counts"]["item_mentions"],
        "items_unique": dataset.card["counts"]["items"],
    }
    seconds = dict.fromkeys(("total", "read", "wait", "encode", "write"), 0.0)
    totals = dict.fromkeys(
        ("encoded", "tokens_real", "tokens_padded", "truncated", "answers_cut"), 0
    )
    stores = [_complete(folder, spec) for folder, spec in zip(job.folders, job.specs, strict=True)]
    if any(store is None or (retry_errors and store.manifest["errors"]) for store in stores):
        try:
            for receipt in _fill(job, progress, retry_errors, summary, began):
                for name in ("read", "wait", "encode", "write"):
                    seconds[name] += receipt["seconds"][name]
                for name in totals:
                    totals[name] += receipt["rows" if name == "encoded" else name]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise CacheError(
                f"no space is left for {job.folders[0]}; free some and run pal embed again: "
                "finished shards are kept"
            ) from error
        stores = [
            FeatureStore.open(folder, spec)
            for folder, spec in zip(job.folders, job.specs, strict=True)
        ]
    store = stores[0]
    assert store is not None
    _point_to(job.folders[0], config.encoder)
    seconds["total"] = time.perf_counter() - began
    return {
        **summary,
        "fingerprint": store.fingerprint,
        "dir": str(job.folders[0]),
        "dirs": [str(folder) for folder in job.folders],
        "dim": store.dim,
        **totals,
        "reused": store.rows - totals["encoded"],
        "errors": store.manifest["errors"],
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "rows_per_s": round(totals["encoded"] / seconds["encode"], 1) if seconds["encode"] else 0.0,
    }


def _fill(
    job: Job, progress: Progress, retry_errors: bool, summary: dict[str, Any], began: float
) -> Iterator[dict[str, Any]]:
    """Encode what is missing and yield the new receipts; the manifests are written at the end."""
    from pal.embed.engines.local import execute, share_of_this_task

    writers, tasks = job.open()
    if retry_errors:
        for writer in writers:
            writer.withdraw_failed(tasks)
    numbers = {task.number for writer in writers for task in writer.pending(tasks)}
    for writer in writers:  # a shard missing in one tap is encoded for all
        for task in tasks:
            if task.number in numbers:
                (writer.shards / f"{task.stem}.json").unlink(missing_ok=True)
    pending = [task for task in tasks if task.number in numbers]
    progress(sum(len(task) for task in tasks) - sum(len(task) for task in pending))
    mine = share_of_this_task(job.config, pending)
    for receipt in execute(job, writers, mine):
        yield receipt
        progress(receipt["rows"] + receipt["errors"])
        _require_few_errors(job.config, job.folders[0], tasks)
    if len(mine) < len(pending) and any(writers[0].receipt(task) is None for task in pending):
        raise CacheError(
            f"{job.folders[0]}: this task's {len(mine)} shards are done, others are not yet; "
            "whichever task ends last "
            f"completes the cache"
        )
    facts = {
        "dataset": summary["dataset"],
        "encoder": summary["encoder"],
        "revision": job.source.revision,
        "untrained": job.source.untrained,
        "dedup_ratio": summary["items_total"] / max(1, summary["items_unique"]),
        "seconds": time.perf_counter() - began,
    }
    _keep_score_head(job)
    for writer in writers:
        writer.finalize(tasks, facts)


def _keep_score_head(job: Job) -> None:
    """Lay a reward model's own linear head beside the features that it reads."""
    if job.source.config.kind != "hf-text":
        return
    from pal.embed.weights import score_head

    weight = score_head(job.source)
    if weight is None:
        return
    from safetensors.torch import save_file

    for folder, spec in zip(job.folders, job.specs, strict=True):
        if spec["encoder"]["norm"] == "post" and spec["encoder"]["pooling"] == "last":
            with inflight(folder / "score.safetensors") as temporary:
                save_file({"weight": weight.contiguous()}, temporary)
                temporary.replace(folder / "score.safetensors")


def _complete(folder: Path, spec: Spec) -> FeatureStore | None:
    """Return the cache if it is complete and undamaged; anything else is the writer's business."""
    if not (folder / "manifest.json").is_file():
        return None
    try:
        return FeatureStore.open(folder, spec)
    except CacheError:
        return None


def _ids(items: Any) -> np.ndarray:
    return np.array(items.column("item_id").to_pylist(), dtype="S16")


def _require_few_errors(config: Config, folder: Path, tasks: list[ShardTask]) -> None:
    files = list((folder / "errors").glob("part-*.parquet"))
    if not files:
        return
    classes: Counter[str] = Counter()
    for file in files:
        classes.update(pl.read_parquet(file, columns=["error_class"])["error_class"])
    total, failed = sum(len(task) for task in tasks), sum(classes.values())
    if failed > config.embed.max_error_rate * total:
        listed = ", ".join(f"{name} ({count})" for name, count in classes.most_common(3))
        raise EncoderError(
            f"{failed} of {total} items failed, more than embed.max_error_rate = "
            f"{config.embed.max_error_rate} allows: "
            f"{listed}; see {folder / 'errors'}, mend the source or raise the rate"
        )


def _point_to(folder: Path, encoder: str) -> None:
    """Let ``cache/<dataset>/<encoder>`` lead to the current cache: a name without a fingerprint for
    make."""
    link = folder.parent / encoder
    if link.is_symlink() and link.readlink() == Path(folder.name):
        return
    if link.exists() and not link.is_symlink():
        return
    with inflight(link) as temporary:
        temporary.symlink_to(folder.name)
        temporary.rename(link)
