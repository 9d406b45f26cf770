"""The tables of a dataset: brought into their schemas, sorted by id, written and sealed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from pal.data.adapter import Adapter
from pal.data.comparisons import ROWS_AT_ONCE, pair_id, with_content
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
from pal.records import ROWS_PER_GROUP, write_row_groups

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
    read.items = with_content(read.items)
    split = adapter.assign_splits(read.pairs)
    read.pairs = read.pairs.clear()  # what is divided goes on, and both do not fit into memory
    pairs = _with_pair_ids(_with_groups(split.pairs.drop(NOT_KEPT, strict=False)))
    split.pairs = pairs
    wanted = None if adapter.keeps_unused_items else _mentioned(pairs)
    items = read.items[_first_of_each(read.items, wanted)]
    rejects = pl.concat([read.rejects, split.rejects]).sort("source_row", "reason")
    return Tables(items, pairs, rejects, split.details)


def _first_of_each(items: pl.DataFrame, wanted: pl.DataFrame | None) -> pl.Series:
    """Return the rows of the items that are kept, in the order of their ids; ``wanted`` None: all.

    Of equal items that lie in several places the first place counts.
    """
    keys = ["item_id", *(column for column in PLACE if column in items.columns)]
    found = items.select(keys).with_row_index("row")
    if wanted is not None:
        found = found.join(wanted, on="item_id", how="semi")
    return found.sort(*keys, "row").unique("item_id", keep="first", maintain_order=True)["row"]


def write_tables(folder: Path, tables: Tables, truth: dict[str, np.ndarray]) -> dict[str, str]:
    """Write the tables and what is known beforehand; returns the seal of each file."""
    schemas = {ITEMS: items_schema(), PAIRS: pairs_schema(), REJECTS: rejects_schema()}
    files = {}
    for name, schema in schemas.items():
        kind = name.removesuffix(".parquet")
        frame: pl.DataFrame = getattr(tables, kind)
        files[name] = write_row_groups(folder / name, _row_groups(frame, schema), kind)
    if truth:
        np.savez(folder / TRUTH, **truth)  # type: ignore[arg-type]
        files[TRUTH] = file_sha256(folder / TRUTH)
    return files


def _row_groups(frame: pl.DataFrame, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the row groups of a file, each brought into its schema when it is written."""
    for start in range(0, max(1, len(frame)), ROWS_PER_GROUP):
        yield _table(frame.slice(start, ROWS_PER_GROUP), schema)


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
    compared = compared.with_columns(
        compared_id=_named(compared, lambda low, high: item_id("compared", low.hex(), high.hex()))
    )
    sides = oriented(pairs).select("low", "high")
    found = sides.join(compared, on=["low", "high"], how="left", maintain_order="left")
    return pairs.with_columns(group_id=pl.coalesce(pairs["prompt_id"], found["compared_id"]))


def _with_pair_ids(pairs: pl.DataFrame) -> pl.DataFrame:
    """Name each comparison by its content and sort by name."""
    pairs = pairs.sort(COMPARED + sorted(set(pairs.columns) - set(COMPARED)))
    repeat = pl.int_range(pl.len()).over(COMPARED).alias("repeat")
    ids = _named(pairs.select(*COMPARED, repeat), pair_id)
    return pairs.with_columns(pair_id=ids).sort("pair_id")


def _named(rows: pl.DataFrame, name: Callable[..., bytes]) -> pl.Series:
    """Return a name for each row, some rows at a time: ids as Python objects take three times the
    memory."""
    parts = [
        pl.Series([name(*row) for row in some.iter_rows()], dtype=pl.Binary)
        for some in rows.iter_slices(ROWS_AT_ONCE)
    ]
    return pl.concat([pl.Series(dtype=pl.Binary), *parts])


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
