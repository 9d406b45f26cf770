"""Cross-fitting: a run's settings trained again on every fold, and all tests put together.

Runs of folds are kept under ``runs/<run>/folds/of-<N>/``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from pal.cache.reader import FeatureStore
from pal.config import AdaptConfig, EvaluateConfig, PathsConfig
from pal.errors import EvaluationError
from pal.evaluate.few_shot import Trial, shots_that_fit
from pal.evaluate.folds import FEWEST_FOLDS, Fold, Over, crossing_folds, folder_of
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.panel import few_shot
from pal.evaluate.predict import (
    load_run,
    metrics_of,
    predict_cells,
    read_predictions,
    require_same_data,
    write_evaluation,
)
from pal.evaluate.records import METRICS, PREDICTIONS, Metrics
from pal.evaluate.ties import of_folds
from pal.files import digest
from pal.records import Damaged, JsonObject
from pal.train.data import record_before_training
from pal.train.fit import fit_each, load_each
from pal.train.probe import choose_device
from pal.train.run_record import RunRecord, TrainedHead

SHOTS = (0, 1, 5, 20)
"""answers that unseen users are adapted by; fewer where half of the users have not so many"""
Progress = Callable[[int], None]


def cross_fit(
    settings: EvaluateConfig,
    paths: PathsConfig,
    name: str,
    folds: int,
    progress: Progress = lambda folds: None,
    over: Over = "prompts",
) -> Metrics:
    """Train a run's settings on every fold, and return the metrics of all tests together.

    Unseen users are tested as strangers, and adapted by some of their answers to the prompts of the
    other folds. ``over`` answers, all are tested on what other people answered too, and the cell of
    seen users stands under ``test_items_seen`` as well. Folds that were trained before are taken
    over. Raises EvaluationError where a fold leaves nothing to train on or to test.
    """
    if folds < FEWEST_FOLDS:
        raise EvaluationError(f"--folds {folds} is no cross-fitting; use {FEWEST_FOLDS} or more")
    run = load_run(paths.runs, name)
    dataset, store = inputs_of_run(paths, run.metadata)
    require_same_data(run, dataset, store)
    folder = folder_of(paths.runs / name, folds, over)
    parts = Fold.all_of(dataset, folds, over)
    trained = train_folds(run.metadata, parts, store, folder, progress)
    both = zip(trained, parts, strict=True)
    predictions = of_folds(predict_cells(head, fold, store) for head, fold in both)
    heads = [head.metadata for head in trained]
    told = run.metadata.model_copy(
        update={"seconds": round(sum(head.seconds for head in heads), 3)}
    )
    tested = pl.concat([fold.pairs("test") for fold in parts])
    metrics = metrics_of(settings, told, predictions, tested, store)
    told_of_folds: JsonObject = {"folds": folds, "folds_over": over}
    if over == "prompts":
        told_of_folds["n_crossing_folds"] = crossing_folds(dataset, folds)
    seal = digest([head.seal for head in heads])
    metrics = metrics.model_copy(update={**told_of_folds, "head_seal": seal})
    if over == "answers":
        metrics = metrics.model_copy(update={"test_items_seen": metrics.test_seen})
    trials = [Trial(head, fold, store) for head, fold in zip(trained, parts, strict=True)]
    shots = shots_that_fit(trials, SHOTS) if metrics.test_unseen else ()
    if len(shots) > 1:
        found = few_shot(AdaptConfig(shots=shots), settings, trials)
        metrics = metrics.adapted(found.cells, found.method, found.n_users_left_out)
    write_evaluation(folder, metrics, predictions)
    return metrics


def read_folds(folder: Path) -> Metrics:
    """Return what cross-fitting has found; raises EvaluationError where it is missing, damaged, or
    of other heads than those that lie beside it."""
    metrics = Metrics.find(folder)
    if metrics is None:
        raise _not_of_folds(folder, f"{folder / METRICS} is missing, damaged or of another version")
    seals = []
    for place in (folder / f"{number}" for number in range(metrics.folds or 0)):
        head = RunRecord.find(place)
        if head is None:
            raise _not_of_folds(folder, f"{place} holds no head that can be trusted")
        seals.append(head.seal)
    if metrics.head_seal != digest(seals):
        raise _not_of_folds(folder, f"{folder / METRICS} is not of the heads beside it")
    return metrics


def predictions_of_folds(folder: Path) -> pl.DataFrame:
    """Read what the heads of all folds predicted; raises EvaluationError as ``read_folds`` does."""
    seal = read_folds(folder).head_seal
    try:
        return read_predictions(folder, seal)
    except Damaged as problem:
        raise _not_of_folds(folder, f"{folder / PREDICTIONS} {problem}") from None


def _not_of_folds(folder: Path, why: str) -> EvaluationError:
    """Return the error that sends people back to the command that makes such a ``folder``."""
    _, folds, *over = folder.name.split("-")
    command = f"pal evaluate {folder.parent.parent.name} --folds {folds}"
    return EvaluationError(f"{why}; run: {command}{''.join(f' --over {one}' for one in over)}")


def train_folds(
    run: RunRecord,
    folds: Sequence[Fold],
    store: FeatureStore,
    folder: Path,
    progress: Progress = lambda folds: None,
) -> list[TrainedHead]:
    """Train a run's settings on each fold, unless that was done before, and return all heads."""
    found = [_trained_before(run, fold, store, folder) for fold in folds]
    missing = [fold for fold, head in zip(folds, found, strict=True) if head is None]
    progress(len(folds) - len(missing))
    for fold in missing:
        for split in ("train", "val", "test"):
            if fold.pairs(split, "seen").is_empty():
                other = "fewer" if split == "test" else "more"
                raise EvaluationError(
                    f"fold {fold.number + 1} of {fold.of} of run {run.run} has no {split} pairs of "
                    f"seen users: too few {fold.over}; use {other} --folds"
                )
    if missing:
        data = load_each(run.train, folds, store, choose_device(run.train.device))
        fitted = fit_each(data, run.train, run.seed, [fold.number for fold in missing])
        for fold, (one, seconds) in zip(missing, fitted, strict=True):
            own = data[fold.number]
            config: JsonObject = {"fold": fold.number, "of": fold.of, "over": fold.over}
            record = record_before_training(run.train, run.seed, fold, store, run.run)
            head = own.trained(one, record, seconds)
            found[fold.number] = head.save(folder / f"{fold.number}", config, one.log)
            progress(1)
    return [head for head in found if head is not None]


def _trained_before(
    run: RunRecord, fold: Fold, store: FeatureStore, folder: Path
) -> TrainedHead | None:
    """Return the head of a fold if it is on disk, undamaged and made as it would be now."""
    place = folder / f"{fold.number}"
    record = record_before_training(run.train, run.seed, fold, store, run.run)
    before = RunRecord.find(place)
    if before is None or before.deciding() != record.deciding():
        return None
    try:
        return TrainedHead.load(place)
    except EvaluationError:
        return None  # damaged: trained again
