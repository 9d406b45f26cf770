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
from pal.files import locked
from pal.names import require_name
from pal.records import JsonObject
from pal.train.build import resolve
from pal.train.data import Fitted, TrainingData, record_before_training
from pal.train.module import HeadTraining
from pal.train.pairs import PairsDataModule
from pal.train.run_record import RunRecord, TrainedHead
from pal.train.solve import is_solved

NOTHING = (
    "no epoch with a finite val/loss is known in this process; lower train.lr, and of several "
    "processes use the strategy ddp, not one that forks or spawns them"
)
REMEDY = "choose another name for the run, or remove that folder"


@dataclass
class OwnTraining:
    """What a Trainer needs, and the way from there to a run."""

    module: HeadTraining
    """logs ``train/loss``, ``val/loss`` and ``val/acc``, and keeps the epoch of the least
    ``val/loss``"""
    batches: PairsDataModule
    data: TrainingData
    record: RunRecord
    folder: Path
    config: JsonObject
    began: float = field(default_factory=time.perf_counter)

    def save(self) -> TrainedHead | None:
        """Write the run, with the best epoch's weights; None on all but the first of several
        processes.

        Raises TrainError where nothing was trained, and EvaluationError where the folder holds a
        run with other settings.
        """
        if not self.module.trainer.is_global_zero:
            return None
        if not self.module.best_state:
            raise TrainError(NOTHING)
        head = self.module.head
        head.load_state_dict(self.module.best_state)
        fitted = Fitted(head, self.module.epoch_rows, self.module.best_epoch)
        seconds = time.perf_counter() - self.began
        with locked(self.folder):
            self.record.require_same_run(self.folder, REMEDY)
            return self.data.trained(fitted, self.record, seconds).save(
                self.folder, self.config, fitted.log
            )


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

    Epochs and devices are the Trainer's, all else is the settings'. Raises TrainError for heads
    that are solved at once and need no Trainer.
    """
    folder = runs / require_name("run", run)
    RunRecord.require_replaceable(folder)
    settings = resolve(settings)
    record = record_before_training(settings, seed, dataset, store, run)
    record.require_same_run(folder, REMEDY)
    data = TrainingData.load(settings, dataset, store, "cpu")
    head = data.new_head(settings, seed)
    if is_solved(head):
        raise TrainError(f"head {head.name} is solved, not trained step by step; use pal train")
    batches = PairsDataModule(data.features, data.train, data.val, settings.batch_size, seed)
    return OwnTraining(HeadTraining(head, settings), batches, data, record, folder, config)
