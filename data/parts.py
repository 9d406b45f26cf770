"""A source read part by part; the parts of a long one are kept until the dataset is complete.

A killed run goes on where it was. Kept parts are sealed: a damaged one is read from the source
again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from pal.data.adapter import Part
from pal.data.comparisons import TABLES, Chunk, concatenated
from pal.files import atomic_directory
from pal.records import Damaged, read_table, write_table

KIND = "part"
Progress = Callable[[int], None]


def silent(parts: int) -> None:
    """Report progress to nobody."""


def read_parts(parts: Sequence[Part], kept: Path | None, progress: Progress = silent) -> Chunk:
    """Read all parts of a source; where there are several, each is kept in the folder ``kept``."""
    chunks = []
    for number, part in enumerate(parts):
        place = None if kept is None or len(parts) == 1 else kept / f"{number:06d}"
        chunk = _read(place) if place else None
        if chunk is None:
            chunk = part()
            if place:
                _keep(chunk, place)
        chunks.append(chunk)
        progress(1)
    return concatenated(chunks)


def _keep(chunk: Chunk, place: Path) -> None:
    with atomic_directory(place) as temporary:
        for table in TABLES:
            frame: pl.DataFrame = getattr(chunk, table)
            write_table(temporary / f"{table}.parquet", frame.to_arrow(), KIND, of=table)


def _read(place: Path) -> Chunk | None:
    """Return a part that was kept, None where there is none that can be trusted."""
    try:
        tables = [read_table(place / f"{table}.parquet", KIND, of=table) for table in TABLES]
    except Damaged:
        return None
    return Chunk(*(pl.DataFrame(pl.from_arrow(table)) for table in tables))
