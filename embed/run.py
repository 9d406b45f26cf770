"""Stage one from start to end: locate, plan, encode what is missing, write the manifest."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pal.cache.plan import DEFAULT_ROWS_PER_SHARD, ShardTask
from pal.cache.reader import FeatureStore
from pal.cache.spec import Spec, folder_of, make_spec
from pal.cache.writer import CacheWriter
from pal.config import Config
from pal.embed.encoder import EncoderSource, load, locate
from pal.errors import CacheError, EncoderError
from pal.files import inflight
from pal.tables import PreparedDataset

CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 4096, 65_536
Progress = Callable[[int], None]


def locate_cache(config: Config, dataset: PreparedDataset) -> tuple[EncoderSource, Spec, Path]:
    """Return the encoder, the specification and the folder of the cache that the settings ask for."""
    config.paths.cache.mkdir(parents=True, exist_ok=True)
    source = locate(config.encoder, config.encoder_config(), config.paths.cache / ".digests.json")
    spec = make_spec(dataset.name, dataset.items_digest, source.spec)
    return source, spec, folder_of(config.paths.cache, dataset.name, config.encoder, spec)


def embed(config: Config, dataset: PreparedDataset, progress: Progress = lambda rows: None) -> dict[str, Any]:
    """Fill the cache of a dataset under an encoder and return what was done (contract.md, ``pal embed``).

    ``progress`` is called with the number of items finished since the last call. A complete and
    undamaged cache is left as it is; no model is loaded for it.
    """
    began = time.perf_counter()
    source, spec, folder = locate_cache(config, dataset)
    summary = {
        "dataset": dataset.name,
        "encoder": config.encoder,
        "untrained": source.untrained,
        "items_total": dataset.card["counts"]["item_mentions"],
        "items_unique": dataset.card["counts"]["items"],
    }
    seconds = dict.fromkeys(("total", "read", "wait", "encode", "write"), 0.0)
    totals = {"encoded": 0, "tokens_real": 0, "tokens_padded": 0}
    store = _complete(folder, spec)
    if store is None:
        writer = CacheWriter(folder, spec)
        items = dataset.items()
        tasks = writer.plan(_ids(items), config.embed.rows_per_shard or DEFAULT_ROWS_PER_SHARD)
        pending = writer.pending(tasks)
        progress(sum(len(task) for task in tasks) - sum(len(task) for task in pending))
        for receipt in _encode(config, source, writer, items, pending):
            for name in ("read", "wait", "encode", "write"):
                seconds[name] += receipt["seconds"][name]
            totals["encoded"] += receipt["rows"]
            totals["tokens_real"] += receipt["tokens_real"]
            totals["tokens_padded"] += receipt["tokens_padded"]
            progress(receipt["rows"] + receipt["errors"])
            _require_few_errors(config, folder, tasks)
        facts = {
            "dataset": dataset.name,
            "encoder": config.encoder,
            "revision": source.revision,
            "untrained": source.untrained,
            "dedup_ratio": summary["items_total"] / max(1, summary["items_unique"]),
            "seconds": time.perf_counter() - began,
        }
        writer.finalize(tasks, facts)
        store = FeatureStore.open(folder, spec)
    _point_to(folder, config.encoder)
    seconds["total"] = time.perf_counter() - began
    return {
        **summary,
        "fingerprint": store.fingerprint,
        "dir": str(folder),
        "dim": store.dim,
        **totals,
        "reused": store.rows - totals["encoded"],
        "errors": store.manifest["errors"],
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "rows_per_s": round(totals["encoded"] / seconds["encode"], 1) if seconds["encode"] else 0.0,
    }


def _complete(folder: Path, spec: Spec) -> FeatureStore | None:
    """Return the cache if it is complete and undamaged; anything else is the writer's business."""
    if not (folder / "manifest.json").is_file():
        return None
    try:
        return FeatureStore.open(folder, spec)
    except CacheError:
        return None


def _encode(config: Config, source: EncoderSource, writer: CacheWriter, items: Any, pending: list[ShardTask]) -> Any:
    """Yield the receipts of pending tasks; the model is loaded only if there are any."""
    if not pending:
        return
    import torch

    from pal.embed.runner import ShardRunner

    device = config.embed.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    budget = config.embed.token_budget
    if budget == "auto":
        budget = GPU_TOKEN_BUDGET if device.startswith("cuda") else CPU_TOKEN_BUDGET
    encoder = load(source, device, budget)
    yield from ShardRunner(encoder, items, writer, device, _producer(device)).run(pending)


def _producer(device: str) -> dict[str, str]:
    """Return the software and hardware that make the features, for the record."""
    import torch
    import transformers

    import pal

    hardware = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "pal": pal.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "hardware": hardware,
    }


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
            f"{failed} of {total} items failed, more than embed.max_error_rate = {config.embed.max_error_rate} allows: "
            f"{listed}; see {folder / 'errors'}, mend the source or raise the rate"
        )


def _point_to(folder: Path, encoder: str) -> None:
    """Let ``cache/<dataset>/<encoder>`` lead to the current cache: a name without a fingerprint for make."""
    link = folder.parent / encoder
    if link.is_symlink() and link.readlink() == Path(folder.name):
        return
    if link.exists() and not link.is_symlink():
        return
    with inflight(link) as temporary:
        temporary.symlink_to(folder.name)
        temporary.rename(link)
