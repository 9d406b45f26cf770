"""A run on unseen users: what ``pal adapt`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pal.cache.reader import FeatureStore
from pal.config import AdaptConfig, EvaluateConfig
from pal.dataset import PreparedDataset
from pal.evaluate.few_shot import USUAL_SHOTS, Trial
from pal.evaluate.hull import OutsideUser, outside_users
from pal.evaluate.panel import few_shot
from pal.evaluate.predict import evaluating, require_same_data
from pal.evaluate.records import Cell, Metrics, Sparse
from pal.train.run_record import TrainedHead


class Adaptation(Sparse):
    """What unseen users of a run reach after a few answers."""

    run: str
    test_unseen: dict[str, Cell]
    """by the number of answers"""
    seconds: float
    """that adaptation itself took"""
    n_users: int
    n_users_left_out: int
    """users with too few answers for the largest number of shots"""
    method: str
    protocol: Literal["strict", "released"]
    outside_hull: list[OutsideUser]
    grown: Metrics | None = None
    """of the run that was grown for users outside the hull; null where there are none"""


def adapt_run(
    settings: AdaptConfig,
    evaluate: EvaluateConfig,
    trained: TrainedHead,
    dataset: PreparedDataset,
    store: FeatureStore,
    folder: Path,
) -> Adaptation:
    """Adapt a run to unseen users, head frozen, and put the cells into its metrics file, whose cell
    of no answers stays that of the evaluation.

    Under protocol ``released`` the file stays as it is: those cells are tuned on test pairs.
    """
    require_same_data(trained, dataset, store)
    found = few_shot(settings, evaluate, [Trial(trained, dataset, store)])
    if settings.protocol == "strict":
        with evaluating(trained, folder):
            metrics = Metrics.find(folder)
            if metrics is not None and metrics.head_seal == trained.metadata.seal:
                left_out = found.n_users_left_out
                metrics.adapted(found.cells, found.method, left_out).write(folder)
    return Adaptation(
        run=trained.metadata.run,
        test_unseen=found.cells,
        seconds=found.seconds,
        n_users=found.n_users,
        n_users_left_out=found.n_users_left_out,
        method=found.method,
        protocol=settings.protocol,
        outside_hull=outside_users(trained, dataset, store),
    )


def shots_line(settings: AdaptConfig, found: Adaptation) -> list[str]:
    """Return a sentence where nobody said how many shots, and the usual ones were too many."""
    most = max(map(int, found.test_unseen))
    if settings.shots is not None or most == max(USUAL_SHOTS):
        return []
    return [
        f"  shots: up to {most}, the most of {', '.join(map(str, USUAL_SHOTS))} that half of the "
        f"new users can give; --shots asks for others"
    ]
