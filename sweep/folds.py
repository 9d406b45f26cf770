"""Choosing in each fold by that fold's own validation, and testing there what was chosen.

The best of many heads by some prompts looks better on those prompts than it is. So no number of a
sweep's choice may come from prompts that had a part in it: in each fold the head that its own
validation likes best is tested, and all tests are put together. What a head predicts in a fold is
kept in ``sweeps/<name>/folds/of-<N>/`` if it was the best there when it was trained, or was chosen
since, among fewer heads; of the others there is only a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from pal.config import Config
from pal.evaluate.folds import crossing_folds
from pal.evaluate.inputs import open_dataset
from pal.evaluate.seen import cells_of_seen, predict_seen
from pal.evaluate.ties import of_folds
from pal.files import atomic_file
from pal.records import Damaged, read_table, write_table
from pal.sweep.fit import Worlds, train_alone
from pal.sweep.plan import Candidate
from pal.sweep.record import BestHead, CrossFitted, SweepRow, best_in_fold
from pal.train.run_record import TrainedHead

KIND = "predictions"


def file_of_fold(folder: Path, fold: int, folds: int, head: str) -> Path:
    """Return where the predictions of a head in a fold are: a file of its own, so that sweeps over
    more and over fewer heads do not take them from each other."""
    return folder / "folds" / f"of-{folds}" / f"{fold}-{head}.parquet"


def save_leaders(
    folder: Path,
    rows: Mapping[str, SweepRow],
    before: Mapping[str, SweepRow],
    predictions: Mapping[str, Sequence[pl.DataFrame]],
) -> None:
    """Keep what new heads predict in the folds in which they are better than all heads before.

    ``predictions`` are those of each new head by fold.
    """
    folds = max((row.folds or 0 for row in rows.values()), default=0)
    for fold in range(folds):
        leader, earlier = best_in_fold(rows, fold, folds), best_in_fold(before, fold, folds)
        if leader is None or (earlier and earlier.rank_in(fold) >= leader.rank_in(fold)):
            continue
        _save(folder, fold, folds, leader.head_id, predictions[leader.head_id][fold])


def cross_fitted(
    config: Config,
    folder: Path,
    asked: Mapping[str, Candidate],
    rows: Mapping[str, SweepRow],
    device: str,
    report: Callable[[str], None],
) -> CrossFitted | None:
    """Return what is chosen in each fold, and its test; None without folds, or where no head
    succeeded. A chosen head whose predictions are not there is trained again, once, and said."""
    folds = config.sweep.folds
    if folds is None or not any(row.status == "ok" for row in rows.values()):
        return None
    best = [best_in_fold(rows, fold, folds) for fold in range(folds)]
    chosen = [row for row in best if row is not None]
    assert len(chosen) == folds, "some head succeeded"
    found = _predictions(folder, [asked[row.head_id] for row in chosen], device, report)
    return CrossFitted(
        folds=folds,
        chosen=[
            best_head(row, f"fold-{fold + 1}", row.rank_in(fold)[0])
            for fold, row in enumerate(chosen)
        ],
        test=cells_of_seen(config.evaluate, of_folds(found))["test"],
        n_crossing_folds=crossing_folds(open_dataset(config), folds),
    )


def best_head(row: SweepRow, run: str, accuracy: float) -> BestHead:
    """Say which head is the best of its kind, and by what validation accuracy."""
    return BestHead(
        run=run, head=row.head, k=row.k, val_macro_accuracy=accuracy, head_id=row.head_id
    )


def _predictions(
    folder: Path, chosen: Sequence[Candidate], device: str, report: Callable[[str], None]
) -> list[pl.DataFrame]:
    """Return what the chosen head of each fold predicts there. What is not there is made once: its
    head is trained again, and its predictions are kept."""
    folds, worlds, found = len(chosen), Worlds(device), []
    trained: dict[str, list[TrainedHead]] = {}
    for fold, one in enumerate(chosen):
        predictions = _saved(folder, fold, folds, one.id)
        if predictions is None:
            world = worlds.of(one)
            if one.id not in trained:
                report(f"trained again, for what it predicts in its folds: {one}")
                trained[one.id] = train_alone(world, one, folder.name).trained
            predictions = predict_seen(trained[one.id][fold], world.seen[fold])
            _save(folder, fold, folds, one.id, predictions)
        found.append(predictions)
    return found


def _save(folder: Path, fold: int, folds: int, head: str, predictions: pl.DataFrame) -> None:
    path = file_of_fold(folder, fold, folds, head)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        write_table(temporary, predictions.to_arrow(), KIND, of=head)


def _saved(folder: Path, fold: int, folds: int, head: str) -> pl.DataFrame | None:
    try:
        table = read_table(file_of_fold(folder, fold, folds, head), KIND, of=head)
    except (Damaged, OSError):
        return None
    return pl.DataFrame(pl.from_arrow(table))
