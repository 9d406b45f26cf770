"""Looking after caches: what is there, and whether it is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pal.cache.reader import FeatureStore
from pal.cache.spec import fingerprint
from pal.errors import CacheError
from pal.files import file_sha256


def list_caches(root: Path) -> list[dict[str, Any]]:
    """Return one entry per cache folder below ``root``: folder, state, rows, dim, dtype, bytes."""
    entries = []
    for spec in sorted(root.glob("*/*/spec.json")):
        if spec.parent.is_symlink():
            continue
        manifest = spec.parent / "manifest.json"
        facts = json.loads(manifest.read_text()) if manifest.is_file() else {}
        entries.append(
            {
                "dir": str(spec.parent),
                "state": "complete" if facts else "incomplete",
                **{key: facts.get(key, 0) for key in ("rows", "dim", "bytes", "errors")},
                "dtype": facts.get("dtype", "?"),
                "untrained": facts.get("untrained", False),
            }
        )
    return entries


def stats(folder: Path) -> dict[str, Any]:
    """Return what a complete cache holds and what it cost: its manifest, and the sums of its
    shards' receipts.

    Reads no feature. Raises CacheError if the cache is absent or incomplete.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise CacheError(f"no complete cache in {folder}; run pal embed")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    receipts = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in sorted((folder / "shards").glob("part-*.json"))
    ]
    spent: dict[str, float] = {}
    for receipt in receipts:
        for stage, seconds in receipt["seconds"].items():
            spent[stage] = round(spent.get(stage, 0.0) + seconds, 4)
    real, padded = (
        sum(receipt.get(key, 0) for receipt in receipts) for key in ("tokens_real", "tokens_padded")
    )
    return {
        "dir": str(folder),
        **{
            key: manifest[key]
            for key in ("fingerprint", "rows", "dim", "dtype", "bytes", "errors", "feature")
        },
        "shards": len(manifest["shards"]),
        "untrained": manifest.get("untrained", False),
        "tokens_real": real,
        "tokens_padded": padded,
        "seconds": spent,
    }


def verify(folder: Path) -> dict[str, Any]:
    """Hash every shard, check that all values are finite and that the ids are unique.

    Raises CacheError that names every damaged shard.
    """
    import torch

    path = folder / "manifest.json"
    if not path.is_file():
        raise CacheError(f"no complete cache in {folder}; run pal embed")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if fingerprint(manifest["spec"]) != manifest["fingerprint"]:
        raise CacheError(
            f"{path} does not fit its own fingerprint; remove {folder} and run pal embed"
        )
    damaged = [
        entry["path"]
        for entry in manifest["shards"]
        if not (folder / entry["path"]).is_file()
        or file_sha256(folder / entry["path"]) != entry["sha256"]
    ]
    if damaged:
        # without its mark, the next reader and pal embed look at the bytes again
        (folder / "verified.json").unlink(missing_ok=True)
        raise CacheError(
            f"{folder}: {', '.join(damaged)} is damaged or missing; run pal embed again to "
            "re-encode it"
        )
    store = FeatureStore.open(folder)
    if len(np.unique(store.item_ids)) != store.rows:
        raise CacheError(f"{folder} holds an item twice; remove it and run pal embed")
    for block in store.iter_blocks():
        if not bool(torch.isfinite(block.float()).all()):
            raise CacheError(
                f"{folder} holds NaN or infinite features; remove it and run pal embed"
            )
    return {
        "dir": str(folder),
        "shards": len(manifest["shards"]),
        "rows": store.rows,
        "errors": manifest["errors"],
    }
