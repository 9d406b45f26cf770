"""What is made of rows and their rewards: the same rows, the best of each group, or pairs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pal.reward.rows import (
    Row,
    is_parquet,
    read_batches,
    read_rows,
    read_schema,
    write_batches,
    write_jsonl,
    write_parquet,
)
from pal.users import user_name

if TYPE_CHECKING:
    import pyarrow as pa

REWARD = "reward"


@dataclass(frozen=True)
class Output:
    """What becomes of a file whose rows have rewards, (n,)."""

    source: Path
    rewards: np.ndarray
    best_of: int | None = None
    """keep the best of the first so many of each group; None: keep all rows"""
    pairs_of: str | None = None
    """column of which pairs are made instead"""

    def write(self, path: Path, as_parquet: bool) -> int:
        """Write the output and return its number of rows."""
        if not as_parquet:
            return write_jsonl(path, self.rows())
        if not is_parquet(self.source):
            return write_parquet(path, self.rows, None if len(self.rewards) else _only_reward())
        schema = read_schema(self.source)
        if self.pairs_of is not None:
            return write_parquet(path, self.rows, _schema_of_pairs(schema, self.pairs_of))
        schema = _with_reward(schema.empty_table(), np.empty(0)).schema
        return write_batches(path, self.batches(), schema)

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the output as objects."""
        if self.pairs_of is not None:
            yield from self.pairs(self.pairs_of)
            return
        kept = self.kept()
        wanted = next(kept, None)
        for number, row in enumerate(read_rows(self.source)):
            if number == wanted:
                yield {**row, REWARD: float(self.rewards[number])}
                wanted = next(kept, None)

    def batches(self) -> Iterator[pa.Table]:
        """Yield the rows of a Parquet file that are kept, as they are, with their rewards."""
        import pyarrow as pa

        kept = self.kept()
        wanted = next(kept, None)
        start = 0
        for batch in read_batches(self.source):
            stop = start + batch.num_rows
            places = []
            while wanted is not None and wanted < stop:
                places.append(wanted - start)
                wanted = next(kept, None)
            table = _with_reward(pa.Table.from_batches([batch]), self.rewards[start:stop])
            yield table if len(places) == len(table) else table.take(pa.array(places, pa.int64()))
            start = stop

    def kept(self) -> Iterator[int]:
        """Yield the numbers of the rows that are kept, in order."""
        if self.best_of is None:
            yield from range(len(self.rewards))
            return
        for group in self.groups(()):
            yield max(islice(group, self.best_of), key=lambda row: row[1])[0]

    def pairs(self, column: str) -> Iterator[Row]:
        """Yield the best and the worst of each group, unless all are liked equally."""
        for group in self.groups((column,)):
            rows = list(group)
            _, most, best = max(rows, key=lambda row: row[1])
            _, least, worst = min(rows, key=lambda row: row[1])
            if most == least:
                continue
            yield {
                "prompt": best.get("prompt"),
                "chosen": best[column],
                "rejected": worst[column],
                **({"user_id": best["user_id"]} if "user_id" in best else {}),
                "chosen_reward": most,
                "rejected_reward": least,
            }

    def groups(self, columns: tuple[str, ...]) -> Iterator[Iterator[tuple[int, float, Row]]]:
        """Yield rows that share prompt and user: number, reward and some columns of each."""
        rows = read_rows(self.source, ("prompt", "user_id", *columns))
        numbered = ((n, float(self.rewards[n]), row) for n, row in enumerate(rows))
        for _, group in groupby(numbered, key=lambda row: _group_of(row[2])):
            yield group


def _group_of(row: Row) -> tuple[str, str]:
    user = row.get("user_id")
    name = user if isinstance(user, dict) else user_name(user)
    return json.dumps(row.get("prompt"), default=str), json.dumps(name, default=str)


def _with_reward(table: pa.Table, rewards: np.ndarray) -> pa.Table:
    """Return a table with a column of rewards, in the place of one that is already there."""
    import pyarrow as pa

    column = pa.array(np.asarray(rewards), pa.float64())
    if REWARD in table.column_names:
        return table.set_column(table.column_names.index(REWARD), REWARD, column)
    return table.append_column(REWARD, column)


def _only_reward() -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(REWARD, pa.float64())])


def _schema_of_pairs(source: pa.Schema, column: str) -> pa.Schema:
    """Return the columns of pairs, in the types of the file they come from."""
    import pyarrow as pa

    def type_of(name: str) -> pa.DataType:
        return source.field(name).type if name in source.names else pa.null()

    columns = [("prompt", type_of("prompt"))]
    columns += [(name, type_of(column)) for name in ("chosen", "rejected")]
    if "user_id" in source.names:
        columns.append(("user_id", type_of("user_id")))
    columns += [(name, pa.float64()) for name in ("chosen_reward", "rejected_reward")]
    return pa.schema(columns)
