"""What is made of rows and their outcomes: the same rows, the best of each group, or pairs.

Every row of the input is a row of the output, with ``reward`` and ``reward_error`` (of comparisons
``p`` and ``p_error``); one of them is null. A row that cannot be copied keeps its place with its
number in ``row``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING

from pal.reward.cells import is_cells, write_cells
from pal.reward.rows import (
    common_schema,
    fits_parquet,
    is_parquet,
    read_batches,
    read_rows,
    read_schema,
    write_batches,
    write_jsonl,
    write_parquet,
)
from pal.rows import BadRow, Row
from pal.users import user_name

if TYPE_CHECKING:
    import pyarrow as pa

REWARD, PROBABILITY, NUMBER = "reward", "p", "row"
Outcome = float | str
"""a reward or a probability, or why a row has none"""


@dataclass(frozen=True)
class Output:
    """What becomes of a file whose rows have outcomes."""

    source: Path
    schema: pa.Schema | None
    """of the input, where Parquet is written; None: JSONL or CSV is written"""
    best_of: int | None = None
    """keep the best of the first so many of each group; None: keep all rows"""
    pairs_of: str | None = None
    """column of which pairs are made instead"""
    outcome: str = REWARD
    """column of the outcomes"""

    def write(self, path: Path, outcomes: Callable[[], Iterator[Outcome]]) -> int:
        """Write the output and return its number of rows; ``outcomes`` begins anew each time."""
        if is_cells(path):
            return write_cells(path, lambda: self.rows(outcomes))
        if self.schema is None:
            return write_jsonl(path, self.rows(outcomes))
        if self.pairs_of is not None:
            schema = _schema_of_pairs(self.schema, self.pairs_of)
            return write_parquet(path, self.rows(outcomes), schema)
        schema = self._with_outcomes(self.schema.empty_table(), []).schema
        if is_parquet(self.source):
            return write_batches(path, self.batches(outcomes), schema)
        return write_parquet(path, self.rows(outcomes), schema)

    def rows(self, outcomes: Callable[[], Iterator[Outcome]]) -> Iterator[Row]:
        """Yield the rows of the output as objects."""
        if self.pairs_of is not None:
            yield from self.pairs(outcomes(), self.pairs_of)
            return
        kept = self.kept(outcomes)
        wanted = next(kept, None)
        read = copied_rows(self.source, self.schema is not None)
        for number, (row, outcome) in enumerate(zip(read, outcomes(), strict=True)):
            if number == wanted:
                yield self._with_outcome(row, outcome)
                wanted = next(kept, None)

    def batches(self, outcomes: Callable[[], Iterator[Outcome]]) -> Iterator[pa.Table]:
        """Yield the rows of a Parquet file that are kept, as they are, with their outcomes."""
        import pyarrow as pa

        kept, own = self.kept(outcomes), outcomes()
        wanted = next(kept, None)
        start = 0
        for batch in read_batches(self.source):
            stop = start + batch.num_rows
            places = []
            while wanted is not None and wanted < stop:
                places.append(wanted - start)
                wanted = next(kept, None)
            found = list(islice(own, batch.num_rows))
            table = self._with_outcomes(pa.Table.from_batches([batch]), found)
            yield table if len(places) == len(table) else table.take(pa.array(places, pa.int64()))
            start = stop

    def kept(self, outcomes: Callable[[], Iterator[Outcome]]) -> Iterator[int]:
        """Yield the numbers of the rows that are kept, in order."""
        if self.best_of is None:
            yield from (number for number, _ in enumerate(outcomes()))
            return
        for group in self.groups(outcomes(), ()):
            yield max(islice(group, self.best_of), key=lambda row: row[1])[0]

    def pairs(self, outcomes: Iterator[Outcome], column: str) -> Iterator[Row]:
        """Yield the best and the worst of each group, unless all are liked equally."""
        for group in self.groups(outcomes, (column,)):
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

    def groups(
        self, outcomes: Iterator[Outcome], columns: tuple[str, ...]
    ) -> Iterator[Iterator[tuple[int, float, Row]]]:
        """Yield rows that share prompt and user: number, reward and some columns of each.

        Rows without a reward belong to no group and divide none.
        """
        rows = read_rows(self.source, ("prompt", "user_id", *columns))
        numbered = enumerate(zip(rows, outcomes, strict=True))
        scored = (
            (number, outcome, row)
            for number, (row, outcome) in numbered
            if isinstance(outcome, float) and isinstance(row, dict)
        )
        for _, group in groupby(scored, key=lambda row: _group_of(row[2])):
            yield group

    @property
    def error(self) -> str:
        """The column of reasons why a row has no outcome."""
        return f"{self.outcome}_error"

    def _with_outcome(self, row: Row | BadRow, outcome: Outcome) -> Row:
        """Return a row of the output; one that is scored, but cannot be copied, says so."""
        value, error = (None, outcome) if isinstance(outcome, str) else (outcome, None)
        if isinstance(row, BadRow):
            return {NUMBER: row.number, self.outcome: value, self.error: error or row.reason}
        return {**row, self.outcome: value, self.error: error}

    def _with_outcomes(self, table: pa.Table, outcomes: Sequence[Outcome]) -> pa.Table:
        """Return a table with outcomes and errors, in the place of columns that are already
        there."""
        import pyarrow as pa

        values = [None if isinstance(outcome, str) else outcome for outcome in outcomes]
        errors = [outcome if isinstance(outcome, str) else None for outcome in outcomes]
        for name, column in (
            (self.outcome, pa.array(values, pa.float64())),
            (self.error, pa.array(errors, pa.string())),
        ):
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, column)
            else:
                table = table.append_column(name, column)
        return table


def schema_to_write(source: Path) -> pa.Schema:
    """Return the columns of the input as Parquet holds them; raises RewardError where it cannot."""
    if is_parquet(source):
        return read_schema(source)
    rows = copied_rows(source, to_parquet=True)
    return common_schema({NUMBER: r.number} if isinstance(r, BadRow) else r for r in rows)


def copied_rows(source: Path, to_parquet: bool) -> Iterator[Row | BadRow]:
    """Yield the rows of the input as they are copied to the output."""
    for number, row in enumerate(read_rows(source), start=1):
        if to_parquet and isinstance(row, dict) and not fits_parquet(row):
            yield BadRow(number, "a number or a text that Parquet cannot hold; write .jsonl")
        else:
            yield row


def _group_of(row: Row) -> tuple[str, str]:
    user = row.get("user_id")
    name = user if isinstance(user, dict) else user_name(user)
    return json.dumps(row.get("prompt"), default=str), json.dumps(name, default=str)


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
