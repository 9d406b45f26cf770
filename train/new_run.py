"""A run that is to be: where it will stand, what is known of it before training, and its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pal.cache.reader import FeatureStore
from pal.config import TrainConfig
from pal.dataset import PreparedDataset
from pal.files import locked
from pal.names import require_name
from pal.records import JsonObject
from pal.train.build import resolve
from pal.train.data import Fitted, TrainingData, record_before_training
from pal.train.run_record import RunRecord, TrainedHead

REMEDY = "choose another name with --run, or remove that folder"


@dataclass
class NewRun:
    """What training begins with, and the way from there to a folder."""

    folder: Path
    settings: TrainConfig
    """with the head's own defaults filled in"""
    record: RunRecord
    config: JsonObject
    """saved beside the head, to be read by people"""
    data: TrainingData

    @classmethod
    def begin(
        cls,
        settings: TrainConfig,
        seed: int,
        dataset: PreparedDataset,
        store: FeatureStore,
        runs: Path,
        run: str,
        config: JsonObject,
        device: str,
    ) -> NewRun:
        """Load the data of the run ``<runs>/<run>``.

        Raises TrainError where the name is taken by a run with other settings or data, and
        EvaluationError where it is taken by something else.
        """
        folder = runs / require_name("run", run)
        RunRecord.require_replaceable(folder)
        settings = resolve(settings)
        record = record_before_training(settings, seed, dataset, store, run)
        record.require_same_run(folder, REMEDY)
        data = TrainingData.load(settings, dataset, store, device)
        return cls(folder, settings, record, config, data)

    def save(self, fitted: Fitted, seconds: float, logs: Path | None = None) -> TrainedHead:
        """Write the run, the folder ``logs`` becoming a part of it; raises as ``begin`` does, for
        another process may have been quicker."""
        with locked(self.folder):
            self.record.require_same_run(self.folder, REMEDY)
            trained = self.data.trained(fitted, self.record, seconds)
            return trained.save(self.folder, self.config, fitted.log, logs)
