"""A cache folder while it is being filled: what is pending, how a shard is committed, when it ends.

spec.json        first of all, never changed
plan.parquet     written once
shards/          part-N-of-M.<sha8>.parquet, then its receipt part-N-of-M.json: no receipt, no shard
errors/          items that could not be encoded, with the reason
manifest.json    last of all
verified.json    size and time stamp of each file when its hash was last seen right

Many processes may fill one folder; whoever commits a shard or writes the manifest holds the
folder's lock for that moment. Nobody takes back what another has committed: the receipt of a
sound shard stays until a shard with no more errors takes its place, and the manifest until a new
one does. What is damaged is made again: the plan from the item ids, a shard without a sound receipt
by encoding it. Every receipt names the fingerprint and the items, so nothing of another
specification or plan is ever taken over.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
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
from pal.cache.spec import (
    LAYOUT_VERSION,
    Spec,
    differences,
    embed_command,
    fingerprint,
    store_dtype,
)
from pal.cache.summary import manifest_of
from pal.cache.verified import marks_of, record_verified, seen_undamaged
from pal.errors import CacheError, CacheMismatch
from pal.files import (
    atomic_file,
    canonical_json,
    file_sha256,
    inflight,
    locked,
    sync_directory,
    sync_file,
)
from pal.records import Damaged


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
    tokens_real: int | None = None
    """tokens of the items that were encoded; null: of all"""
    reused: int = 0
    """items whose features another cache had"""
    tokens_padded: int = 0
    """tokens that the model computed, padding included"""
    answers_cut: int = 0
    device: str = "cpu"
    fraction_of_peak: float | None = None


class Unfinished(CacheError):
    """Shards of a cache are missing or damaged."""


class CacheWriter:
    """Creates or resumes the cache of one specification; many processes may work on one folder."""

    def __init__(self, folder: Path, spec: Spec, retry_errors: bool = False) -> None:
        """Open the folder; raises CacheMismatch if it belongs to another specification.

        ``retry_errors``: shards with failed items are pending too, and are replaced.
        """
        self.folder = folder
        self.spec = spec
        self.fingerprint = fingerprint(spec)
        self.retry_errors = retry_errors
        self.shards = folder / "shards"
        for path in (self.shards, folder / "errors"):
            path.mkdir(parents=True, exist_ok=True)
        self._claim_folder()

    def _claim_folder(self) -> None:
        found = SpecRecord.find(self.folder)
        if found is None:
            with self._alone():
                found = SpecRecord.find(self.folder)
                if found is None:
                    found = SpecRecord(spec=self.spec)
                    found.write(self.folder)
        if found.spec != self.spec:
            listed = "; ".join(differences(found.spec, self.spec))
            raise CacheMismatch(
                f"{self.folder} was made under another specification ({listed}); remove it or use "
                f"another paths.cache"
            )

    def _alone(self) -> AbstractContextManager[None]:
        """Keep out everybody else who changes what the folder says of itself."""
        return locked(self.folder)

    def plan(self, item_ids: np.ndarray, rows_per_shard: int) -> list[ShardTask]:
        """Return the tasks of this cache; made if there is no sound plan of just these items.

        ``item_ids``: (n,) S16, in the order of encoding.
        """
        path = self.folder / PLAN
        with suppress(Damaged):
            return read_plan(path, item_ids, self.fingerprint)
        with self._alone():
            with suppress(Damaged):  # who planned first has planned for all
                return read_plan(path, item_ids, self.fingerprint)
            tasks = make_plan(item_ids, rows_per_shard)
            write_plan(path, item_ids, tasks, self.fingerprint)
            return tasks

    def receipt(self, task: ShardTask, marks: Mapping[str, Mark] | None = None) -> Receipt | None:
        """Return the receipt of a finished, undamaged shard, else None."""
        found = self.receipt_on_disk(task)
        if found is None:
            return None
        marks = marks_of(self.folder) if marks is None else marks
        return found if seen_undamaged(self.folder, found.entry, marks) else None

    def receipt_on_disk(self, task: ShardTask) -> Receipt | None:
        """Return the receipt of a shard, whatever became of the shard itself."""
        try:
            found = Receipt.read_file(self._receipt_path(task))
        except CacheError:
            return None
        is_ours = found.fingerprint == self.fingerprint and found.items == task.items
        return found if is_ours else None

    def _receipt_path(self, task: ShardTask) -> Path:
        return self.shards / f"{task.stem}.json"

    def pending(self, tasks: Sequence[ShardTask]) -> list[ShardTask]:
        """Return the tasks that are still to be done; changes nothing."""
        marks = marks_of(self.folder)
        found = [(task, self.receipt(task, marks)) for task in tasks]
        return [t for t, r in found if r is None or (self.retry_errors and r.errors)]

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
            elif (receipt := self.receipt_on_disk(task)) is not None and receipt.errors:
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
        with inflight(self.shards / f"{task.stem}.parquet") as temporary:
            groups = self._write_shard(temporary, task, encoded, producer)
            sync_file(temporary)
            sha256 = file_sha256(temporary)
            path = self.shards / f"{task.stem}.{sha256[:8]}.parquet"
            rows, seconds = len(encoded.item_ids), encoded.seconds
            tokens = encoded.tokens_real
            new = rows - encoded.reused
            receipt = Receipt(
                shard=task.number,
                path=f"shards/{path.name}",
                dim=encoded.features.shape[1] // ITEM_BYTES[encoded.dtype],
                rows=rows,
                reused=encoded.reused,
                errors=len(encoded.errors),
                bytes=temporary.stat().st_size,
                sha256=sha256,
                row_groups=groups,
                fingerprint=self.fingerprint,
                items=task.items,
                statistics=encoded.statistics,
                seconds=seconds.model_copy(update={"write": time.perf_counter() - began}),
                tokens_real=int(encoded.n_tokens.sum()) if tokens is None else tokens,
                tokens_padded=encoded.tokens_padded,
                truncated=int(encoded.truncated.sum()),
                answers_cut=encoded.answers_cut,
                rows_per_s=round(new / seconds.encode, 1) if seconds.encode else 0.0,
                device=encoded.device,
                fraction_of_peak=encoded.fraction_of_peak,
                producer=dict(producer),
                created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            with self._alone():
                first = self.receipt(task)
                if first is not None and not self._gives_way(first, receipt):
                    return first
                os.replace(temporary, path)
                write_failures(self._errors_path(task), encoded.errors, self.fingerprint)
                sync_directory(self.shards)
                with atomic_file(self._receipt_path(task)) as place:
                    receipt.write_to(place)
        return receipt

    def _gives_way(self, present: Receipt, new: Receipt) -> bool:
        return self.retry_errors and new.errors <= present.errors

    def _write_shard(
        self, path: Path, task: ShardTask, encoded: EncodedShard, producer: Mapping[str, str]
    ) -> int:
        """Write the shard and return its number of row groups."""
        metadata = {
            "pal.layout_version": str(LAYOUT_VERSION),
            "pal.fingerprint": self.fingerprint,
            "pal.spec": canonical_json(self.spec),
            "pal.shard": str(task.number),
            "pal.n_shards": str(task.total),
            "pal.rows": str(len(encoded.item_ids)),
            "pal.producer": canonical_json(producer),
        }
        return write_shard(
            path,
            encoded.item_ids,
            encoded.n_tokens,
            encoded.truncated,
            encoded.features,
            encoded.dtype,
            metadata,
        )

    def finalize(
        self,
        tasks: Sequence[ShardTask],
        provenance: Provenance,
        files: Mapping[str, str] | None = None,
    ) -> Manifest:
        """Write the manifest once every shard has its receipt; raises Unfinished if one is missing.

        ``files`` are the seals of further files that lie beside the manifest.
        """
        _, marks = self._finished(tasks, marks_of(self.folder))  # hashed while nobody waits for us
        with self._alone():
            receipts, marks = self._finished(tasks, marks)
            manifest = self._manifest(receipts, provenance, files or {})
            record_verified(self.folder, marks)
            manifest.write(self.folder)
            self._sweep(tasks, receipts)
        return manifest

    def _finished(
        self, tasks: Sequence[ShardTask], known: Mapping[str, Mark]
    ) -> tuple[list[Receipt], dict[str, Mark]]:
        """Return the receipts of all tasks, and what their undamaged shards look like."""
        receipts, marks = [], {}
        for task in tasks:
            receipt = self.receipt_on_disk(task)
            if receipt is None:
                raise Unfinished(f"{self.folder}: {task.stem} is not finished; run {self._again}")
            receipts.append(receipt)
        for receipt in receipts:
            mark = seen_undamaged(self.folder, receipt.entry, known)
            if mark is None:
                raise Unfinished(f"{self.folder}: {receipt.path} is damaged; run {self._again}")
            marks[receipt.path] = mark
        return receipts, marks

    @property
    def _again(self) -> str:
        return f"{embed_command(self.folder)} again"

    def _manifest(
        self, receipts: Sequence[Receipt], provenance: Provenance, files: Mapping[str, str]
    ) -> Manifest:
        dims = sorted({receipt.dim for receipt in receipts})
        if len(dims) > 1:
            raise CacheError(
                f"{self.folder} holds features of {dims} dimensions; remove it and run "
                f"{self._again}"
            )
        return manifest_of(self.spec, receipts, provenance, files)

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


def clear(folder: Path, manifest: Manifest) -> None:
    """Remove from a complete cache what a process left that died after it wrote the manifest.

    Those are shards that neither the manifest nor a receipt names.
    """
    strangers = _unnamed(folder, {Path(entry.path).name for entry in manifest.shards})
    if not strangers or not os.access(folder, os.W_OK):
        return
    with locked(folder):
        named = {Path(entry.path).name for entry in Manifest.read(folder).shards}
        for path in (folder / "shards").glob("part-*.json"):
            with suppress(CacheError):
                named.add(Path(Receipt.read_file(path).path).name)
        for path in _unnamed(folder, named):
            path.unlink(missing_ok=True)


def _unnamed(folder: Path, named: set[str]) -> list[Path]:
    return [path for path in (folder / "shards").glob("part-*.parquet") if path.name not in named]
