"""Sweeps that learn from their results: Optuna proposes, whole stacks answer."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pal.errors import ConfigError
from pal.sweep.plan import Candidate, candidate

if TYPE_CHECKING:
    from pal.sweep.fit import Sweep

ROUND = 16
PROCESS, FAILED = "process", "failed"
Tell = Callable[[list[dict[str, Any]]], None]


def asked(sweep: Sweep) -> Iterator[tuple[list[Candidate], Tell]]:
    """Yield rounds of candidates, each with a function that takes their rows of results.

    Several processes may share the study through its storage; together they ask ``sweep.samples``
    times. What a killed process left open is asked again by the next one on its machine.
    """
    try:
        import optuna
        from optuna.storages import BaseStorage, JournalStorage
        from optuna.storages.journal import JournalFileBackend
        from optuna.trial import TrialState
    except ImportError as error:
        raise ConfigError(
            "sweep.sampler = 'optuna' needs Optuna; pip install 'pal-heads[optuna]'"
        ) from error

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = sweep.config.sweep
    place = settings.storage or str(sweep.folder / "study.log")
    storage: BaseStorage | str = place
    if not place.startswith("sqlite:"):
        sweep.folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(place))
    sampler = optuna.samplers.TPESampler(seed=sweep.config.seed, constant_liar=True)
    study = optuna.create_study(
        storage=storage,
        study_name=sweep.name,
        direction="maximize",
        load_if_exists=True,
        sampler=sampler,
    )
    _give_up_lost(study, TrialState)
    done = [
        candidate(sweep.config, trial.params)
        for trial in study.get_trials(states=[TrialState.COMPLETE])
    ]
    known = [one for one in done if one.id in sweep.rows]
    if known:
        yield known, lambda rows: None
    while (missing := settings.samples - _count(study, TrialState)) > 0:
        trials = [study.ask() for _ in range(min(ROUND, missing))]
        for trial in trials:
            trial.set_user_attr(PROCESS, [socket.gethostname(), os.getpid()])
        chosen = [
            candidate(
                sweep.config, {a: t.suggest_categorical(a, v) for a, v in settings.axes.items()}
            )
            for t in trials
        ]

        def tell(rows: list[dict[str, Any]], trials: list[Any] = trials) -> None:
            for trial, row in zip(trials, rows, strict=True):
                if row["status"] == "failed":
                    trial.set_user_attr(FAILED, row["error"])
                    study.tell(trial, state=TrialState.FAIL)
                else:
                    study.tell(trial, row.get("val_macro_accuracy") or 0.0)

        yield chosen, tell


def _count(study: Any, states: Any) -> int:
    """Return how many trials are finished, failed by themselves, or being worked on."""
    return sum(
        trial.state in (states.COMPLETE, states.RUNNING) or FAILED in trial.user_attrs
        for trial in study.get_trials(deepcopy=False)
    )


def _give_up_lost(study: Any, states: Any) -> None:
    """Mark the trials of killed processes of this machine as failed, so that they are asked
    again."""
    for trial in study.get_trials(states=[states.RUNNING]):
        host, process = trial.user_attrs.get(PROCESS, (None, 0))
        if host == socket.gethostname() and not _is_alive(process):
            study.tell(trial.number, state=states.FAIL)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
