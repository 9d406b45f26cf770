"""What embedding would cost, said before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from pal.cache.plan import DEFAULT_ROWS_PER_SHARD
from pal.cache.shard import ITEM_BYTES
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.embed.run import Job, locate_job

CHARACTERS_PER_TOKEN = 4.0
"""a rule of thumb for English text; the true number is known after tokenising"""
WIDTHS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model", "dim")


def forecast(config: Config, dataset: PreparedDataset) -> dict[str, Any]:
    """Return items, tokens, size and, where this encoder has run before, the time that ``pal
    embed`` would take.

    ``bytes`` and ``seconds`` are None where nothing is known: a width is read from the model's
    config.json or an earlier cache, a rate only from earlier caches under this cache root.
    """
    job = locate_job(config, dataset)
    items = job.items()
    counts = dataset.card["counts"]
    characters = pc.sum(pc.utf8_length(items.column("text"))).as_py() or 0
    images = len(items) - items.column("image_file").null_count
    earlier = earlier_rates(config, job)
    dim = earlier[0]["dim"] if earlier else _width(job)
    size = (
        None if dim is None else len(items) * (dim * ITEM_BYTES[job.source.config.store_dtype] + 24)
    )
    rates = [rate["rows_per_s"] for rate in earlier if rate["rows_per_s"]]
    done = _rows_done(job)
    return {
        "dataset": dataset.name,
        "encoder": config.encoder,
        "dirs": [str(folder) for folder in job.folders],
        "items_total": counts["item_mentions"],
        "items_unique": len(items),
        "items_done": done,
        "images": images,
        "tokens_estimated": round(characters / CHARACTERS_PER_TOKEN),
        "shards": -(-len(items) // (config.embed.rows_per_shard or DEFAULT_ROWS_PER_SHARD)),
        "dim": dim,
        "bytes": None if size is None else size * len(job.folders),
        "seconds": round((len(items) - done) / max(rates), 3) if rates else None,
    }


def earlier_rates(config: Config, job: Job) -> list[dict[str, Any]]:
    """Return width and speed from the receipts of complete caches with the same encoder block."""
    found = []
    for path in sorted(config.paths.cache.glob(f"*/{config.encoder}-*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["spec"]["encoder"] == job.source.spec:
            receipts = [
                json.loads(p.read_text(encoding="utf-8"))
                for p in (path.parent / "shards").glob("part-*.json")
            ]
            rows, seconds = (
                sum(r["rows"] for r in receipts),
                sum(r["seconds"]["encode"] for r in receipts),
            )
            found.append(
                {"dim": manifest["dim"], "rows_per_s": rows / seconds if seconds else None}
            )
    return found


def _width(job: Job) -> int | None:
    """Return the width that a model's own settings name."""
    folder = job.source.folder
    if (
        job.source.config.kind != "hf-text"
        or folder is None
        or not (folder / "config.json").is_file()
    ):
        return None
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return next((settings[key] for key in WIDTHS if isinstance(settings.get(key), int)), None)


def _rows_done(job: Job) -> int:
    """Return how many items already have a receipt in the first folder."""
    folder: Path = job.folders[0]
    return sum(
        json.loads(p.read_text(encoding="utf-8"))["rows"]
        for p in (folder / "shards").glob("part-*.json")
    )
