"""The tables of a dataset: brought into their schemas, sorted by id, written and sealed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pal.data.adapter import Adapter
from pal.data.comparisons import pair_id
from pal.data.counts import COMPARED
from pal.data.parts import Progress, read_parts, silent
from pal.dataset import (
    ITEMS,
    PAIRS,
    REJECTS,
    TRUTH,
    WITH_PROMPT,
    SplitDetails,
    oriented,
    pairs_schema,
    rejects_schema,
)
from pal.files import file_sha256
from pal.items import item_id, items_schema
from pal.records import write_table

PLACE = ["image_file", "image_group", "image_row", "image_column"]
NOT_KEPT = ("source_row", "prompt_key")
"""columns of a Recorder that depend on how the source is cut into files, or are needed for
splitting alone"""


@dataclass(frozen=True)
class Tables:
    """The rows of a dataset, each table in an order that depends on its content alone."""

    items: pl.DataFrame
    pairs: pl.DataFrame
    rejects: pl.DataFrame
    splitting: SplitDetails

    @property
    def reject_reasons(self) -> dict[str, int]:
        """Return the number of rejects by reason."""
        return dict(self.rejects.group_by("reason").len().sort("reason").iter_rows())


def tables_of(
    adapter: Adapter, unfinished: Path | None = None, progress: Progress = silent
) -> Tables:
    """Read a source into tables; the parts of a long one are kept in the folder ``unfinished``."""
    read = read_parts(adapter.parts(), unfinished, progress)
    split = adapter.assign_splits(read.pairs)
    pairs = _with_pair_ids(_with_groups(split.pairs.drop(NOT_KEPT, strict=False)))
    place = [column for column in PLACE if column in read.items.columns]
    items = read.items.sort("item_id", *place).unique("item_id", keep="first", maintain_order=True)
    if not adapter.keeps_unused_items:
        items = items.join(_mentioned(pairs), on="item_id", how="semi", maintain_order="left")
    rejects = pl.concat([read.rejects, split.rejects]).sort("source_row", "reason")
    return Tables(items, pairs, rejects, split.details)


def write_tables(folder: Path, tables: Tables, truth: dict[str, np.ndarray]) -> dict[str, str]:
    """Write the tables and what is known beforehand; returns the seal of each file."""
    schemas = {ITEMS: items_schema(), PAIRS: pairs_schema(), REJECTS: rejects_schema()}
    files = {}
    for name, schema in schemas.items():
        kind = name.removesuffix(".parquet")
        frame: pl.DataFrame = getattr(tables, kind)
        files[name] = write_table(folder / name, _table(frame, schema), kind)
    if truth:
        np.savez(folder / TRUTH, **truth)  # type: ignore[arg-type]
        files[TRUTH] = file_sha256(folder / TRUTH)
    return files


def _mentioned(pairs: pl.DataFrame) -> pl.DataFrame:
    """Return the ids of all items that comparisons mention."""
    columns = ("prompt_id", "first_id", "second_id", *WITH_PROMPT.values())
    ids = [pairs.select(item_id=name) for name in columns if name in pairs.columns]
    return pl.concat(ids).drop_nulls().unique()


def _with_groups(pairs: pl.DataFrame) -> pl.DataFrame:
    """Add the prompt group where a source has divided its pairs itself: the prompt, or where there
    is none, the two items."""
    if "group_id" in pairs.columns:
        return pairs
    compared = (
        oriented(pairs)
        .filter(pl.col("prompt_id").is_null())
        .select("low", "high")
        .unique(maintain_order=True)
    )
    names = [item_id("compared", low.hex(), high.hex()) for low, high in compared.iter_rows()]
    compared = compared.with_columns(compared_id=pl.Series(names, dtype=pl.Binary))
    found = oriented(pairs).join(compared, on=["low", "high"], how="left", maintain_order="left")
    return pairs.with_columns(group_id=pl.coalesce(pairs["prompt_id"], found["compared_id"]))


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
