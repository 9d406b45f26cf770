"""The best head of a sweep as a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from pal.config import Config
from pal.errors import EvaluationError, TrainError
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.predict import evaluate_run
from pal.evaluate.records import METRICS, PREDICTIONS
from pal.files import INFLIGHT, atomic_file, discard, locked
from pal.sweep.fit import Result, Worlds, train_alone
from pal.sweep.plan import Candidate
from pal.sweep.record import SweepSummary
from pal.train.run_record import FOLDS, RunRecord, TrainedHead

BEST = "best"
EVALUATION = METRICS, PREDICTIONS
"""what an evaluation adds to a run"""


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
    (trained,) = result.trained
    config = result.candidate.config.model_dump(mode="json")
    log = [{"epoch": trained.metadata.best_epoch}]
    with locked(folder / BEST):
        trained.save(folder / BEST, config, log)


def publish_best(config: Config, folder: Path, one: Candidate, device: str) -> None:
    """Make the best head an ordinary run; it is trained again only if a kill lost it. A run that is
    this very head already stays, with whatever was found by it since.

    A head that was chosen by folds is trained on the dataset's own splits. Their test prompts had a
    part in the choice, so it is not evaluated on them: the summary's ``cross_fitted`` says what can
    be expected of it.
    """
    own, run = one.without_folds, config.paths.runs / best_run(folder.name)
    published = _saved(run, own)
    trained = _saved(folder / BEST, own)
    if trained is None:
        if published is not None:
            _copy_head(published, run, folder / BEST)
        else:
            save_best(folder, train_alone(Worlds(device).of(own), own, best_run(folder.name)))
        trained = TrainedHead.load(folder / BEST)
    if published is None or published.metadata.seal != trained.metadata.seal:
        _copy_head(trained, folder / BEST, run)
    if config.sweep.folds is None:
        inputs = inputs_of_run(config.paths, trained.metadata)
        evaluate_run(config.evaluate, trained, *inputs, run)
        with locked(folder / BEST):
            for name in EVALUATION:
                with atomic_file(folder / BEST / name) as temporary:
                    shutil.copyfile(run / name, temporary)
        return
    places = [folder / BEST]
    if not _asked_by_people(folder):
        places.append(run)
    for place in places:
        with locked(place):
            for name in EVALUATION:
                (place / name).unlink(missing_ok=True)


def _copy_head(trained: TrainedHead, source: Path, target: Path) -> None:
    """Make a run of one that is elsewhere, without what was found by it; its own folds stay."""
    ignored = shutil.ignore_patterns(*EVALUATION, FOLDS, f"{INFLIGHT}*")
    first, second = sorted((source, target))  # in one order, whichever way heads are copied
    with locked(first), locked(second), RunRecord.replace(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True, ignore=ignored)
        trained.metadata.keep_folds(target, temporary)


def _asked_by_people(folder: Path) -> bool:
    """Say whether an evaluation of the best run can only be one that somebody asked for: where the
    sweep before this one had folds, and chose."""
    before = SweepSummary.find(folder)
    return before is not None and before.cross_fitted is not None


def withdraw_best(config: Config, folder: Path, report: Callable[[str], None]) -> None:
    """Leave no best head of earlier settings where no head succeeded; a run that one became stays,
    and is named."""
    with locked(folder / BEST):
        discard(folder / BEST)
    run = config.paths.runs / best_run(folder.name)
    if RunRecord.find(run) is not None:
        report(f"no head succeeded: {run} is the best head of an earlier sweep")


def _saved(run: Path, one: Candidate) -> TrainedHead | None:
    try:
        trained = TrainedHead.load(run)
    except EvaluationError:
        return None
    return trained if trained.metadata.head_id == one.id else None
