"""A cache folder while it is being filled: what is pending, how a shard is committed, when it is
complete.

spec.json        first of all, never changed
plan.parquet     written once
shards/          part-N-of-M.<sha8>.parquet, then part-N-of-M.json: the receipt, the only sign of completion
errors/          items that could not be encoded, with the reason
manifest.json    last of all
verified.json    size and time stamp of each file when its hash was last seen right
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pal.cache.plan import ShardTask, make_plan, read_plan, write_plan
from pal.cache.shard import ITEM_BYTES, write_shard
from pal.cache.spec import LAYOUT_VERSION, Spec, differences, fingerprint
from pal.errors import CacheError, CacheMismatch
from pal.files import atomic_file, canonical_json, file_sha256, inflight, sync_directory, write_json


@dataclass
class EncodedShard:
    """What an encoder made of one task, in the order of the plan, failed items left out."""

    item_ids: np.ndarray
    """(n,) S16"""
    n_tokens: np.ndarray
    """(n,) int32"""
    truncated: np.ndarray
    """(n,) bool"""
    features: np.ndarray
    """(n, dim * itemsize) uint8"""
    dtype: str
    errors: list[dict[str, Any]]
    """rows of the errors table: item_id, stage, error_class, message, attempts"""
    seconds: dict[str, float]
    """where the time went: read (in the background), wait (for it), encode"""
    measures: dict[str, Any]
    """tokens and whatever else the receipt should tell"""
    statistics: dict[str, float]
    """count, sum, sum_of_squares, absmax over all stored values"""


class CacheWriter:
    """Creates or resumes the cache of one specification. Many processes may work on the same
    folder."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        """Open the folder; raises CacheMismatch if it belongs to another specification."""
        self.folder = folder
        self.spec = spec
        self.fingerprint = fingerprint(spec)
        self.shards = folder / "shards"
        self.manifest_path = folder / "manifest.json"
        for path in (self.shards, folder / "errors"):
            path.mkdir(parents=True, exist_ok=True)
        self._claim_folder()

    def _claim_folder(self) -> None:
        path = self.folder / "spec.json"
        if not path.exists():
            _publish(path, canonical_json(self.spec))
        found = _read_json(path)
        if found != self.spec:
            listed = "; ".join(differences(found, self.spec))
            raise CacheMismatch(
                f"{self.folder} was made under another specification ({listed}); remove it or use "
                "another paths.cache"
            )

    def plan(self, item_ids: np.ndarray, rows_per_shard: int) -> list[ShardTask]:
        """Return the tasks of this cache, planning them if no plan is there; ``item_ids``: (n,)
        S16, sorted."""
        path = self.folder / "plan.parquet"
        if not path.exists():
            write_plan(path, item_ids, make_plan(len(item_ids), rows_per_shard))
        return read_plan(path)

    def receipt(self, task: ShardTask) -> dict[str, Any] | None:
        """Return the receipt of a finished, undamaged shard, else None."""
        path = self.shards / f"{task.stem}.json"
        if not path.is_file():
            return None
        receipt = _read_json(path)
        if receipt["fingerprint"] != self.fingerprint or not is_undamaged(self.folder, receipt):
            return None
        return receipt

    def pending(self, tasks: list[ShardTask]) -> list[ShardTask]:
        """Return the tasks without a valid receipt; receipts of damaged shards are withdrawn."""
        pending = []
        for task in tasks:
            if self.receipt(task) is None:
                (self.shards / f"{task.stem}.json").unlink(missing_ok=True)
                pending.append(task)
        if pending:
            self.manifest_path.unlink(missing_ok=True)
        return pending

    def width(self) -> int | None:
        """Return the bytes of one feature if a shard has been committed, else None."""
        for path in self.shards.glob("part-*.json"):
            return int(_read_json(path)["dim"]) * ITEM_BYTES[self.spec["encoder"]["store_dtype"]]
        return None

    def withdraw_failed(self, tasks: list[ShardTask]) -> None:
        """Withdraw the receipts of shards with failed items, so that they are encoded again."""
        for task in tasks:
            receipt = self.receipt(task)
            if receipt is not None and receipt["errors"]:
                (self.shards / f"{task.stem}.json").unlink()

    def earlier_attempts(self, task: ShardTask) -> dict[bytes, int]:
        """Return how often each failed item of a shard has been tried."""
        path = self.folder / "errors" / f"{task.stem}.parquet"
        if not path.is_file():
            return {}
        return dict(pl.read_parquet(path, columns=["item_id", "attempts"]).iter_rows())

    def commit(
        self, task: ShardTask, encoded: EncodedShard, producer: dict[str, str]
    ) -> dict[str, Any]:
        """Make a shard durable, receipt last, and return its receipt (the winner's, if we lost a
        race)."""
        began = time.perf_counter()
        metadata = {
            "pal.layout_version": str(LAYOUT_VERSION),
            "pal.fingerprint": self.fingerprint,
            "pal.spec": canonical_json(self.spec),
            "pal.shard": str(task.number),
            "pal.n_shards": str(task.total),
            "pal.rows": str(len(encoded.item_ids)),
            "pal.producer": canonical_json(producer),
        }
        with inflight(self.shards / f"{task.stem}.parquet") as temporary:
            groups = write_shard(
                temporary,
                encoded.item_ids,
                encoded.n_tokens,
                encoded.truncated,
                encoded.features,
                encoded.dtype,
                metadata,
            )
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            sha256 = file_sha256(temporary)
            size = temporary.stat().st_size
            path = self.shards / f"{task.stem}.{sha256[:8]}.parquet"
            os.replace(temporary, path)
        errors = self.folder / "errors" / f"{task.stem}.parquet"
        if encoded.errors:
            with atomic_file(errors) as temporary:
                pl.DataFrame(encoded.errors).write_parquet(temporary)
        else:
            errors.unlink(missing_ok=True)
        sync_directory(self.shards)
        receipt = {
            "shard": task.number,
            "path": f"shards/{path.name}",
            "dim": encoded.features.shape[1] // ITEM_BYTES[encoded.dtype],
            "rows": len(encoded.item_ids),
            "errors": len(encoded.errors),
            "bytes": size,
            "sha256": sha256,
            "row_groups": groups,
            "fingerprint": self.fingerprint,
            "statistics": encoded.statistics,
            "seconds": {**encoded.seconds, "write": time.perf_counter() - began},
            **encoded.measures,
            "producer": producer,
            "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        if not _publish(self.shards / f"{task.stem}.json", json.dumps(receipt, indent=1)):
            winner = _read_json(self.shards / f"{task.stem}.json")
            if winner["path"] != receipt["path"]:
                path.unlink(missing_ok=True)
            return winner
        return receipt

    def finalize(self, tasks: list[ShardTask], facts: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest once every shard has its receipt; raises CacheError if one is missing.

        ``facts`` are further entries: names, totals and whether the encoder is untrained.
        """
        receipts = []
        for task in tasks:
            receipt = self.receipt(task)
            if receipt is None:
                raise CacheError(f"{self.folder}: {task.stem} is not finished; run pal embed again")
            receipts.append(receipt)
        dims = sorted({receipt["dim"] for receipt in receipts})
        if len(dims) > 1:
            raise CacheError(
                f"{self.folder} holds features of {dims} dimensions; remove it and run pal embed "
                "again"
            )
        count = sum(r["statistics"]["count"] for r in receipts)
        mean = sum(r["statistics"]["sum"] for r in receipts) / max(count, 1)
        square = sum(r["statistics"]["sum_of_squares"] for r in receipts) / max(count, 1)
        manifest = {
            "fingerprint": self.fingerprint,
            "spec": self.spec,
            "dim": dims[0],
            "dtype": self.spec["encoder"]["store_dtype"],
            "rows": sum(r["rows"] for r in receipts),
            "errors": sum(r["errors"] for r in receipts),
            "bytes": sum(r["bytes"] for r in receipts),
            "shards": [
                {key: r[key] for key in ("path", "rows", "bytes", "sha256")} for r in receipts
            ],
            "feature": {
                "mean": mean,
                "std": max(square - mean * mean, 0.0) ** 0.5,
                "absmax": max((r["statistics"]["absmax"] for r in receipts), default=0.0),
            },
            **facts,
        }
        record_verified(self.folder, receipts)
        write_json(self.manifest_path, manifest)
        self._sweep(receipts)
        return manifest

    def _sweep(self, receipts: list[dict[str, Any]]) -> None:
        """Remove shards that no receipt names; in-flight files may belong to a process that still
        runs."""
        named = {Path(receipt["path"]).name for receipt in receipts}
        for path in self.shards.glob("part-*.parquet"):
            if path.name not in named:
                path.unlink(missing_ok=True)


