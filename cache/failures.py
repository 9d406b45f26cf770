"""The table of items that could not be encoded: nothing is dropped silently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from pal.files import atomic_file
from pal.items import ID_BYTES
from pal.records import Damaged, read_table, write_table


class FailedItem(NamedTuple):
    """A row of the table."""

    item_id: bytes
    stage: str
    """fetch, decode, tokenize, encode or nonfinite"""
    error_class: str
    message: str
    attempts: int


SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.binary(ID_BYTES), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error_class", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("attempts", pa.int32(), nullable=False),
    ]
)


def write_failures(path: Path, failures: Sequence[FailedItem], owner: str) -> None:
    """Write the failed items of a shard; where there are none, no table.

    ``owner`` is the fingerprint of the cache.
    """
    if not failures:
        path.unlink(missing_ok=True)
        return
    columns: list[list[object]] = [list(column) for column in zip(*failures, strict=True)]
    # a message may quote a text that is not Unicode
    plain = [str(message).encode("utf-8", "replace").decode() for message in columns[3]]
    with atomic_file(path) as temporary:
        table = pa.table([*columns[:3], plain, columns[4]], schema=SCHEMA)
        write_table(temporary, table, "errors", of=owner)


def attempts_of(path: Path, owner: str) -> dict[bytes, int]:
    """Return how often each failed item has been tried; a damaged table knows of none."""
    try:
        table = read_table(path, "errors", of=owner, columns=["item_id", "attempts"])
    except Damaged:
        return {}
    names, attempts = (table.column(name).to_pylist() for name in ("item_id", "attempts"))
    return dict(zip(names, attempts, strict=True))


def classes_of(path: Path, owner: str) -> Counter[str] | None:
    """Return the number of failed items by class of error, None where the table is damaged."""
    try:
        table = read_table(path, "errors", of=owner, columns=["error_class"])
    except Damaged:
        return None
    return Counter(table.column("error_class").to_pylist())
