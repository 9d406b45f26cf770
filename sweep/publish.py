"""The outcome of a sweep: the best head as a run, the summary, and a table for people."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pal.config import Config
from pal.errors import EvaluationError, TrainError
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.predict import evaluate_run
from pal.evaluate.report import Table, with_interval
from pal.files import locked
from pal.sweep.fit import Result, Worlds, train_alone
from pal.sweep.plan import Candidate
from pal.sweep.record import SweepRow, axes_of, read_results, table_of
from pal.train.run_record import RunRecord, TrainedHead

BEST = "best"
MEANS = ("val_macro_accuracy", "test_macro_accuracy", "test_nll")


def best_run(name: str) -> str:
    """Return the name of the run that a sweep's best head becomes."""
    return f"{name}-{BEST}"


def require_publishable(folder: Path) -> None:
    """Raise TrainError if the run of a sweep's best head would replace a run of another kind."""
    RunRecord.require_replaceable(folder)
    earlier = RunRecord.find(folder)
    if earlier is not None and earlier.head_id is None:
        raise TrainError(
            f"{folder} is a run of its own, which the best head of this sweep would replace; "
            "choose another --name"
        )


def save_best(folder: Path, result: Result) -> None:
    """Save a head as the best one of the sweep in ``folder``."""
    assert result.trained is not None
    config = result.candidate.config.model_dump(mode="json")
    log = [{"epoch": result.trained.metadata.best_epoch}]
    with locked(folder / BEST):
        result.trained.save(folder / BEST, config, log)


def publish_best(config: Config, folder: Path, one: Candidate, device: str) -> None:
    """Make the best head an ordinary run; it is trained again only if a kill lost it."""
    trained = _saved(folder, one)
    if trained is None:
        save_best(folder, train_alone(Worlds(device).of(one), one, best_run(folder.name)))
        trained = TrainedHead.load(folder / BEST)
    inputs = inputs_of_run(config.paths, trained.metadata)
    evaluate_run(config.evaluate, trained, *inputs, folder / BEST)
    run = config.paths.runs / best_run(folder.name)
    with locked(run), locked(folder / BEST), RunRecord.replace(run) as temporary:
        shutil.copytree(folder / BEST, temporary, dirs_exist_ok=True)


def _saved(folder: Path, one: Candidate) -> TrainedHead | None:
    try:
        trained = TrainedHead.load(folder / BEST)
    except EvaluationError:
        return None
    return trained if trained.metadata.head_id == one.id else None


def table_of_sweep(folder: Path, rows: int = 10) -> Table:
    """Return the settings of a sweep averaged over seeds, the best by validation first."""
    frame = table_of(ok_rows(folder))
    if frame.is_empty():
        return [["no head was trained"]]
    axes = [name for name in axes_of(frame) if name in ("head", "k") or frame[name].n_unique() > 1]
    grouped = frame.group_by(axes).agg(
        pl.len().alias("seeds"),
        *(pl.col(name).mean() for name in MEANS),
        *(pl.col(name).min() for name in ("val_ci95_low", "test_ci95_low")),
        *(pl.col(name).max() for name in ("val_ci95_high", "test_ci95_high")),
        pl.col("seconds").sum(),
    )
    grouped = grouped.sort("val_macro_accuracy", descending=True).head(rows)
    table = [[*axes, "seeds", "validation, by user", "test, by user", "test NLL", "s"]]
    for row in grouped.iter_rows(named=True):
        accuracies = []
        for split in ("val", "test"):
            ends = row[f"{split}_ci95_low"], row[f"{split}_ci95_high"]
            interval = None if None in ends else ends
            accuracies.append(with_interval(row[f"{split}_macro_accuracy"], interval))
        numbers = [f"{row['seeds']}", *accuracies, f"{row['test_nll']:.3f}"]
        table.append([*(f"{row[axis]}" for axis in axes), *numbers, f"{row['seconds']:.1f}"])
    return table


def ok_rows(folder: Path) -> Sequence[SweepRow]:
    """Return the rows of the heads of a sweep that were trained to the end."""
    return [row for row in read_results(folder).values() if row.status == "ok"]
