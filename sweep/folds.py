"""Choosing in each fold by that fold's own validation, and testing there what was chosen.

The best of many heads by some prompts looks better on those prompts than it is. So no number of a
sweep's choice may come from prompts that had a part in it: in each fold the head that its own
validation likes best is tested, and all tests are put together. What the best head of each fold so
far predicts is kept in ``sweeps/<name>/folds/of-<N>/``; of the others there is only a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

KIND = "predictions"


def file_of_fold(folder: Path, fold: int, folds: int) -> Path:
    """Return where the predictions of a fold's best head are."""
    return folder / "folds" / f"of-{folds}" / f"{fold}.parquet"


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
        path = file_of_fold(folder, fold, folds)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            table = predictions[leader.head_id][fold].to_arrow()
            write_table(temporary, table, KIND, of=leader.head_id)


def cross_fitted(
    config: Config,
    folder: Path,
    asked: Mapping[str, Candidate],
    rows: Mapping[str, SweepRow],
    device: str,
) -> CrossFitted | None:
    """Return what is chosen in each fold, and its test; None without folds, or where no head
    succeeded. A chosen head whose predictions were lost is trained again."""
    folds, worlds = config.sweep.folds, Worlds(device)
    if folds is None or not any(row.status == "ok" for row in rows.values()):
        return None
    chosen, found = [], []
    for fold in range(folds):
        best = best_in_fold(rows, fold, folds)
        assert best is not None, "some head succeeded"
        chosen.append(best_head(best, f"fold-{fold + 1}", best.rank_in(fold)[0]))
        found.append(_predictions(folder, fold, folds, asked[best.head_id], worlds))
    return CrossFitted(
        folds=folds,
        chosen=chosen,
        test=cells_of_seen(config.evaluate, of_folds(found))["test"],
        n_crossing_folds=crossing_folds(open_dataset(config), folds),
    )


def best_head(row: SweepRow, run: str, accuracy: float) -> BestHead:
    """Say which head is the best of its kind, and by what validation accuracy."""
    return BestHead(
        run=run, head=row.head, k=row.k, val_macro_accuracy=accuracy, head_id=row.head_id
    )


def _predictions(
    folder: Path, fold: int, folds: int, one: Candidate, worlds: Worlds
) -> pl.DataFrame:
    path = file_of_fold(folder, fold, folds)
    try:
        return pl.DataFrame(pl.from_arrow(read_table(path, KIND, of=one.id)))
    except (Damaged, OSError):
        world = worlds.of(one)
        trained = train_alone(world, one, folder.name).trained
        return predict_seen(trained[fold], world.seen[fold])
