"""From a raw source to a prepared dataset: items, pairs, rejects and a card, all or nothing.

A source is read in parts. Those of a long source are kept beside the dataset until the whole is
done, so that a killed run goes on where it was.
"""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pal.config import DatasetConfig
from pal.data.card import COMPARED, counts_of, digest_of, require_splits
from pal.data.comparisons import TABLES, Chunk, concatenated, pair_id, rejects_frame
from pal.data.split import split_digest
from pal.data.splits import Arranged
from pal.dataset import WITH_PROMPT, PreparedDataset, items_schema, pairs_schema, rejects_schema
from pal.files import atomic_directory, digest

CARD_VERSION = 3
POINTER = ["image_file", "image_group", "image_row", "image_column"]
NOT_KEPT = ("source_row", "prompt_key")
"""columns of a Recorder that depend on how the source is cut into files, or are needed for
splitting alone"""

Part = Callable[[], Chunk]
Progress = Callable[[int], None]


class Adapter(ABC):
    """A source in its published form. Write one in its own file and name it in ``adapters.py``."""

    licence: str
    origin: str
    """where the rows come from, with the revision that was read"""
    item_text: str = "{response}"
    """how a prompt and a response make an item's text in the view ``response``"""
    keeps_unused_items = False
    """whether items that no comparison mentions are still encoded, so that other users need no new
    cache"""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Return the digest of every input file by name; equal inputs and settings need no new
        work."""

    @abstractmethod
    def parts(self) -> Sequence[Part]:
        """Return what reads the source, part by part; each fits into memory, and each is kept when
        it is read."""

    def arrange(self, pairs: pl.DataFrame) -> Arranged:
        """Give all comparisons their split and population; these have them already."""
        return Arranged(pairs, rejects_frame())

    def truth(self) -> dict[str, np.ndarray]:
        """Return what is known of the users beforehand, stored as ``truth.npz``; empty for real
        data."""
        return {}


def prepare(
    name: str,
    config: DatasetConfig,
    folder: Path,
    build: Callable[[Any], Adapter],
    progress: Progress = lambda parts: None,
) -> PreparedDataset:
    """Prepare a dataset in ``folder`` unless it is there already, made from the same inputs and
    settings.

    ``config.source`` None means the source that ``folder`` was prepared from. Raises DataError; an
    existing folder is replaced only by a complete new one. Images outside the source's files are no
    inputs: a changed one is seen only when something else changes too, a missing one is looked for
    again. ``progress`` is called after each part of the source.
    """
    settings = config.model_dump(mode="json", exclude={"source"})
    present = _read_card(folder)
    if config.source is None and present is not None:
        if present["settings"] == settings:
            return PreparedDataset(folder, present)
        config = config.model_copy(update={"source": present["source"]})
    adapter = build(config)
    inputs = adapter.inputs()
    is_same = (
        present is not None and present["settings"] == settings and present["inputs"] == inputs
    )
    if (
        present is not None and is_same and "no-image" not in present["rejects"]
    ):  # those may be there by now
        return PreparedDataset(folder, present)

    key = digest([CARD_VERSION, settings, inputs], 8)
    workshop = folder.parent / f".{name}.unfinished-{key}"
    read = read_parts(adapter.parts(), workshop, progress)
    arranged = adapter.arrange(read.pairs)
    pairs = _with_pair_ids(arranged.pairs.drop(NOT_KEPT, strict=False))
    pointer = [name for name in POINTER if name in read.items.columns]
    items = read.items.sort("item_id", *pointer).unique(
        "item_id", keep="first", maintain_order=True
    )
    if not adapter.keeps_unused_items:
        items = items.join(_mentioned(pairs), on="item_id", how="semi", maintain_order="left")
    rejects = pl.concat([read.rejects, arranged.rejects]).sort("source_row", "reason")
    reasons = dict(rejects.group_by("reason").len().sort("reason").iter_rows())
    require_splits(name, pairs, adapter.origin, reasons)
    card = {
        "name": name,
        "card_version": CARD_VERSION,
        "source": config.source,
        "revision": adapter.origin,
        "licence": adapter.licence,
        "settings": settings,
        "inputs": inputs,
        "item_text": adapter.item_text,
        "views": ["response"]
        + ["prompt+response"] * (set(WITH_PROMPT.values()) <= set(pairs.columns)),
        "counts": counts_of(items, pairs),
        "facts": arranged.facts,
        "rejects": reasons,
        "digests": {
            "items": digest_of(items.select("item_id")),
            "pairs": digest_of(pairs.select("pair_id", "label", "split", "population")),
        },
        "split_digest": split_digest(
            {"card_version": CARD_VERSION, "dataset": name, "salt": config.salt},
            (
                (row[0].hex(), *row[1:])
                for row in pairs.select("pair_id", "user_id", "split", "population").iter_rows()
            ),
        ),
    }
    with atomic_directory(folder) as temporary:
        for file, frame, schema in (
            ("items.parquet", items, items_schema()),
            ("pairs.parquet", pairs, pairs_schema()),
            ("rejects.parquet", rejects, rejects_schema()),
        ):
            pq.write_table(_table(frame, schema), temporary / file, compression="zstd")
        if truth := adapter.truth():
            np.savez(temporary / "truth.npz", **truth)  # type: ignore[arg-type]
        (temporary / "dataset.json").write_text(
            json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    for unfinished in folder.parent.glob(f".{name}.unfinished-*"):
        shutil.rmtree(unfinished)
    return PreparedDataset(folder, card)


def read_parts(
    parts: Sequence[Part], workshop: Path | None, progress: Progress = lambda parts: None
) -> Chunk:
    """Read all parts of a source; each is kept in ``workshop`` where there are several, and read
    from there again."""
    if len(parts) == 1 or workshop is None:
        chunks = []
        for part in parts:
            chunks.append(part())
            progress(1)
        return concatenated(chunks)
    for number, part in enumerate(parts):
        place = workshop / f"{number:06d}"
        if not place.is_dir():
            chunk = part()
            with atomic_directory(place) as temporary:
                for table in TABLES:
                    getattr(chunk, table).write_parquet(
                        temporary / f"{table}.parquet", compression="lz4"
                    )
        progress(1)
    places = [workshop / f"{number:06d}" for number in range(len(parts))]
    return concatenated(
        [
            Chunk(*(pl.read_parquet(place / f"{table}.parquet") for table in TABLES))
            for place in places
        ]
    )


def _mentioned(pairs: pl.DataFrame) -> pl.DataFrame:
    """Return the ids of all items that comparisons mention."""
    columns = [
        name
        for name in ("prompt_id", "first_id", "second_id", *WITH_PROMPT.values())
        if name in pairs.columns
    ]
    return pl.concat([pairs.select(item_id=name) for name in columns]).drop_nulls().unique()


def _read_card(folder: Path) -> dict[str, Any] | None:
    """Return the card of a prepared dataset, or None where none that this version can use is
    whole."""
    if not all((folder / f"{name}.parquet").is_file() for name in TABLES):
        return None
    try:
        card: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return card if card.get("card_version") == CARD_VERSION else None


def _with_pair_ids(pairs: pl.DataFrame) -> pl.DataFrame:
    """Name each comparison by its content and sort by name."""
    pairs = pairs.sort(COMPARED + sorted(set(pairs.columns) - set(COMPARED)))
    repeat = pl.int_range(pl.len()).over(COMPARED).alias("repeat")
    ids = [pair_id(*row) for row in pairs.select(*COMPARED, repeat).iter_rows()]
    return pairs.with_columns(pl.Series("pair_id", ids, dtype=pl.Binary)).sort("pair_id")


def _table(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """Bring a frame into the schema; columns it does not have become null, further ones are kept
    behind."""
    table = frame.to_arrow()
    columns = {}
    for wanted in schema:
        if wanted.name not in table.column_names:
            columns[wanted.name] = pa.nulls(len(table), wanted.type)
            continue
        # Arrow casts large binary to fixed width only by way of plain binary.
        plain = pa.binary() if pa.types.is_fixed_size_binary(wanted.type) else wanted.type
        columns[wanted.name] = table.column(wanted.name).cast(plain).cast(wanted.type)
    further = [name for name in table.column_names if name not in columns]
    columns.update((name, table.column(name)) for name in further)
    return pa.table(
        columns, schema=pa.schema([*schema, *(table.schema.field(name) for name in further)])
    )
