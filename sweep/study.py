"""Sweeps that learn from their results: Optuna proposes, whole stacks answer.

What was asked is kept in ``study.json``, what came of it in the sweep's results: the study is made
of both whenever a sweep begins. With ``sweep.storage`` it lives in a database of Optuna's instead,
which several sweeps may share.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from pal.errors import ConfigError, PalError, TrainError
from pal.files import is_alive
from pal.records import Record
from pal.sweep.plan import Candidate, Planner
from pal.sweep.record import SweepRow, read_results

if TYPE_CHECKING:
    from optuna import Study as OptunaStudy
    from optuna import Trial
    from optuna.distributions import BaseDistribution

ROUND = 16
"""candidates that are proposed at once"""
PROCESS, FAILED = "process", "failed"
Values = dict[str, JsonValue]
"""by axis"""


class Asked(
    Record,
    kind="study",
    file="study.json",
    error=TrainError,
    remedy="remove it, and pal sweep --name {name} goes on with new questions",
):
    """``study.json``: what a sweep has asked, in order."""

    trials: list[Values]


class Study:
    """Rounds of candidates, each better informed than the one before.

    What a killed process left open is asked again by the next one on its machine.
    """

    def __init__(self, planner: Planner, folder: Path) -> None:
        """Raises ConfigError where Optuna or its storage is not there, TrainError for a damaged
        ``study.json``."""
        self.planner, self.folder = planner, folder
        self.settings = planner.config.sweep
        self.is_own = self.settings.storage is None
        self.asked: list[Values] = []
        self._open_trials: list[Trial] = []
        with self._told():
            self.study = _open(planner, folder)
            if self.is_own:
                self._recall()
            else:
                self._require_same_axes()
                self._give_up_lost()

    def known(self) -> list[Candidate]:
        """Return what was asked and answered before."""
        from optuna.trial import TrialState

        with self._told():
            done = self.study.get_trials(states=[TrialState.COMPLETE])
        return [self.planner.candidate(trial.params) for trial in done]

    def ask(self) -> list[Candidate]:
        """Return the next round; empty when all samples were asked."""
        axes = self.settings.axes
        with self._told():
            missing = self.settings.samples - self._count()
            trials = [self.study.ask() for _ in range(max(0, min(ROUND, missing)))]
            for trial in trials:
                trial.set_user_attr(PROCESS, [socket.gethostname(), os.getpid()])
            found: list[Values] = [
                {a: t.suggest_categorical(a, v) for a, v in axes.items()} for t in trials
            ]
        self._open_trials = trials
        if self.is_own and found:
            self.asked += found
            Asked(trials=self.asked).write(self.folder)
        return [self.planner.candidate(values) for values in found]

    def tell(self, candidates: list[Candidate], rows: Mapping[str, SweepRow]) -> None:
        """Tell what came of the last round."""
        from optuna.trial import TrialState

        with self._told():
            for trial, one in zip(self._open_trials, candidates, strict=True):
                row = rows[one.id]
                if row.status == "failed":
                    trial.set_user_attr(FAILED, row.error)
                    self.study.tell(trial, state=TrialState.FAIL)
                else:
                    self.study.tell(trial, _value(row))

    def _recall(self) -> None:
        """Tell a new study what was asked and answered before; what has no answer is asked
        first."""
        from optuna.distributions import CategoricalDistribution
        from optuna.trial import TrialState, create_trial

        axes = self.settings.axes
        before = Asked.read(self.folder).trials if (self.folder / Asked.file).exists() else []
        rows = read_results(self.folder)
        distributions: dict[str, BaseDistribution] = {
            axis: CategoricalDistribution(values) for axis, values in axes.items()
        }
        for values in before:
            if {*values} != {*axes} or any(values[axis] not in axes[axis] for axis in axes):
                continue  # of a sweep over other values
            row = rows.get(self.planner.candidate(values).id)
            if row is None or row.status == "failed":
                self.study.enqueue_trial(values)
                continue
            self.asked.append(values)
            state = TrialState.COMPLETE
            self.study.add_trial(
                create_trial(
                    params=values, distributions=distributions, value=_value(row), state=state
                )
            )

    def _count(self) -> int:
        """Return how many trials are finished, failed by themselves, or being worked on."""
        from optuna.trial import TrialState

        counted = (TrialState.COMPLETE, TrialState.RUNNING)
        trials = self.study.get_trials(deepcopy=False)
        return sum(trial.state in counted or FAILED in trial.user_attrs for trial in trials)

    def _require_same_axes(self) -> None:
        """Raise ConfigError if what is stored was asked of other axes, or of other values of one:
        Optuna could not go on with it, and its answers would pass for answers of this sweep."""
        from optuna.trial import TrialState

        axes = self.settings.axes
        for trial in self.study.get_trials(deepcopy=False):
            before = {name: choices_of(one) for name, one in trial.distributions.items()}
            # one that is being asked may not know all of its axes yet
            asked = [*before, *axes] if trial.state == TrialState.COMPLETE else [*before]
            for axis in asked:
                was, now = before.get(axis, ()), axes.get(axis, ())
                if was != now:
                    raise ConfigError(
                        f"sweep.storage = {self.settings.storage!r} holds study "
                        f"{self.folder.name} over {_listed(axis, was)}, and this sweep is over "
                        f"{_listed(axis, now)}: a study keeps its axes; choose another --name, or "
                        "give the same values"
                    )

    def _give_up_lost(self) -> None:
        """Mark the trials of killed processes of this machine as failed: they are asked again."""
        from optuna.trial import TrialState

        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            host, process = trial.user_attrs.get(PROCESS, (None, 0))
            if host == socket.gethostname() and not is_alive(process):
                self.study.tell(trial.number, state=TrialState.FAIL)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what a storage raises, a dozen kinds of errors, into a sentence."""
        try:
            yield
        except PalError:
            raise
        except Exception as error:
            if self.is_own:
                raise
            raise ConfigError(
                f"sweep.storage = {self.settings.storage!r} cannot be used "
                f"({type(error).__name__}); give another one, or null for none"
            ) from error


def choices_of(distribution: BaseDistribution) -> tuple[Any, ...]:
    """Return the values of an axis as a study was asked them."""
    return tuple(getattr(distribution, "choices", ()))


def _listed(axis: str, values: Sequence[JsonValue]) -> str:
    return f"{axis} = {json.dumps([*values])}" if values else f"no {axis}"


def _value(row: SweepRow) -> float:
    """Return what a study is to make large; heads that were dropped on the way are the worst."""
    return row.val.macro_accuracy if row.val else 0.0


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
    place = planner.config.sweep.storage
    storage: BaseStorage | str | None = place
    if place is not None and not place.startswith("sqlite:"):
        storage = JournalStorage(JournalFileBackend(place))
    return optuna.create_study(
        storage=storage,
        study_name=folder.name,
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=planner.config.seed, constant_liar=True),
    )
