"""Where people watch a head being trained: TensorBoard and Weights & Biases, through Lightning.

What a training tells with ``self.log`` goes there, the numbers of log.csv, and the settings that
decide the head. Both write files and ask nobody; ``wandb sync`` sends those of the second, if
somebody wants that. While a head is trained they stand beside its run, and in the end in it:

runs/<run>/logs/seed-<seed>[-sigma-<sigma>]/   of TensorBoard, a folder for each start and strength
runs/<run>/logs/wandb/offline-run-*/           of Weights & Biases

Only the training of one run is logged: not stacks, sweeps, folds, or heads that are solved at once.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal.config import TrainConfig
from pal.errors import ConfigError
from pal.files import inflight
from pal.train.build import kind_of
from pal.train.relevant import relevant_settings
from pal.train.run_record import LOGS

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

PROJECT = "pal"


def _tensorboard(folder: Path, run: str, training: str) -> Logger:
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(folder, name="", version=training, default_hp_metric=False)


def _wandb(folder: Path, run: str, training: str) -> Logger:
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    # not WandbLogger(offline=True): that sets a variable of the whole process, goes on with a run
    # that somebody has open, and asks wandb for what it warns of
    experiment = wandb.init(
        project=PROJECT,
        group=run,
        name=f"{run}-{training}",
        dir=folder,
        mode="offline",
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off"),
    )
    return WandbLogger(experiment=experiment)


LOGGERS: dict[str, Callable[[Path, str, str], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
"""by the setting, which is also the name of the package and of the extra that brings it"""


@dataclass(frozen=True)
class Logs:
    """The logs of a run, while it is trained."""

    folder: Path
    """exists once something was logged"""
    run: str
    kind: str

    @contextmanager
    def of(self, settings: TrainConfig, seed: int) -> Iterator[Logger]:
        """Yield the logger of one training, which is closed afterwards."""
        strength = "" if settings.sigma is None else f"-sigma-{settings.sigma:g}"
        self.folder.mkdir(parents=True, exist_ok=True)
        logger = LOGGERS[self.kind](self.folder, self.run, f"seed-{seed}{strength}")
        try:
            logger.log_hyperparams({**relevant_settings(settings), "seed": seed})
            yield logger
        finally:
            finish: Callable[[], Any] | None = getattr(logger.experiment, "finish", None)
            if finish is not None:  # a run of wandb, which the next training would go on with
                finish()


def require_logger(settings: TrainConfig) -> None:
    """Raise ConfigError where the package of ``train.logger`` is not installed."""
    if settings.logger is None:
        return
    try:
        importlib.metadata.version(settings.logger)
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"train.logger = {settings.logger!r} needs the package {settings.logger}; "
            f"pip install 'pal-heads[{settings.logger}]'"
        ) from None


@contextmanager
def logs_of(settings: TrainConfig, folder: Path) -> Iterator[Logs | None]:
    """Yield the logs of the run that will be ``folder``; None where nothing is to be logged.

    They stand beside it for as long, and whatever was not moved into it is removed.
    """
    if settings.logger is None or kind_of(settings).is_solved:
        yield None
        return
    with inflight(folder) as temporary:
        yield Logs(temporary, folder.name, settings.logger)


def where_to_watch(settings: TrainConfig, folder: Path) -> list[str]:
    """Return what to tell people who asked for a logger of a run: the command that shows it."""
    if settings.logger is None:
        return []
    if kind_of(settings).is_solved:
        return [f"head {settings.head} is solved at once: train.logger has nothing to log"]
    if settings.logger == "tensorboard":
        return [f"to watch the training: tensorboard --logdir {folder.parent}"]
    return [f"to send the log when it is there: wandb sync {folder / LOGS / 'wandb'}/offline-run-*"]
