"""What a name on the command line means: a dataset, a run, a sweep or an audit, or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pal.audit.record import AuditPlan
from pal.config import PathsConfig
from pal.dataset import DatasetCard
from pal.errors import EvaluationError
from pal.names import did_you_mean, require_name
from pal.records import Record
from pal.sweep.record import SweepSummary
from pal.train.run_record import RunRecord

Kind = Literal["dataset", "run", "sweep", "audit"]
RECORDS: dict[Kind, type[Record]] = {
    "dataset": DatasetCard, "run": RunRecord, "sweep": SweepSummary, "audit": AuditPlan,
}  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A folder that a page can be made of."""

    kind: Kind
    name: str
    folder: Path


def root_of(paths: PathsConfig, kind: Kind) -> Path:
    """Return the folder that holds all of a kind."""
    roots = {"dataset": paths.data, "run": paths.runs, "sweep": paths.sweeps, "audit": paths.audits}
    return roots[kind]


def all_of(paths: PathsConfig, kind: Kind) -> list[Subject]:
    """Return everything of a kind, by name; also what is damaged."""
    found = RECORDS[kind].all_in(root_of(paths, kind))
    return [Subject(kind, folder.name, folder) for folder in found]


def subjects_of(paths: PathsConfig, names: Sequence[str]) -> list[Subject]:
    """Return what names mean, each thing once.

    A name alone means everything that has it; ``run:NAME`` the run. Raises EvaluationError for a
    name that nothing has.
    """
    found: list[Subject] = []
    for name in names:
        found += [one for one in _named(paths, name) if one not in found]
    return found


def _named(paths: PathsConfig, given: str) -> list[Subject]:
    before, colon, name = given.partition(":")
    kinds = [kind for kind in get_args(Kind) if not colon or kind == before]
    if not kinds:
        raise EvaluationError(
            f"{given!r}: say dataset:, run:, sweep: or audit: before the name, or the name alone"
        )
    name = require_name(kinds[0] if colon else "thing", name if colon else given, EvaluationError)
    places = [Subject(kind, name, root_of(paths, kind) / name) for kind in kinds]
    there = [one for one in places if one in all_of(paths, one.kind)]  # also what is damaged
    if not there:
        looked = ", ".join(str(one.folder) for one in places)
        others = sorted({one.name for kind in kinds for one in all_of(paths, kind)})
        raise EvaluationError(
            f"nothing is called {name}: there is no {looked}{did_you_mean(name, others)} see pal "
            "runs ls, or make it with pal prepare, pal train, pal sweep or pal audit"
        )
    return there
