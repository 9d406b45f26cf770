"""Looking after runs: what is there, and removing what nobody wants any more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pal.errors import EvaluationError
from pal.evaluate.records import METRICS, Cell, Metrics
from pal.files import bytes_of, recover
from pal.names import did_you_mean_folder, require_name
from pal.records import Entry
from pal.train.build import has_prototypes
from pal.train.run_record import RunRecord


class ListedRun(Entry):
    """A run in a list of them; of one that is damaged little is known."""

    run: str
    dir: str
    bytes: int
    state: str
    """evaluated, not evaluated, damaged evaluation or damaged"""
    dataset: str | None = None
    encoder: str | None = None
    head: str | None = None
    k: int | None = None
    """null too for a head without prototypes"""
    cache_fingerprint: str | None = None
    test_seen: Cell | None = None


class RemovedRuns(Entry):
    """What was removed."""

    removed: list[str]
    bytes: int


def list_runs(root: Path) -> list[ListedRun]:
    """Return every run below a folder, by name; not what another command has not finished, whose
    folder has no name."""
    return [_listed(folder) for folder in RunRecord.all_in(root)]


def runs_to_remove(root: Path, names: Sequence[str]) -> list[ListedRun]:
    """Return runs by their names; raises EvaluationError where one is not there, before any is
    removed."""
    found = []
    for name in dict.fromkeys(names):
        folder = root / require_name("run", name, EvaluationError)
        recover(folder)  # what a killed command left of it goes
        if folder.is_symlink():
            raise EvaluationError(
                f"{folder} is a link to {folder.readlink()}, and only what is really there is "
                f"removed; remove the link yourself: rm {folder}"
            )
        if not folder.exists():
            hint = did_you_mean_folder(folder, RunRecord.file)
            raise EvaluationError(f"there is no run {name} in {root}{hint} see pal runs ls")
        if not RunRecord.is_ours(folder):
            raise EvaluationError(
                f"{folder} is no run of ours, so it is not removed; see pal runs ls"
            )
        found.append(_listed(folder))
    return found


def remove_runs(runs: Sequence[ListedRun]) -> RemovedRuns:
    """Remove runs; raises EvaluationError for one that is being written."""
    freed = sum(RunRecord.remove(Path(run.dir)) for run in runs)
    return RemovedRuns(removed=[run.run for run in runs], bytes=freed)


def _listed(folder: Path) -> ListedRun:
    size, record = bytes_of(folder), RunRecord.find(folder)
    if record is None:
        return ListedRun(run=folder.name, dir=str(folder), bytes=size, state="damaged")
    metrics = Metrics.find(folder)
    is_evaluated = metrics is not None and metrics.head_seal == record.seal
    is_damaged = metrics is None and (folder / METRICS).exists()
    not_evaluated = "damaged evaluation" if is_damaged else "not evaluated"
    return ListedRun(
        run=folder.name,
        dir=str(folder),
        bytes=size,
        state="evaluated" if is_evaluated else not_evaluated,
        dataset=record.dataset,
        encoder=record.encoder,
        head=record.train.head,
        k=record.train.k if has_prototypes(record.train.head) else None,
        cache_fingerprint=record.cache_fingerprint,
        test_seen=metrics.test_seen if metrics is not None and is_evaluated else None,
    )
