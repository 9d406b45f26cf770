"""Looking after caches: what is there, and whether it is sound."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

import numpy as np

from pal.cache.reader import FeatureStore
from pal.cache.records import FeatureStatistics, Manifest, Seconds, SpecRecord
from pal.cache.spec import embed_command, fingerprint
from pal.cache.verified import require_undamaged
from pal.errors import CacheError
from pal.records import Entry


class ListedCache(Entry):
    """A cache in a list of them; of one that is not complete little is known."""

    dir: str
    state: Literal["complete", "incomplete", "damaged"]
    rows: int = 0
    dim: int = 0
    bytes: int = 0
    errors: int = 0
    dtype: str = "?"
    untrained: bool = False


class CacheStats(Entry):
    """What a complete cache holds and what it cost."""

    dir: str
    fingerprint: str
    rows: int
    dim: int
    dtype: str
    bytes: int
    errors: int
    feature: FeatureStatistics
    shards: int
    untrained: bool
    tokens_real: int
    tokens_padded: int
    seconds: Seconds


class VerifiedCache(Entry):
    """A cache of which every byte and value was found right."""

    dir: str
    shards: int
    rows: int
    errors: int


def list_caches(root: Path) -> list[ListedCache]:
    """Return one entry per cache folder below ``root``."""
    files = (SpecRecord.file, Manifest.file)  # of one that lacks the first, the second tells
    folders = sorted({path.parent for name in files for path in root.glob(f"*/*/{name}")})
    return [_listed(folder) for folder in folders if not folder.is_symlink()]


def _listed(folder: Path) -> ListedCache:
    if not (folder / Manifest.file).is_file():
        return ListedCache(dir=str(folder), state="incomplete")
    manifest = Manifest.find(folder)
    has_spec = (folder / SpecRecord.file).is_file()
    if manifest is None or not has_spec or not _has_shards(folder, manifest):
        return ListedCache(dir=str(folder), state="damaged")
    return ListedCache(
        dir=str(folder),
        state="complete",
        rows=manifest.rows,
        dim=manifest.dim,
        bytes=manifest.bytes,
        errors=manifest.errors,
        dtype=manifest.dtype,
        untrained=manifest.untrained,
    )


def _has_shards(folder: Path, manifest: Manifest) -> bool:
    """Say whether all shards are there with as many bytes as they had; ``verify`` hashes them."""
    with suppress(OSError):
        return all((folder / s.path).stat().st_size == s.bytes for s in manifest.shards)
    return False


def stats(folder: Path) -> CacheStats:
    """Return what a complete cache holds and what it cost; reads no feature.

    Raises CacheError if the cache is absent or incomplete.
    """
    manifest = Manifest.of(folder)
    return CacheStats(
        dir=str(folder),
        fingerprint=manifest.fingerprint,
        rows=manifest.rows,
        dim=manifest.dim,
        dtype=manifest.dtype,
        bytes=manifest.bytes,
        errors=manifest.errors,
        feature=manifest.feature,
        shards=len(manifest.shards),
        untrained=manifest.untrained,
        tokens_real=manifest.tokens_real,
        tokens_padded=manifest.tokens_padded,
        seconds=manifest.spent,
    )


def verify(folder: Path) -> VerifiedCache:
    """Hash every shard, check that all values are finite and that the ids are unique.

    Raises CacheError that names every damaged shard.
    """
    import torch

    manifest = Manifest.of(folder)
    if fingerprint(manifest.spec) != manifest.fingerprint:
        raise CacheError(
            f"{folder / Manifest.file} does not fit its own fingerprint; remove {folder} and run "
            f"{embed_command(folder)}"
        )
    require_undamaged(folder, manifest.shards, trusting=False)
    store = FeatureStore.open(folder)
    if len(np.unique(store.item_ids)) != store.rows:
        raise CacheError(f"{folder} holds an item twice; remove it and run {embed_command(folder)}")
    for block in store.iter_blocks():
        if not bool(torch.isfinite(block.float()).all()):
            raise CacheError(
                f"{folder} holds NaN or infinite features; remove it and run "
                f"{embed_command(folder)}"
            )
    return VerifiedCache(
        dir=str(folder), shards=len(manifest.shards), rows=store.rows, errors=manifest.errors
    )
