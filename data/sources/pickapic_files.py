"""Pick-a-Pic's files as published: splits by name, row groups, and lists of ranking ids."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pal.dataset import Split
from pal.errors import DataError

SPLITS: dict[str, tuple[Split, str]] = {
    "train": ("train", "both"),
    "validation": ("val", "full"),
    "test": ("test", "full"),
    "validation_unique": ("val", "unique"),
    "test_unique": ("test", "unique"),
}
"""the source's splits by file name: ours, and which of the source's two evaluation sets they are
of"""


def opened(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file} is no whole Parquet file ({error}); fetch it again") from error


def read_batches(
    parquet: pq.ParquetFile, file: Path, group: int, columns: list[str], size: int
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a row group; raises DataError where it is damaged."""
    try:
        yield from parquet.iter_batches(size, row_groups=[group], columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot read row group {group} of {file} ({error}); fetch it again"
        ) from error


def split_of_file(file: Path) -> str | None:
    """Return the source's split that a file belongs to, by the beginning of its name; None if it
    names none."""
    for name in sorted(SPLITS, key=len, reverse=True):
        if re.match(rf"{name}(?![a-z_])", file.name):
            return name
    return None


def footer_digest(file: Path) -> str:
    """Return the SHA-256 of a Parquet file's footer, and its size."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return f"footer {hashlib.sha256(stream.read(length)).hexdigest()} of {size} bytes"


def runs(sizes: list[int], rows: int) -> Iterator[list[int]]:
    """Cut row groups into runs of about so many rows."""
    run: list[int] = []
    for group in range(len(sizes)):
        run.append(group)
        if sum(sizes[g] for g in run) >= rows:
            yield run
            run = []
    if run:
        yield run


def read_ranking_ids(path: Path) -> frozenset[int]:
    """Read ranking ids from a tensor or list (.pt), a JSON list, or a text file with one a line."""
    try:
        if path.suffix == ".pt":
            import torch

            found = torch.load(path, weights_only=True)
            values: Any = found.tolist() if hasattr(found, "tolist") else found
        elif path.suffix == ".json":
            values = json.loads(path.read_text(encoding="utf-8"))
        else:
            with open(path, newline="", encoding="utf-8") as stream:
                values = [
                    line[0]
                    for line in csv.reader(stream)
                    if line and line[0].strip() != "ranking_id"
                ]
        return frozenset(int(value) for value in values)
    except Exception as error:  # torch and json have many ways of refusing a file
        raise DataError(
            f"cannot read ranking ids from {path} ({type(error).__name__}: {error}); give a .pt "
            "or .json list, or one id a line"
        ) from error
