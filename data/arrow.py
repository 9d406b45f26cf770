"""Parquet and Arrow files: which columns hold bytes, where a row stands, batches one by one."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = ".parquet"


def is_parquet(file: Path) -> bool:
    return file.suffix.lower() == PARQUET


def columns_of_bytes(file: Path) -> tuple[str, ...]:
    """Return the columns that hold bytes, themselves or within; raises ValueError for a file that
    is none of its kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if is_parquet(file):
            schema = pq.read_schema(file)
        else:
            with arrow_reader(file) as reader:
                schema = reader.schema
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error
    return tuple(field.name for field in schema if holds_bytes(field.type))


def holds_bytes(kind: pa.DataType) -> bool:
    """Say whether values of an Arrow type hold bytes, themselves or within."""
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    return any(holds_bytes(kind.field(number).type) for number in range(kind.num_fields))


@contextmanager
def arrow_reader(file: Path) -> Iterator[pa.RecordBatchReader]:
    """Open an Arrow file of either form, memory-mapped; its batches are read one after another."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as source:
        if source.read(6) == b"ARROW1":
            opened = pa.ipc.open_file(source)
            batches = (opened.get_batch(number) for number in range(opened.num_record_batches))
            yield pa.RecordBatchReader.from_batches(opened.schema, batches)
        else:
            source.seek(0)
            yield pa.ipc.open_stream(source)


def batches_of(file: Path, size: int, left_out: Collection[str]) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a file, of a Parquet file with so many rows, without some columns;
    raises ValueError where it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if is_parquet(file):
            with pq.ParquetFile(file, pre_buffer=False) as opened:
                names = [name for name in opened.schema_arrow.names if name not in left_out]
                yield from opened.iter_batches(size, columns=names)
        else:
            with arrow_reader(file) as batches:
                for batch in batches:
                    kept = [name for name in batch.schema.names if name not in left_out]
                    yield batch.select(kept)
    except pa.ArrowException as error:
        raise ValueError(str(error)) from error


def read_group(file: Path, column: str, group: int) -> pa.ChunkedArray:
    """Return one column of one row group of a Parquet file, or of one batch of an Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if is_parquet(file):
        with pq.ParquetFile(file) as opened:
            return opened.read_row_group(group, columns=[column]).column(0)
    with arrow_reader(file) as batches:
        batch = next(itertools.islice(batches, group, None))
        # the file is unmapped when this returns
        copied = pa.concat_arrays([batch.column(column), batch.column(column).slice(0, 0)])
        return pa.chunked_array([copied])


def row_in_group(file: Path, number: int) -> tuple[int, int]:
    """Return where a row of a Parquet or Arrow file stands: its row group or batch, and the row
    within that."""
    ends = _group_ends(file, file.stat().st_mtime_ns)
    group = bisect.bisect_right(ends, number)
    return group, number - (ends[group - 1] if group else 0)


@cache
def _group_ends(file: Path, modified: int) -> list[int]:
    import pyarrow.parquet as pq

    if not is_parquet(file):
        with arrow_reader(file) as batches:
            return list(itertools.accumulate(batch.num_rows for batch in batches))
    metadata = pq.read_metadata(file)
    return list(
        itertools.accumulate(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
    )
