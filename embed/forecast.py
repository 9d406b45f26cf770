"""What embedding would cost, said before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pyarrow.compute as pc

from pal.cache.plan import default_rows
from pal.cache.records import Manifest, Receipt
from pal.cache.shard import ITEM_BYTES
from pal.cache.spec import encoder_of
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.embed.choose import locate_job
from pal.embed.encoder import EncoderSource
from pal.embed.trust import read_json
from pal.errors import CacheError
from pal.records import Entry

CHARACTERS_PER_TOKEN = 4.0
"""a rule of thumb for English text; the true number is known after tokenising"""
WIDTHS = ("word_embed_proj_dim", "hidden_size", "n_embd", "d_model", "dim")
ROW_OVERHEAD = 24
"""bytes of a row beside its vector: id, tokens, mark"""


class Forecast(Entry):
    """What ``pal embed`` would do and take."""

    dataset: str
    encoder: str
    dirs: list[str]
    items_total: int
    items_unique: int
    items_done: int
    """in this cache, or to be taken over from another one of the same encoder"""
    images: int
    tokens_estimated: int
    shards: int
    dim: int | None
    """from the model's config.json or an earlier cache; null where neither tells"""
    bytes: int | None
    compute_dtype: str
    """the arithmetic that features are computed in"""
    arithmetic: str
    """one line on why, empty where the settings name it"""
    seconds: float | None
    """null where this encoder has not run under this cache root"""


class Rate(NamedTuple):
    """What an earlier cache tells about an encoder."""

    dim: int
    rows_per_s: float | None


def forecast(config: Config, dataset: PreparedDataset) -> Forecast:
    """Return items, tokens, size and, where this encoder has run before, the time that it takes."""
    job = locate_job(config, dataset)
    items = job.items()
    characters = pc.sum(pc.utf8_length(items.column("text"))).as_py() or 0
    earlier = earlier_rates(config.paths.cache, job.source)
    dim = earlier[0].dim if earlier else _width(job.source)
    vector = None if dim is None else dim * ITEM_BYTES[job.source.config.store_dtype]
    size = None if vector is None else len(items) * (vector + ROW_OVERHEAD) * len(job.folders)
    rates = [rate.rows_per_s for rate in earlier if rate.rows_per_s]
    done = min(max(_rows_done(job.folders[0]), job.known_rows), len(items))
    return Forecast(
        dataset=dataset.name,
        encoder=config.encoder,
        dirs=[str(folder) for folder in job.folders],
        items_total=dataset.card.counts.item_mentions,
        items_unique=len(items),
        items_done=done,
        images=len(items) - items.column("image_file").null_count,
        tokens_estimated=round(characters / CHARACTERS_PER_TOKEN),
        shards=-(-len(items) // (config.embed.rows_per_shard or default_rows(len(items)))),
        dim=dim,
        bytes=size,
        compute_dtype=job.dtype,
        arithmetic=job.arithmetic,
        seconds=round((len(items) - done) / max(rates), 3) if rates else None,
    )


def earlier_rates(root: Path, source: EncoderSource) -> list[Rate]:
    """Return width and speed from the complete caches below ``root`` of the same encoder block."""
    found = []
    for path in sorted(root.glob(f"*/{source.name}-*/{Manifest.file}")):
        manifest = Manifest.find(path.parent)
        if manifest is not None and encoder_of(manifest.spec) == source.spec:
            seconds = manifest.spent.encode
            found.append(Rate(manifest.dim, manifest.rows / seconds if seconds else None))
    return found


def _width(source: EncoderSource) -> int | None:
    """Return the width that a model's own settings name."""
    if source.config.kind != "hf-text" or source.folder is None:
        return None
    settings = read_json(source.folder / "config.json")
    return next((settings[key] for key in WIDTHS if isinstance(settings.get(key), int)), None)


def _rows_done(folder: Path) -> int:
    """Return how many items already have a receipt."""
    rows = 0
    for path in (folder / "shards").glob("part-*.json"):
        try:
            rows += Receipt.read_file(path).rows
        except CacheError:
            continue
    return rows
