"""A cache folder while it is being filled: what is pending, how a shard is committed, when it ends.

spec.json        first of all, never changed
plan.parquet     written once
shards/          part-N-of-M.<sha8>.parquet, then its receipt part-N-of-M.json: no receipt, no shard
errors/          items that could not be encoded, with the reason
manifest.json    last of all
verified.json    size and time stamp of each file when its hash was last seen right

What is damaged while a cache is being filled is made again: the plan from the item ids, a shard
without a sound receipt by encoding it. Every receipt names the fingerprint and the items, so
nothing of another specification or plan is ever taken over.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pal.cache.failures import FailedItem, attempts_of, classes_of, write_failures
from pal.cache.plan import PLAN, ShardTask, make_plan, read_plan, write_plan
from pal.cache.records import (
    Manifest,
    Mark,
    Provenance,
    Receipt,
    Seconds,
    SpecRecord,
    Statistics,
)
from pal.cache.shard import ITEM_BYTES, write_shard
from pal.cache.spec import LAYOUT_VERSION, Spec, differences, fingerprint, store_dtype
from pal.cache.summary import manifest_of
from pal.cache.verified import is_undamaged, marks_of, record_verified
from pal.errors import CacheError, CacheMismatch
from pal.files import (
    atomic_file,
    canonical_json,
    file_sha256,
    inflight,
    publish,
    sync_directory,
    sync_file,
)
from pal.records import Damaged, Record


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
    statistics: Statistics
    seconds: Seconds = field(default_factory=Seconds)
    errors: Sequence[FailedItem] = ()
    tokens_padded: int = 0
    """tokens that the model computed, padding included"""
    answers_cut: int = 0
    device: str = "cpu"
    fraction_of_peak: float | None = None


class CacheWriter:
    """Creates or resumes the cache of one specification; many processes may work on one folder."""

    def __init__(self, folder: Path, spec: Spec) -> None:
        """Open the folder; raises CacheMismatch if it belongs to another specification."""
        self.folder = folder
        self.spec = spec
        self.fingerprint = fingerprint(spec)
        self.shards = folder / "shards"
        for path in (self.shards, folder / "errors"):
            path.mkdir(parents=True, exist_ok=True)
        self._claim_folder()

    def _claim_folder(self) -> None:
        path, record = self.folder / SpecRecord.file, SpecRecord(spec=self.spec)
        if not path.exists():
            _publish(path, record)
        found = SpecRecord.find(self.folder)
        if found is None:
            record.write(self.folder)
        elif found.spec != self.spec:
            listed = "; ".join(differences(found.spec, self.spec))
            raise CacheMismatch(
                f"{self.folder} was made under another specification ({listed}); remove it or use "
                f"another paths.cache"
            )

    def plan(self, item_ids: np.ndarray, rows_per_shard: int) -> list[ShardTask]:
        """Return the tasks of this cache; made if there is no sound plan of just these items.

        ``item_ids``: (n,) S16, in the order of encoding.
        """
        path = self.folder / PLAN
        for _ in range(2):
            if not path.exists():
                tasks = make_plan(item_ids, rows_per_shard)
                write_plan(path, item_ids, tasks, self.fingerprint)
            try:
                return read_plan(path, item_ids, self.fingerprint)
            except Damaged as damage:
                path.unlink(missing_ok=True)
                problem = damage
        raise CacheError(f"{path} {problem}; end other runs on this cache and run pal embed again")

    def receipt(self, task: ShardTask, marks: Mapping[str, Mark] | None = None) -> Receipt | None:
        """Return the receipt of a finished, undamaged shard, else None."""
        found = self._receipt_on_disk(task)
        if found is None or found.fingerprint != self.fingerprint or found.items != task.items:
            return None
        marks = marks_of(self.folder) if marks is None else marks
        return found if is_undamaged(self.folder, found.entry, marks) else None

    def _receipt_on_disk(self, task: ShardTask) -> Receipt | None:
        try:
            return Receipt.read_file(self._receipt_path(task))
        except CacheError:
            return None

    def _receipt_path(self, task: ShardTask) -> Path:
        return self.shards / f"{task.stem}.json"

    def pending(self, tasks: Sequence[ShardTask]) -> list[ShardTask]:
        """Return the tasks without a valid receipt; receipts of damaged shards are withdrawn."""
        marks = marks_of(self.folder)
        pending = [task for task in tasks if self.receipt(task, marks) is None]
        for task in pending:
            self.withdraw(task)
        if pending:
            (self.folder / Manifest.file).unlink(missing_ok=True)
        return pending

    def withdraw(self, task: ShardTask) -> None:
        """Take back a shard's receipt, so that the shard is encoded again."""
        self._receipt_path(task).unlink(missing_ok=True)

    def withdraw_failed(self, tasks: Sequence[ShardTask]) -> None:
        """Withdraw the receipts of shards with failed items."""
        for task in tasks:
            receipt = self._receipt_on_disk(task)
            if receipt is not None and receipt.errors:
                self.withdraw(task)

    def width(self) -> int | None:
        """Return the bytes of one feature if a shard has been committed, else None."""
        for path in self.shards.glob("part-*.json"):
            try:
                receipt = Receipt.read_file(path)
            except CacheError:
                continue
            if receipt.fingerprint == self.fingerprint:
                return receipt.dim * ITEM_BYTES[store_dtype(self.spec)]
        return None

    def earlier_attempts(self, task: ShardTask) -> dict[bytes, int]:
        """Return how often each failed item of a shard has been tried."""
        return attempts_of(self._errors_path(task), self.fingerprint)

    def failures(self, tasks: Sequence[ShardTask]) -> Counter[str]:
        """Return the number of failed items by the class of their error."""
        classes: Counter[str] = Counter()
        present = {path.stem for path in (self.folder / "errors").glob("part-*.parquet")}
        for task in tasks:
            if task.stem not in present:
                continue
            found = classes_of(self._errors_path(task), self.fingerprint)
            if found is not None:
                classes.update(found)
            elif (receipt := self._receipt_on_disk(task)) is not None and receipt.errors:
                classes["unknown, the table is damaged"] += receipt.errors
        return classes

    def _errors_path(self, task: ShardTask) -> Path:
        return self.folder / "errors" / f"{task.stem}.parquet"

    def commit(
        self, task: ShardTask, encoded: EncodedShard, producer: Mapping[str, str]
    ) -> Receipt:
        """Make a shard durable, receipt last.

        Returns its receipt, or that of another process which was first. ``producer`` names the
        software and hardware.
        """
        began = time.perf_counter()
        path, sha256, groups = self._write_shard(task, encoded, producer)
        write_failures(self._errors_path(task), encoded.errors, self.fingerprint)
        sync_directory(self.shards)
        rows, seconds = len(encoded.item_ids), encoded.seconds
        receipt = Receipt(
            shard=task.number,
            path=f"shards/{path.name}",
            dim=encoded.features.shape[1] // ITEM_BYTES[encoded.dtype],
            rows=rows,
            errors=len(encoded.errors),
            bytes=path.stat().st_size,
            sha256=sha256,
            row_groups=groups,
            fingerprint=self.fingerprint,
            items=task.items,
            statistics=encoded.statistics,
            seconds=seconds.model_copy(update={"write": time.perf_counter() - began}),
            tokens_real=int(encoded.n_tokens.sum()),
            tokens_padded=encoded.tokens_padded,
            truncated=int(encoded.truncated.sum()),
            answers_cut=encoded.answers_cut,
            rows_per_s=round(rows / seconds.encode, 1) if seconds.encode else 0.0,
            device=encoded.device,
            fraction_of_peak=encoded.fraction_of_peak,
            producer=dict(producer),
            created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if _publish(self._receipt_path(task), receipt):
            return receipt
        winner = self._receipt_on_disk(task)
        if winner is None:  # damaged since it was looked at
            with atomic_file(self._receipt_path(task)) as temporary:
                receipt.write_to(temporary)
            return receipt
        if winner.path != receipt.path:
            path.unlink(missing_ok=True)
        return winner

    def _write_shard(
        self, task: ShardTask, encoded: EncodedShard, producer: Mapping[str, str]
    ) -> tuple[Path, str, int]:
        """Write the shard under its own name; return its path, hash and number of row groups."""
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
            sync_file(temporary)
            sha256 = file_sha256(temporary)
            path = self.shards / f"{task.stem}.{sha256[:8]}.parquet"
            os.replace(temporary, path)
        return path, sha256, groups

    def finalize(
        self,
        tasks: Sequence[ShardTask],
        provenance: Provenance,
        files: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Write the manifest once every shard has its receipt; raises CacheError if one is missing.

        ``files`` are the seals of further files that lie beside the manifest.
        """
        receipts = []
        marks = marks_of(self.folder)
        for task in tasks:
            receipt = self.receipt(task, marks)
            if receipt is None:
                raise CacheError(f"{self.folder}: {task.stem} is not finished; run pal embed again")
            receipts.append(receipt)
        dims = sorted({receipt.dim for receipt in receipts})
        if len(dims) > 1:
            raise CacheError(
                f"{self.folder} holds features of {dims} dimensions; remove it and run pal embed "
                f"again"
            )
        manifest = manifest_of(self.spec, receipts, provenance, files or {})
        record_verified(self.folder, manifest.shards)
        manifest.write(self.folder)
        self._sweep(tasks, receipts)
        return manifest

    def _sweep(self, tasks: Sequence[ShardTask], receipts: Sequence[Receipt]) -> None:
        """Remove shards that no receipt names, and what an earlier plan left.

        Files in flight stay: they may belong to a process that still runs.
        """
        stems = {task.stem for task in tasks}
        named = {Path(receipt.path).name for receipt in receipts} | {f"{s}.json" for s in stems}
        for path in self.shards.glob("part-*"):
            if path.name not in named:
                path.unlink(missing_ok=True)
        for path in (self.folder / "errors").glob("part-*.parquet"):
            if path.stem not in stems:
                path.unlink(missing_ok=True)


def _publish(path: Path, record: Record) -> bool:
    """Create a file with its whole content, or return False if it is there already."""
    with inflight(path) as temporary:
        record.write_to(temporary)
        sync_file(temporary)
        return publish(temporary, path)
