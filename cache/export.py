"""Copies of a cache in formats that other tools read.

fsl          features.parquet      item_id, and feature as FixedSizeList
npy          features.npy          (rows, dim), memory-mappable, and item_ids.npy
safetensors  features.safetensors  feature (rows, dim) in its own dtype, item_id (rows, 16) uint8

Parquet, Arrow and NumPy lack bfloat16: it becomes float32 there. README.md says how each is read,
by people and by ``datasets.load_dataset``. The cache itself stays the one that is verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pal.cache.copy_card import card
from pal.cache.reader import FeatureStore
from pal.errors import CacheError
from pal.files import atomic_directory
from pal.items import ID_BYTES
from pal.records import Entry, JsonObject, Record

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 16_384


class CopyRecord(
    Record,
    kind="cache-export",
    file="cache.json",
    error=CacheError,
    remedy="remove {folder} and run pal cache export again",
):
    """``cache.json`` of a copy: which cache it was made of."""

    fingerprint: str
    spec: JsonObject
    dim: int
    dtype: str
    rows: int
    format: str
    untrained: bool


class ExportedCache(Entry):
    """What an export wrote."""

    dir: str
    format: str
    rows: int
    dim: int
    files: list[str]
    bytes: int


def export(folder: Path, target: Path, kind: str) -> ExportedCache:
    """Write a copy of a complete cache into the new folder ``target``, whole or not at all.

    ``cache.json`` beside it keeps fingerprint and specification. Raises CacheError for an unknown
    format, or if ``target`` exists: an export overwrites nothing.
    """
    if kind not in FORMATS:
        raise CacheError(f"unknown format {kind!r}; use --format with one of: {', '.join(FORMATS)}")
    if target.exists():
        raise CacheError(f"{target} exists; remove it or export to another folder with --output")
    store = FeatureStore.open(folder)
    with atomic_directory(target) as temporary:
        FORMATS[kind](store, temporary)
        text = card(store.manifest, kind, target.name)
        (temporary / "README.md").write_text(text, encoding="utf-8")
        CopyRecord(
            fingerprint=store.fingerprint,
            spec=store.manifest.spec,
            dim=store.dim,
            dtype=store.dtype,
            rows=store.rows,
            format=kind,
            untrained=store.manifest.untrained,
        ).write(temporary)
    files = sorted(target.iterdir())
    return ExportedCache(
        dir=str(target),
        format=kind,
        rows=store.rows,
        dim=store.dim,
        files=[file.name for file in files],
        bytes=sum(file.stat().st_size for file in files),
    )


def _write_fsl(store: FeatureStore, folder: Path) -> None:
    inner = pa.float16() if store.dtype == "float16" else pa.float32()
    schema = pa.schema(
        [pa.field("item_id", pa.binary(ID_BYTES)), pa.field("feature", pa.list_(inner, store.dim))]
    )
    with pq.ParquetWriter(
        folder / "features.parquet", schema, compression="none", use_dictionary=False
    ) as writer:
        start = 0
        for block in store.iter_blocks(ROWS_AT_ONCE):
            values = pa.array(_as_numpy(block).reshape(-1))
            ids = _ids(store)[start : start + len(block)].tobytes()
            names = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(ID_BYTES), len(block), [None, pa.py_buffer(ids)]
            )
            writer.write_table(
                pa.table(
                    [names, pa.FixedSizeListArray.from_arrays(values, store.dim)], schema=schema
                )
            )
            start += len(block)


def _write_npy(store: FeatureStore, folder: Path) -> None:
    dtype = np.float16 if store.dtype == "float16" else np.float32
    with _new_array(folder / "features.npy", np.dtype(dtype), (store.rows, store.dim)) as stream:
        for block in store.iter_blocks(ROWS_AT_ONCE):
            stream.write(_as_numpy(block).tobytes())
    with _new_array(folder / "item_ids.npy", np.dtype(np.uint8), (store.rows, ID_BYTES)) as stream:
        stream.write(_ids(store).tobytes())


@contextmanager
def _new_array(path: Path, dtype: np.dtype, shape: tuple[int, int]) -> Iterator[BinaryIO]:
    """Yield a file for the rows of an array; a mapped one would crash where the disk is full."""
    descr = np.lib.format.dtype_to_descr(dtype)
    with open(path, "wb") as stream:
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        yield stream


def _write_safetensors(store: FeatureStore, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {"feature": store.features(), "item_id": torch.from_numpy(_ids(store).copy())}
    save_file(tensors, folder / "features.safetensors", {"fingerprint": store.fingerprint})


FORMATS: dict[str, Callable[[FeatureStore, Path], None]] = {
    "fsl": _write_fsl,
    "npy": _write_npy,
    "safetensors": _write_safetensors,
}


def _ids(store: FeatureStore) -> np.ndarray:
    """Return the item ids, (rows, 16) uint8."""
    return store.item_ids.view(np.uint8).reshape(-1, ID_BYTES)


def _as_numpy(block: torch.Tensor) -> np.ndarray:
    """Return rows as NumPy has them: bfloat16 becomes float32, which holds all its values."""
    import torch

    array: np.ndarray = (block.float() if block.dtype == torch.bfloat16 else block).numpy()
    return array
