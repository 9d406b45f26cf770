"""A run on unseen users: what ``pal adapt`` does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

from pal.cache.reader import FeatureStore
from pal.config import AdaptConfig, EvaluateConfig
from pal.dataset import PreparedDataset
from pal.errors import PalWarning
from pal.evaluate.few_shot import USUAL_SHOTS, Trial
from pal.evaluate.hull import OutsideUser, outside_users
from pal.evaluate.panel import FewShot, few_shot
from pal.evaluate.predict import evaluating, require_same_data
from pal.evaluate.records import METRICS, Cell, Metrics, Sparse, why_apart
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
    of no answers stays that of the evaluation; with a warning where that is not to be had.

    Under protocol ``released`` the file stays as it is: those cells are tuned on test pairs.
    """
    require_same_data(trained, dataset, store)
    found = few_shot(settings, evaluate, [Trial(trained, dataset, store)])
    if settings.protocol == "strict":
        with evaluating(trained, folder):
            _keep(evaluate, trained.metadata.seal, folder, found)
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


def _keep(settings: EvaluateConfig, seal: str, folder: Path, found: FewShot) -> None:
    """Put the cells of an adaptation into the metrics file of the same head, judged by the same
    settings; with a warning where there is none."""
    metrics = Metrics.find(folder)
    why = why_apart(metrics, seal, settings)
    if metrics is None or why is not None:
        warnings.warn(
            f"{folder / METRICS} {why}, so it does not keep what this adaptation found; run "
            f"pal evaluate --run {folder.name}, then adapt again, both with the same settings",
            PalWarning,
            stacklevel=3,
        )
        return
    metrics.adapted(found.cells, found.method, found.n_users_left_out).write(folder)


def shots_line(settings: AdaptConfig, found: Adaptation) -> list[str]:
    """Return a sentence where nobody said how many shots, and the usual ones were too many."""
    most = max(map(int, found.test_unseen))
    if settings.shots is not None or most == max(USUAL_SHOTS):
        return []
    return [
        f"  shots: up to {most}, the most of {', '.join(map(str, USUAL_SHOTS))} that half of the "
        f"new users can give; --shots asks for others"
    ]
