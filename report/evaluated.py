"""A run with its metrics, as a page needs it, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pal.errors import PalError
from pal.evaluate.predict import predictions_of
from pal.evaluate.records import METRICS, Metrics
from pal.evaluate.sentences import has_one_taste
from pal.report.page import Source
from pal.report.subjects import Subject
from pal.train.run_record import RunRecord


@dataclass(frozen=True)
class Evaluated:
    """A run and what it reaches."""

    folder: Path
    record: RunRecord
    metrics: Metrics

    @property
    def name(self) -> str:
        return self.record.run

    def predictions(self) -> pl.DataFrame:
        """Read its predictions; raises EvaluationError where they are of another head."""
        return predictions_of(self.folder, self.record.seal)

    @property
    def has_one_taste(self) -> bool:
        """Whether it gives all people one taste."""
        return has_one_taste(self.record.train.head, self.record.train.prototypes)

    @property
    def command(self) -> str:
        """The command that trains it, as far as options say it; its config.yaml says the rest."""
        record = self.record
        return (
            f"pal train --dataset {record.dataset} --encoder {record.encoder} --head "
            f"{record.train.head} --k {record.train.k} --seed {record.seed} --run {record.run}"
        )


def read_runs(subjects: Sequence[Subject]) -> tuple[list[Evaluated], list[str]]:
    """Return runs with their metrics, and a sentence for each whose numbers cannot be shown."""
    found, problems = [], []
    for one in subjects:
        try:
            found.append(read_run(one.folder))
        except PalError as problem:
            problems.append(f"{one.name} is not shown: {problem}.")
    return found, problems


def read_run(folder: Path) -> Evaluated:
    """Read a run; raises EvaluationError where it has no metrics, or those of another head."""
    record = RunRecord.of(folder)
    metrics = Metrics.read(folder)
    if metrics.head_seal != record.seal:
        raise Metrics.error(
            f"{folder / METRICS} is of an earlier head; run: pal evaluate --run {folder.name}"
        )
    return Evaluated(folder, record, metrics)


def sources_of(run: Evaluated) -> list[Source]:
    """Say where the numbers of a run come from."""
    return [
        Source(f"run {run.name}", str(run.folder / RunRecord.file), run.record.seal[:16],
               run.command),
        Source(f"metrics of {run.name}", str(run.folder / METRICS), run.metrics.head_seal[:16],
               f"pal evaluate --run {run.name}"),
    ]  # fmt: skip
