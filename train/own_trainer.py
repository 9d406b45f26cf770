"""A head's training for a Trainer of your own, with your callbacks, loggers and devices.

training = pipeline.open_training(config, "mine")
trainer = lightning.Trainer(max_epochs=50, callbacks=[EarlyStopping("val/loss")])
trainer.fit(training.module, datamodule=training.batches)
training.save()    # runs/mine, which pal evaluate, adapt and export take as any other
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from pal.cache.reader import FeatureStore
from pal.config import TrainConfig
from pal.dataset import PreparedDataset
from pal.errors import TrainError
from pal.records import JsonObject
from pal.train.build import kind_of, resolve
from pal.train.by_lightning import begin, best_epoch_of
from pal.train.datamodules import PairsDataModule
from pal.train.heads.shrunk import ShrunkHead
from pal.train.module import HeadTraining
from pal.train.new_run import NewRun
from pal.train.priors import PATH
from pal.train.run_record import TrainedHead

NOTHING = (
    "no epoch with a finite val/loss is known in this process; lower train.lr, and of several "
    "processes use the strategy ddp, not one that forks or spawns them"
)


@dataclass
class OwnTraining:
    """What a Trainer needs, and the way from there to a run."""

    module: HeadTraining
    """logs ``train/loss``, ``val/loss`` and ``val/acc``, and keeps the epoch of the least
    ``val/loss``"""
    batches: PairsDataModule
    run: NewRun
    began: float = field(default_factory=time.perf_counter)

    def save(self) -> TrainedHead | None:
        """Write the run, with the best epoch's weights; None on all but the first of several
        processes.

        Raises TrainError where nothing was trained, or where the folder holds a run with other
        settings by now.
        """
        if not self.module.trainer.is_global_zero:
            return None
        if not self.module.best_state:
            raise TrainError(NOTHING)
        return self.run.save(best_epoch_of(self.module), time.perf_counter() - self.began)


def open_training(
    settings: TrainConfig,
    seed: int,
    dataset: PreparedDataset,
    store: FeatureStore,
    runs: Path,
    run: str,
    config: JsonObject,
) -> OwnTraining:
    """Return a head with its batches, ready for a Trainer; features stay on the CPU until then.

    Epochs, devices and loggers are the Trainer's, all else is the settings'. A Trainer trains once:
    under priors no strength is chosen, and ``sigma`` null is 1. Raises TrainError for several
    ``starts``, and for heads that are solved at once and need no Trainer.
    """
    settings = resolve(settings)
    kind = kind_of(settings)
    if kind.is_solved:
        raise TrainError(f"head {kind.name} is solved, not trained step by step; use pal train")
    if settings.starts > 1:
        raise TrainError(
            f"train.starts = {settings.starts} is more than the one training of a Trainer; use "
            "pal train, or train.starts=1"
        )
    if settings.sigma is None and issubclass(kind, ShrunkHead):
        settings = settings.model_copy(update={"sigma": PATH[0]})
    new = NewRun.begin(settings, seed, dataset, store, runs, run, config, "cpu")
    return OwnTraining(*begin(new.data, new.settings, seed), new)
