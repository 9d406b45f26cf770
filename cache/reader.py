"""Cached features as tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pal.cache.records import Manifest
from pal.cache.shard import ITEM_BYTES, Shard
from pal.cache.spec import Spec, differences, embed_command
from pal.cache.verified import record_verified, require_undamaged
from pal.errors import CacheError, CacheMismatch
from pal.items import ID_BYTES
from pal.records import Damaged, read_sealed, read_tensors

if TYPE_CHECKING:
    import polars as pl
    import torch

COPY_THREADS = 4
COPY_BYTES = 4 << 20
SCORE_HEAD = "score.safetensors"


class FeatureStore:
    """A complete cache, open for reading. Rows stand in the order of the manifest's shards."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self.shards = [Shard(folder / entry.path) for entry in manifest.shards if entry.rows]
        self.rows = manifest.rows
        self.dim = manifest.dim
        self.dtype = manifest.dtype
        self._starts = np.cumsum([0, *(shard.rows for shard in self.shards)])

    @classmethod
    def open(cls, folder: Path, expect: Spec | None = None) -> FeatureStore:
        """Open a cache.

        Raises CacheError if it is absent, incomplete or damaged, CacheMismatch if its specification
        is not ``expect``.
        """
        manifest = Manifest.of(folder)
        try:
            return cls._checked(folder, manifest, expect)
        except CacheError:
            later = Manifest.find(folder)
            if later is None or later == manifest:
                raise
            return cls._checked(folder, later, expect)  # failed items were just encoded again

    @classmethod
    def _checked(cls, folder: Path, manifest: Manifest, expect: Spec | None) -> FeatureStore:
        if expect is not None and manifest.spec != expect:
            listed = "; ".join(differences(manifest.spec, expect))
            raise CacheMismatch(
                f"{folder} was made under another specification ({listed}); run "
                f"{embed_command(folder)} again"
            )
        marks = require_undamaged(folder, manifest.shards, trusting=True)
        for name, seal in manifest.files.items():
            try:
                read_sealed(folder / name, seal)
            except Damaged as problem:
                raise CacheError(
                    f"{folder / name} {problem}; {Manifest.remedy_for(folder)}"
                ) from None
        record_verified(folder, marks)
        try:
            return cls(folder, manifest)
        except FileNotFoundError:
            raise CacheError(
                f"{folder} lost a shard while it was opened; {Manifest.remedy_for(folder)}"
            ) from None

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @cached_property
    def item_ids(self) -> np.ndarray:
        """(rows,) S16, the id of each row."""
        if not self.shards:
            return np.empty(0, f"S{ID_BYTES}")
        return np.concatenate([shard.item_ids() for shard in self.shards])

    @property
    def items_digest(self) -> str:
        """A digest of which items have a feature: those that failed may have one later, under the
        same fingerprint."""
        names, _ = self._sorted
        return hashlib.blake2b(names.tobytes(), digest_size=16).hexdigest()

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
                f"e.g. {example}; see {self.folder / 'errors'} or run "
                f"{embed_command(self.folder)} again"
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
            # unlike torch, NumPy asks for huge pages: 3x the speed
            target = np.empty((self.rows, width), np.uint8)
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
        values = torch.from_numpy(target).view(getattr(torch, self.dtype))
        return values.to(device, non_blocking=True)

    def gather(self, rows: np.ndarray) -> torch.Tensor:
        """Copy some rows, (n,) int -> (n, dim) in the cache's dtype; reads their pages alone."""
        import torch

        if not len(rows):  # torch does not view nothing as another dtype
            return torch.empty(0, self.dim, dtype=getattr(torch, self.dtype))
        out = np.empty((len(rows), self.shards[0].width), np.uint8)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard_of):
            shard, here = self.shards[number], np.flatnonzero(shard_of == number)
            out[here] = shard.gather(rows[here] - self._starts[number])
        return torch.from_numpy(out).view(getattr(torch, self.dtype))

    def iter_blocks(self, rows: int = 16_384) -> Iterator[torch.Tensor]:
        """Yield the features in order, ``rows`` at a time, for caches larger than memory."""
        for start in range(0, self.rows, rows):
            yield self.gather(np.arange(start, min(start + rows, self.rows)))

    def score_weight(self) -> torch.Tensor | None:
        """Return a reward model's own linear score head, (labels, dim) float32, else None."""
        seal = self.manifest.files.get(SCORE_HEAD)
        if seal is None:
            return None
        path = self.folder / SCORE_HEAD
        try:
            return read_tensors(path, seal)["weight"]
        except Damaged as problem:
            raise CacheError(f"{path} {problem}; {Manifest.remedy_for(self.folder)}") from None

    def scan(self) -> pl.LazyFrame:
        """Return the shards as a polars LazyFrame; float16 and float32 features are arrays."""
        import polars as pl

        frame = pl.scan_parquet([shard.path for shard in self.shards])
        inner = {"float16": pl.Float16, "float32": pl.Float32}.get(self.dtype)
        if inner is None:  # polars has no bfloat16
            return frame
        return frame.with_columns(
            pl.col("feature").bin.reinterpret(dtype=pl.Array(inner, self.dim))
        )
