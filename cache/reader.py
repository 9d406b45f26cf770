"""Cached features as tensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pal.cache.shard import ITEM_BYTES, Shard
from pal.cache.spec import Spec, differences
from pal.cache.writer import is_undamaged, record_verified
from pal.dataset import ID_BYTES
from pal.errors import CacheError, CacheMismatch

if TYPE_CHECKING:
    import polars as pl
    import torch

COPY_THREADS = 4
COPY_BYTES = 4 << 20


class FeatureStore:
    """A complete cache, open for reading. Rows stand in the order of the manifest's shards."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.shards = [
            Shard(folder / entry["path"]) for entry in manifest["shards"] if entry["rows"]
        ]
        self.rows: int = manifest["rows"]
        self.dim: int = manifest["dim"]
        self.dtype: str = manifest["dtype"]
        self._starts = np.cumsum([0, *(shard.rows for shard in self.shards)])

    @classmethod
    def open(cls, folder: Path, expect: Spec | None = None) -> FeatureStore:
        """Open a cache; raises CacheError if it is absent, incomplete or damaged, CacheMismatch if
        its specification is not ``expect``.
        """
        path = folder / "manifest.json"
        if not path.is_file():
            raise CacheError(f"no complete cache in {folder}; run pal embed")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise CacheError(f"{path} is damaged; remove it and run pal embed again") from error
        if expect is not None and manifest["spec"] != expect:
            listed = "; ".join(differences(manifest["spec"], expect))
            raise CacheMismatch(
                f"{folder} was made under another specification ({listed}); run pal embed again"
            )
        damaged = [entry["path"] for entry in manifest["shards"] if not is_undamaged(folder, entry)]
        if damaged:
            raise CacheError(
                f"{folder}: {', '.join(damaged)} is damaged or missing; run pal embed again to "
                "re-encode it"
            )
        record_verified(folder, manifest["shards"])
        return cls(folder, manifest)

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @cached_property
    def item_ids(self) -> np.ndarray:
        """(rows,) S16, the id of each row."""
        if not self.shards:
            return np.empty(0, f"S{ID_BYTES}")
        return np.concatenate([shard.item_ids() for shard in self.shards])

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.item_ids, kind="stable")
        return self.item_ids[order], order

    def index(self, item_ids: np.ndarray, missing: str = "raise") -> np.ndarray:
        """Return the row of each id as int64.

        ``item_ids``: (n,) S16. Ids without a feature raise CacheError, or become -1 with
        ``missing="mask"``.
        """
        names, order = self._sorted
        wanted = np.asarray(item_ids, dtype=f"S{ID_BYTES}")
        place = np.minimum(np.searchsorted(names, wanted), max(len(names) - 1, 0))
        found = names[place] == wanted if len(names) else np.zeros(len(wanted), bool)
        if missing == "raise" and not found.all():
            example = bytes(wanted[~found][0]).ljust(ID_BYTES, b"\0").hex()
            raise CacheError(
                f"{self.folder} has no feature for {int((~found).sum())} of {len(wanted)} items, "
                f"e.g. {example}; "
                f"see {self.folder / 'errors'} or run pal embed again"
            )
        rows: np.ndarray = np.where(found, order[place] if len(names) else -1, -1)
        return rows

    def features(self, device: str = "cpu", out: np.ndarray | None = None) -> torch.Tensor:
        """Copy all features to a device: (rows, dim) in the dtype of the cache.

        ``out``: (rows, dim * item size) uint8 to fill instead of new memory, whose first touch
        costs more than copying.
        """
        import torch

        width = self.dim * ITEM_BYTES[self.dtype]
        if out is not None:
            target = out
        elif device.startswith("cuda"):
            target = torch.empty(self.rows, width, dtype=torch.uint8, pin_memory=True).numpy()
        else:
            target = np.empty(
                (self.rows, width), np.uint8
            )  # unlike torch, NumPy asks for huge pages: 3x the speed
        pieces = []
        for shard, start in zip(self.shards, self._starts, strict=False):
            for group, offset in zip(shard.groups, shard.starts, strict=False):
                step = max(1, COPY_BYTES // shard.width)
                for row in range(0, len(group), step):
                    piece = group[row : row + step]
                    begin = int(start + offset + row)
                    pieces.append((shard, piece, target[begin : begin + len(piece)]))

        def copy(shard: Shard, piece: np.ndarray, into: np.ndarray) -> None:
            np.copyto(into, piece)
            shard.forget(piece)

        with ThreadPoolExecutor(COPY_THREADS) as pool:  # copies release the interpreter lock
            for _ in pool.map(copy, *zip(*pieces, strict=True)) if pieces else ():
                pass
        return (
            torch.from_numpy(target).view(getattr(torch, self.dtype)).to(device, non_blocking=True)
        )

    def gather(self, rows: np.ndarray) -> torch.Tensor:
        """Copy some rows, (n,) int -> (n, dim) in the dtype of the cache, reading only their
        pages."""
        import torch

        if not len(rows):  # torch does not view nothing as another dtype
            return torch.empty(0, self.dim, dtype=getattr(torch, self.dtype))
        out = np.empty((len(rows), self.shards[0].width), np.uint8)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard_of):
            shard, here = self.shards[number], np.flatnonzero(shard_of == number)
            local = rows[here] - self._starts[number]
            group_of = np.searchsorted(shard.starts, local, side="right") - 1
            for group in np.unique(group_of):
                mine = group_of == group
                out[here[mine]] = shard.groups[group][local[mine] - shard.starts[group]]
        return torch.from_numpy(out).view(getattr(torch, self.dtype))

    def iter_blocks(self, rows: int = 16_384) -> Iterator[torch.Tensor]:
        """Yield the features in order, at most ``rows`` at a time, for caches larger than
        memory."""
        for start in range(0, self.rows, rows):
            yield self.gather(np.arange(start, min(start + rows, self.rows)))

    def score_weight(self) -> torch.Tensor | None:
        """Return the encoder's own linear score head, (labels, dim) float32, where it is a reward
        model."""
        path = self.folder / "score.safetensors"
        if not path.is_file():
            return None
        from safetensors.torch import load_file

        return load_file(path)["weight"]

    def scan(self) -> pl.LazyFrame:
        """Return the shards as a polars LazyFrame; float16 and float32 features appear as
        arrays."""
        import polars as pl

        frame = pl.scan_parquet([shard.path for shard in self.shards])
        inner = {"float16": pl.Float16, "float32": pl.Float32}.get(self.dtype)
        if inner is None:  # polars has no bfloat16
            return frame
        return frame.with_columns(
            pl.col("feature").bin.reinterpret(dtype=pl.Array(inner, self.dim))
        )
