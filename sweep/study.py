"""Sweeps that learn from their results: Optuna proposes, whole stacks answer."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pal.errors import ConfigError
from pal.files import is_alive
from pal.sweep.plan import Candidate, Planner
from pal.sweep.record import SweepRow

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna import Trial

ROUND = 16
"""candidates that are proposed at once"""
PROCESS, FAILED, JOURNAL = "process", "failed", "study.log"


class Study:
    """Rounds of candidates, each better informed than the one before.

    Several processes may share the study through its storage; together they ask ``sweep.samples``
    times. What a killed process left open is asked again by the next one on its machine.
    """

    def __init__(self, planner: Planner, folder: Path) -> None:
        self.planner = planner
        self.settings = planner.config.sweep
        self.study = _open(planner, folder)
        self._asked: list[Trial] = []
        self._give_up_lost()

    def known(self) -> list[Candidate]:
        """Return what was asked and answered before."""
        from optuna.trial import TrialState

        done = self.study.get_trials(states=[TrialState.COMPLETE])
        return [self.planner.candidate(trial.params) for trial in done]

    def ask(self) -> list[Candidate]:
        """Return the next round; empty when all samples were asked."""
        missing = self.settings.samples - self._count()
        self._asked = [self.study.ask() for _ in range(max(0, min(ROUND, missing)))]
        for trial in self._asked:
            trial.set_user_attr(PROCESS, [socket.gethostname(), os.getpid()])
        axes = self.settings.axes
        return [
            self.planner.candidate({a: t.suggest_categorical(a, v) for a, v in axes.items()})
            for t in self._asked
        ]

    def tell(self, candidates: list[Candidate], rows: Mapping[str, SweepRow]) -> None:
        """Tell what came of the last round."""
        from optuna.trial import TrialState

        for trial, one in zip(self._asked, candidates, strict=True):
            row = rows[one.id]
            if row.status == "failed":
                trial.set_user_attr(FAILED, row.error)
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.study.tell(trial, row.val.macro_accuracy if row.val else 0.0)

    def _count(self) -> int:
        """Return how many trials are finished, failed by themselves, or being worked on."""
        from optuna.trial import TrialState

        counted = (TrialState.COMPLETE, TrialState.RUNNING)
        trials = self.study.get_trials(deepcopy=False)
        return sum(trial.state in counted or FAILED in trial.user_attrs for trial in trials)

    def _give_up_lost(self) -> None:
        """Mark the trials of killed processes of this machine as failed: they are asked again."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            host, process = trial.user_attrs.get(PROCESS, (None, 0))
            if host == socket.gethostname() and not is_alive(process):
                self.study.tell(trial.number, state=TrialState.FAIL)


def _open(planner: Planner, folder: Path) -> OptunaStudy:
    try:
        import optuna
        from optuna.storages import BaseStorage, JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise ConfigError(
            "sweep.sampler = 'optuna' needs Optuna; pip install 'pal-heads[optuna]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = planner.config.sweep.storage or str(folder / JOURNAL)
    storage: BaseStorage | str = place
    if not place.startswith("sqlite:"):
        storage = JournalStorage(JournalFileBackend(place))
    seed = planner.config.seed
    return optuna.create_study(
        storage=storage,
        study_name=folder.name,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=True),
    )