def is_undamaged(folder: Path, entry: dict[str, Any]) -> bool:
    """Whether a shard has the bytes that its receipt or manifest entry states.

    The hash is computed only if size and time stamp are not those of the last time it was seen
    right.
    """
    path = folder / entry["path"]
    try:
        stat = path.stat()
    except OSError:
        return False
    if stat.st_size != entry["bytes"]:
        return False
    if _verified(folder).get(entry["path"]) == [stat.st_size, stat.st_mtime_ns, entry["sha256"]]:
        return True
    return file_sha256(path) == entry["sha256"]


def record_verified(folder: Path, entries: list[dict[str, Any]]) -> None:
    """Remember that these shards have just been seen undamaged; a read-only cache is simply not
    marked."""
    marks = {}
    for entry in entries:
        stat = (folder / entry["path"]).stat()
        marks[entry["path"]] = [stat.st_size, stat.st_mtime_ns, entry["sha256"]]
    if marks != _verified(folder) and os.access(folder, os.W_OK):
        write_json(folder / "verified.json", marks)


def _verified(folder: Path) -> dict[str, Any]:
    try:
        marks: dict[str, Any] = json.loads((folder / "verified.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return marks


def _publish(path: Path, text: str) -> bool:
    """Create a file with its whole content, or return False if it is there already."""
    with inflight(path) as temporary:
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    sync_directory(path.parent)
    return True


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CacheError(f"{path} is damaged; remove {path} and run pal embed again") from error
