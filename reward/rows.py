"""Files of rows that are scored: read block by block, so that memory does not grow, and written.

The ending of a name says what the file is: .parquet, .csv, .tsv, and anything else JSON lines. A
Parquet file is read and written by pyarrow from end to end, so its types, nested columns and
metadata stay as they are. JSONL is JSON line by line, CSV cell by cell. What of a row cannot be
read costs that row alone (pal.rows).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pal.errors import RewardError
from pal.items import is_unicode
from pal.reward.cells import is_cells, read_cells
from pal.reward.plain import line_of
from pal.rows import BadRow, Row, other_kind, rows_of_batch, rows_of_lines

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK = 512
ROW_GROUP_BYTES = 16 << 20
LARGEST_WHOLE = 1 << 63
SIDES = (("first", "second"), ("chosen", "rejected"))
"""columns of rows that are comparisons"""
T = TypeVar("T")


def sides_in(names: Container[str]) -> tuple[str, str] | None:
    """Return which two columns of a comparison there are."""
    return next((sides for sides in SIDES if all(side in names for side in sides)), None)


def sides_of(row: Row) -> tuple[str, str] | None:
    """Return in which two columns a row's comparison stands, as where a dataset is read: a file may
    have both kinds, and what was chosen says more."""
    given = {name for name, value in row.items() if value is not None}
    whole = (sides for sides in reversed(SIDES) if given.issuperset(sides))
    return next(whole, None) or sides_in(row)


def item_in(row: Row, column: str, is_image: bool) -> Any:
    """Return the item in a cell; Hugging Face datasets keep an image as bytes or a path."""
    item = row.get(column)
    return (item.get("bytes") or item.get("path")) if is_image and isinstance(item, dict) else item


def is_parquet(path: Path) -> bool:
    return path.suffix == ".parquet"


def blocks(rows: Iterable[T]) -> Iterator[list[T]]:
    """Yield rows in lists of ``BLOCK``; the last one may be shorter."""
    iterator = iter(rows)
    while block := list(islice(iterator, BLOCK)):
        yield block


def read_rows(
    path: Path, columns: Sequence[str] | None = None, option: str = "--input"
) -> Iterator[Row | BadRow]:
    """Yield the rows of a JSONL, CSV or Parquet file; of Parquet only ``columns`` are read, if
    given. ``option`` named the file.

    Empty lines are no rows.
    """
    require_file(path, option)
    if is_parquet(path):
        return _read_parquet(path, columns)
    return read_cells(path) if is_cells(path) else _read_jsonl(path)


def require_file(path: Path, option: str = "--input") -> None:
    """Raise RewardError unless there is a file that may hold rows, and can be read."""
    try:
        if not path.exists():
            raise RewardError(f"{path} does not exist; give {option} a JSONL, CSV or Parquet file")
        if not path.is_file():
            raise RewardError(
                f"{option} {path} is no regular file, and rows are read several times; give a "
                "JSONL, CSV or Parquet file"
            )
        with open(path, "rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise RewardError(
            f"cannot read {path} ({error.strerror}); give another {option}"
        ) from error
    kind = None if is_parquet(path) else other_kind(start)
    if kind is not None:
        raise RewardError(
            f"{path} is {kind}, not {'CSV' if is_cells(path) else 'JSON lines'}; unpack it, or "
            "give it the ending .parquet if it is Parquet"
        )


def _read_jsonl(path: Path) -> Iterator[Row | BadRow]:
    with open(path, "rb") as lines:
        yield from rows_of_lines(lines)


def _read_parquet(path: Path, columns: Sequence[str] | None) -> Iterator[Row | BadRow]:
    before = 0
    for batch in read_batches(path, columns):
        yield from rows_of_batch(batch, before)
        before += batch.num_rows


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


def write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as lines of JSON and return how many.

    Bytes become ``{"base64": ...}``; NaN and infinity, which JSON does not have, become null.
    """
    count = 0
    with open(path, "w", encoding="utf-8") as out:
        for count, row in enumerate(rows, start=1):  # noqa: B007, counted for after the loop
            out.write(line_of(row))
    return count


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


def write_parquet(path: Path, rows: Iterable[Row], schema: pa.Schema) -> int:
    """Write rows of a schema as Parquet and return how many."""
    return write_batches(path, (_table(block, schema) for block in blocks(rows)), schema)


def fits_parquet(value: Any) -> bool:
    """Say whether a value of JSON can stand in Parquet, whatever else its column holds."""
    if isinstance(value, str):
        return is_unicode(value)
    if isinstance(value, dict):
        return all(is_unicode(key) and fits_parquet(inner) for key, inner in value.items())
    if isinstance(value, list):
        return all(map(fits_parquet, value))
    return not isinstance(value, int) or -LARGEST_WHOLE <= value < LARGEST_WHOLE


def common_schema(rows: Iterable[Row]) -> pa.Schema:
    """Return the columns that rows have together; raises RewardError where one column holds
    different kinds of values."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([])
    try:
        for block in blocks(rows):
            schema = pa.unify_schemas([schema, _table(block).schema], promote_options="permissive")
        pq.ParquetWriter(pa.BufferOutputStream(), schema).close()
    except pa.ArrowException as error:
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
