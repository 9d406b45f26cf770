"""One shard as a Parquet file whose vectors lie contiguously, and the proof that they do.

Vectors are a REQUIRED fixed-width binary column, PLAIN, uncompressed, one data page per row group:
any Parquet reader opens the file, and we copy the vectors straight from it at memory speed
(cache.md 1.2).
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pal.items import ID_BYTES

ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}
MAX_GROUP_ROWS = 16_384
MAX_GROUP_BYTES = 256 << 20
FEATURE = 3  # position of the feature column
LONGEST_HEADER_TAIL = 8  # bytes a page header may have behind the part that is compared


def shard_schema(dim: int, dtype: str) -> pa.Schema:
    """Return the columns of a shard; the feature's metadata says how to read its bytes."""
    meta = {
        "pal.dtype": dtype,
        "pal.shape": f"[{dim}]",
        "pal.byteorder": "little",
        "pal.layout": "flba1",
    }
    return pa.schema(
        [
            pa.field("item_id", pa.binary(ID_BYTES), nullable=False),
            pa.field("n_tokens", pa.int32(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("feature", pa.binary(dim * ITEM_BYTES[dtype]), nullable=False, metadata=meta),
        ]
    )


def write_shard(
    path: Path,
    item_ids: np.ndarray,
    n_tokens: np.ndarray,
    truncated: np.ndarray,
    features: np.ndarray,
    dtype: str,
    metadata: dict[str, str],
) -> int:
    """Write rows to a new file and return the number of row groups.

    ``item_ids``: (n,) of dtype S16; ``features``: (n, dim * itemsize) uint8, C-contiguous, the raw
    little-endian bytes of the vectors; ``metadata`` goes into the file's own metadata.
    """
    rows, width = features.shape
    schema = shard_schema(width // ITEM_BYTES[dtype], dtype).with_metadata(metadata)
    group = max(1, min(MAX_GROUP_ROWS, MAX_GROUP_BYTES // width))

    def fixed_width(values: np.ndarray, size: int) -> pa.Array:
        buffer = pa.py_buffer(np.ascontiguousarray(values))
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), rows, [None, buffer])

    table = pa.table(
        [
            fixed_width(item_ids.astype(f"S{ID_BYTES}"), ID_BYTES),
            pa.array(n_tokens, pa.int32()),
            pa.array(truncated, pa.bool_()),
            fixed_width(features, width),
        ],
        schema=schema,
    )
    with pq.ParquetWriter(
        path,
        schema,
        compression="none",
        use_dictionary=False,
        data_page_version="1.0",
        # statistics on feature would put whole vectors into page headers
        write_statistics=["n_tokens"],
        data_page_size=1 << 30,
        write_batch_size=group,
        max_rows_per_page=1 << 30,
    ) as writer:
        writer.write_table(table, row_group_size=group)
    return -(-rows // group)


def _zigzag(number: int) -> bytes:
    """Encode a non-negative integer as Thrift's compact protocol does."""
    out, number = bytearray(), number << 1
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def contiguous_vectors(
    metadata: Any, group: int, width: int, head_of: Any
) -> tuple[int, int] | None:
    """Return (start, stop) of a row group's vectors in the file, None if they are not in one piece.

    A rule on sizes alone is unsound: eight pages can have as many header bytes as one. So the page
    header is compared with the only bytes it may contain. ``head_of(offset, size)`` reads the file.
    """
    rows = metadata.row_group(group)
    chunk, column = rows.column(FEATURE), metadata.schema.column(FEATURE)
    wanted = rows.num_rows * width
    if (
        column.physical_type != "FIXED_LEN_BYTE_ARRAY"
        or column.length != width
        or column.max_definition_level
        or column.max_repetition_level
        or chunk.compression != "UNCOMPRESSED"
        or chunk.has_dictionary_page
    ):
        return None
    # one v1 data page of exactly `wanted` bytes, all rows, encoding PLAIN
    size = _zigzag(wanted)
    head = (
        b"\x15\x00\x15" + size + b"\x15" + size + b"\x2c\x15" + _zigzag(rows.num_rows) + b"\x15\x00"
    )
    extra = chunk.total_compressed_size - wanted
    if not 0 < extra - len(head) <= LONGEST_HEADER_TAIL:
        return None
    if head_of(chunk.data_page_offset, len(head)) != head:
        return None
    start = chunk.data_page_offset + extra
    return start, start + wanted


class Shard:
    """A written shard, open for reading: ids and counts in memory, vectors where they lie."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata = pq.read_metadata(path)
        field = self.metadata.schema.to_arrow_schema().field("feature")
        self.dtype = field.metadata[b"pal.dtype"].decode()
        self.width = field.type.byte_width
        self.dim = self.width // ITEM_BYTES[self.dtype]
        self.rows = self.metadata.num_rows
        with open(path, "rb") as file:
            self._mmap = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map = np.frombuffer(self._mmap, np.uint8)
        self.groups: list[np.ndarray] = [
            self._group(number) for number in range(self.metadata.num_row_groups)
        ]
        self.starts = np.cumsum([0, *(len(group) for group in self.groups)])

    def is_view(self, rows: np.ndarray) -> bool:
        """Say whether some rows of ``groups`` are the file's own bytes and not a decoded copy."""
        return 0 <= rows.ctypes.data - self._map.ctypes.data < len(self._map)

    def forget(self, rows: np.ndarray) -> None:
        """Unmap the pages behind copied rows of ``groups``, which count as our memory."""
        if self.is_view(rows):
            start = rows.ctypes.data - self._map.ctypes.data
            first = start - start % mmap.PAGESIZE
            self._mmap.madvise(mmap.MADV_DONTNEED, first, start + rows.nbytes - first)

    def item_ids(self) -> np.ndarray:
        """Return the ids, (rows,) of dtype S16."""
        column = pq.read_table(self.path, columns=["item_id"]).column(0).combine_chunks()
        return np.frombuffer(
            column.buffers()[1],
            dtype=f"S{ID_BYTES}",
            count=len(column),
            offset=column.offset * ID_BYTES,
        )

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Copy the vectors of some rows, (n,) int -> (n, width) uint8; reads their pages alone."""
        out = np.empty((len(rows), self.width), np.uint8)
        group_of = np.searchsorted(self.starts, rows, side="right") - 1
        for group in np.unique(group_of):
            mine = group_of == group
            out[mine] = self.groups[group][rows[mine] - self.starts[group]]
        return out

    def _group(self, number: int) -> np.ndarray:
        """Return a row group's vectors, (rows, width) uint8: a view of the file if possible."""

        def head_of(offset: int, size: int) -> bytes:
            return self._map[offset : offset + size].tobytes()

        place = contiguous_vectors(self.metadata, number, self.width, head_of)
        if place is not None:
            return self._map[place[0] : place[1]].reshape(-1, self.width)
        with pq.ParquetFile(self.path) as file:
            column = file.read_row_group(number, columns=["feature"]).column(0).combine_chunks()
        values = np.frombuffer(
            column.buffers()[1], np.uint8, len(column) * self.width, column.offset * self.width
        )
        return values.reshape(-1, self.width)
