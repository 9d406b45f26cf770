"""Rows of JSONL and Parquet files, read and written block by block: memory does not grow.

A Parquet file is read and written by pyarrow from end to end, so its types, nested columns and
metadata stay as they are. JSONL is JSON line by line.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal.errors import RewardError

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 512
ROW_GROUP_BYTES = 16 << 20
Row = dict[str, Any]


def is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield rows in lists of ``BLOCK``; the last one may be shorter."""
    iterator = iter(rows)
    while block := list(islice(iterator, BLOCK)):
        yield block


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a JSONL or Parquet file; of Parquet only ``columns`` are read, if given.

    Raises RewardError naming the line that is none.
    """
    require_file(path)
    return _read_parquet(path, columns) if is_parquet(path) else _read_jsonl(path)


def require_file(path: Path) -> None:
    """Raise RewardError where there is no file."""
    if not path.is_file():
        raise RewardError(f"{path} does not exist; give --input a JSONL or Parquet file")


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    for batch in read_batches(path, columns):
        if batch.num_columns:
            yield from batch.to_pylist()
        else:
            yield from ({} for _ in range(batch.num_rows))


def read_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a Parquet file; raises RewardError where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as opened:
            names = opened.schema_arrow.names
            wanted = None if columns is None else [name for name in columns if name in names]
            yield from opened.iter_batches(BLOCK, columns=wanted)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RewardError(
            f"{path} is no Parquet file that can be read ({type(error).__name__}); write it again"
        ) from error


def read_schema(path: Path) -> pa.Schema:
    """Return the columns of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RewardError(
            f"{path} is no Parquet file that can be read ({type(error).__name__}); write it again"
        ) from error


def _read_jsonl(path: Path) -> Iterator[Row]:
    with open(path, "rb") as lines:
        for number, raw in enumerate(lines, start=1):
            row = _row_of_line(raw, f"{path} line {number}")
            if row is not None:
                yield row


def _row_of_line(raw: bytes, where: str) -> Row | None:
    """Return a line's object, None for an empty line; raises RewardError for anything else."""
    try:
        line = raw.decode()
        if not line.strip():
            return None
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise RewardError(f"{where} is not UTF-8; give JSONL in UTF-8, or Parquet") from error
    except RecursionError as error:
        raise RewardError(f"{where} is nested too deeply; correct it") from error
    except ValueError as error:
        reason = getattr(error, "msg", error)
        raise RewardError(f"{where} is not JSON ({reason}); correct it") from error
    if not isinstance(row, dict):
        raise RewardError(f"{where} is not an object with prompt and response; correct it")
    return row


def write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as lines of JSON and return how many; bytes become ``{"base64": ...}``."""
    count = 0
    with open(path, "w", encoding="utf-8") as out:
        for count, row in enumerate(rows, start=1):  # noqa: B007, counted for after the loop
            out.write(_line(row))
    return count


def _line(row: Row) -> str:
    text = json.dumps(row, ensure_ascii=False, default=_plain)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can write
        text = json.dumps(row, default=_plain)
    return text + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return str(value)


def write_batches(path: Path, batches: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write tables of one schema as Parquet and return the number of rows."""
    import pyarrow.parquet as pq

    count = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for group in _row_groups(batches):
            writer.write_table(group)
            count += group.num_rows
    return count


def _row_groups(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join small tables, for a file of tiny row groups is slow to read."""
    import pyarrow as pa

    waiting: list[pa.Table] = []
    for batch in batches:
        waiting.append(batch)
        if sum(table.nbytes for table in waiting) >= ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def write_parquet(
    path: Path, rows: Callable[[], Iterator[Row]], schema: pa.Schema | None = None
) -> int:
    """Write rows as Parquet and return how many.

    Without a schema theirs is the one that all have together, which a first pass over ``rows()``
    finds. Raises RewardError where one column holds different kinds of values.
    """
    if schema is None:
        schema = _common_schema(rows())
    return write_batches(path, (_table(block, schema) for block in blocks(rows())), schema)


def _common_schema(rows: Iterator[Row]) -> pa.Schema:
    import pyarrow as pa

    schema = pa.schema([])
    for block in blocks(rows):
        try:
            schema = pa.unify_schemas([schema, _table(block).schema], promote_options="permissive")
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise _different_kinds(error) from error
    return schema


def _table(block: list[Row], schema: pa.Schema | None = None) -> pa.Table:
    """Return rows as a table with the columns that any of them has, or those of a schema."""
    import pyarrow as pa

    if schema is None:
        names = list(dict.fromkeys(name for row in block for name in row))
    else:
        names = schema.names
    try:
        return pa.table({name: [row.get(name) for row in block] for name in names}, schema=schema)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
        raise _different_kinds(error) from error


def _different_kinds(error: Exception) -> RewardError:
    return RewardError(
        f"a column holds values that one Parquet column cannot hold ({error}); write .jsonl"
    )
