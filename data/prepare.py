"""From a raw source to a prepared dataset: items, pairs, rejects and a card, all or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pal.config import DatasetConfig
from pal.data.split import split_digest
from pal.errors import DataError
from pal.files import atomic_directory
from pal.tables import ID_BYTES, PreparedDataset, items_schema, pairs_schema, rejects_schema

CARD_VERSION = 3
COMPARED = ["user_id", "prompt_id", "first_id", "second_id"]


def _no_rejects() -> pl.DataFrame:
    return pl.DataFrame(schema={"source_row": pl.String, "reason": pl.String, "message": pl.String})


@dataclass
class Chunk:
    """Some rows of a source as rows of the three tables (pal.tables); any order, repeats allowed.

    ``pairs`` has no ``pair_id`` yet; columns beyond the schema are kept behind it.
    """

    items: pl.DataFrame
    pairs: pl.DataFrame
    rejects: pl.DataFrame = field(default_factory=_no_rejects)


class Adapter(Protocol):
    """A source in its published form. Write one in its own file and name it in ``adapters.py``."""

    licence: str
    origin: str
    """Where the rows come from, with the revision that was read."""

    def inputs(self) -> dict[str, str]:
        """Return the digest of every input file by name; equal inputs and settings need no new work."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """Read the source."""
        ...

    item_text: str
    """how a prompt and a response make an item's text: ``{response}`` or ``{prompt}{response}``"""

    def truth(self) -> dict[str, np.ndarray]:
        """Return what is known of the users beforehand, stored as ``truth.npz``; empty for real data."""
        ...


def prepare(name: str, config: DatasetConfig, folder: Path, build: Callable[[Any], Adapter]) -> PreparedDataset:
    """Prepare a dataset in ``folder`` unless it is there already, made from the same inputs and settings.

    ``config.source`` None means the source that ``folder`` was prepared from. Raises DataError; an
    existing folder is replaced only by a complete new one.
    """
    settings = config.model_dump(mode="json", exclude={"source"})
    present = _read_card(folder)
    if config.source is None and present is not None:
        if present["settings"] == settings:
            return PreparedDataset(folder, present)
        config = config.model_copy(update={"source": present["source"]})
    adapter = build(config)
    inputs = adapter.inputs()
    if present is not None and present["settings"] == settings and present["inputs"] == inputs:
        return PreparedDataset(folder, present)

    chunks = list(adapter.chunks())
    items = pl.concat([chunk.items for chunk in chunks]).unique("item_id").sort("item_id")
    pairs = _with_pair_ids(pl.concat([chunk.pairs for chunk in chunks]))
    rejects = pl.concat([chunk.rejects for chunk in chunks]).sort("source_row", "reason")
    _require_splits(name, pairs, adapter.origin)
    card = {
        "name": name,
        "card_version": CARD_VERSION,
        "source": config.source,
        "revision": adapter.origin,
        "licence": adapter.licence,
        "settings": settings,
        "inputs": inputs,
        "item_text": adapter.item_text,
        "views": ["response"] + ["prompt+response"] * ("first_with_prompt_id" in pairs.columns),
        "counts": _counts(items, pairs),
        "rejects": dict(rejects.group_by("reason").len().sort("reason").iter_rows()),
        "digests": {
            "items": _digest(items.select("item_id")),
            "pairs": _digest(pairs.select("pair_id", "label", "split", "population")),
        },
        "split_digest": split_digest(
            {"card_version": CARD_VERSION, "dataset": name, "salt": config.salt},
            (
                (pair_id.hex(), *rest)
                for pair_id, *rest in pairs.select("pair_id", "user_id", "split", "population").iter_rows()
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
        (temporary / "dataset.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return PreparedDataset(folder, card)


def _read_card(folder: Path) -> dict[str, Any] | None:
    """Return the card of a prepared dataset, or None where none that this version can use is whole."""
    if not all((folder / name).is_file() for name in ("items.parquet", "pairs.parquet", "rejects.parquet")):
        return None
    try:
        card: dict[str, Any] = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return card if card.get("card_version") == CARD_VERSION else None


def _with_pair_ids(pairs: pl.DataFrame) -> pl.DataFrame:
    """Name each comparison by its content and sort by name; the n-th repeat of one gets a name of its own."""
    pairs = pairs.sort(COMPARED + sorted(set(pairs.columns) - set(COMPARED)))
    repeat = pl.int_range(pl.len()).over(COMPARED).alias("repeat")
    ids = []
    for user, prompt, first, second, number in pairs.select(*COMPARED, repeat).iter_rows():
        state = hashlib.blake2b(digest_size=ID_BYTES, person=b"pair")
        for part in (user.encode(), prompt or b"", first, second, number.to_bytes(4, "little")):
            state.update(len(part).to_bytes(8, "little") + part)
        ids.append(state.digest())
    return pairs.with_columns(pl.Series("pair_id", ids, dtype=pl.Binary)).sort("pair_id")


def _table(frame: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    """Bring a frame into the schema; columns it does not have become null, further ones are kept behind."""
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
    return pa.table(columns, schema=pa.schema([*schema, *(table.schema.field(name) for name in further)]))


def _digest(rows: pl.DataFrame) -> str:
    """Return BLAKE2b-256 over the rows in their order, every value length-prefixed."""
    state = hashlib.blake2b(digest_size=32)
    for row in rows.iter_rows():
        for value in row:
            raw = value if isinstance(value, bytes) else repr(value).encode()
            state.update(len(raw).to_bytes(4, "little") + raw)
    return state.hexdigest()


def _counts(items: pl.DataFrame, pairs: pl.DataFrame) -> dict[str, Any]:
    cells = pairs.group_by("split", "population").len().sort("split", "population")
    users = dict(pairs.group_by("population").agg(pl.col("user_id").n_unique()).iter_rows())
    return {
        "items": len(items),
        "pairs": len(pairs),
        "ties": int((pairs["label"] == 0.5).sum()),
        "item_mentions": 3 * len(pairs) - pairs["prompt_id"].null_count(),
        "seen_users": users.get("seen", 0),
        "unseen_users": users.get("unseen", 0),
        "cells": {f"{split}_{population}": count for split, population, count in cells.iter_rows()},
    }


def _require_splits(name: str, pairs: pl.DataFrame, origin: str) -> None:
    if pairs.is_empty():
        raise DataError(f"dataset {name}: no comparison was found in {origin}; check data.{name}.source")
    present = set(pairs.filter(pl.col("population") == "seen")["split"].unique())
    for split in ("train", "val", "test"):
        if split not in present:
            raise DataError(
                f"dataset {name}: the {split} split of the seen users is empty; "
                f"use more source rows or another data.{name}.salt"
            )
