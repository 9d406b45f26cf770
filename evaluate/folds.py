"""Cross-fitting: every prompt is tested once, by a head that never saw it.

A single test split of real answers may hold twenty prompts, and its numbers jump with them. Here
prompt groups are dealt into N folds by hash. For each fold the run's own settings are trained again
on the others, a share of which validates (early stopping, thresholds); the fold is the test. All
tests together make the cells. Runs of folds are kept under ``runs/<run>/folds/``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pal.cache.reader import FeatureStore
from pal.chance import bucket
from pal.config import EvaluateConfig, PathsConfig
from pal.dataset import Population, PreparedDataset, Split
from pal.errors import EvaluationError
from pal.evaluate.crossed import PROMPT_GROUP, with_prompt_group
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.predict import (
    load_run,
    metrics_of,
    predict_cells,
    require_same_data,
    write_evaluation,
)
from pal.evaluate.records import Metrics
from pal.files import digest
from pal.records import JsonObject
from pal.train.data import TrainingData, record_before_training
from pal.train.fit import choose_device, fit_head
from pal.train.run_record import RunRecord, TrainedHead

if TYPE_CHECKING:
    import polars as pl

FEWEST_FOLDS = 2
VALIDATION_SHARE = 1 / 8
"""of the prompt groups outside a fold"""
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Fold(PreparedDataset):
    """A prepared dataset whose splits are those of one fold.

    Seen users: the fold is the test, a share of the rest validates, the other prompts train. Users
    kept for the test: the fold is the test, their answers to all other prompts are what they can be
    adapted by. Users kept for validation answer what validates, and the fold never.
    """

    number: int = 0
    """from 0"""
    of: int = FEWEST_FOLDS

    @classmethod
    def cut(cls, dataset: PreparedDataset, number: int, of: int) -> Fold:
        """Return a fold of a dataset in the same view."""
        return cls(dataset.folder, dataset.card, dataset.view, number, of)

    @classmethod
    def all_of(cls, dataset: PreparedDataset, of: int) -> list[Fold]:
        """Return all folds of a dataset in the same view."""
        return [cls.cut(dataset, number, of) for number in range(of)]

    @property
    def split_digest(self) -> str:
        return digest([self.card.split_digest, "fold", self.number, self.of])

    def pairs(
        self,
        split: Split | None = None,
        population: Population | None = None,
        columns: list[str] | None = None,
    ) -> pl.DataFrame:
        """Return the comparisons of one split of the fold, as ``PreparedDataset`` does."""
        import polars as pl

        frame = self._divided
        for name, wanted in (("split", split), ("population", population)):
            if wanted is not None:
                frame = frame.filter(pl.col(name) == wanted)
        return frame if columns is None else frame.select(columns)

    @cached_property
    def _divided(self) -> pl.DataFrame:
        import polars as pl

        frame = with_prompt_group(super().pairs())
        frame = frame.join(self._dealt(frame), on=PROMPT_GROUP, how="left", maintain_order="left")
        new = pl.col("dealt")
        is_for_validation = (pl.col("split") == "val").any().over("user_id")
        of_unseen = (
            pl.when(is_for_validation)
            .then(pl.when(new == "test").then(None).otherwise(new))
            .otherwise(pl.when(new == "test").then(new).otherwise(pl.lit("train")))
        )
        frame = frame.with_columns(
            split=pl.when(pl.col("population") == "seen").then(new).otherwise(of_unseen)
        )
        return frame.filter(pl.col("split").is_not_null()).drop(PROMPT_GROUP, "dealt")

    def _dealt(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """Return the split of each prompt group; folds are of equal size, to one group."""
        import polars as pl

        inner = f"inner {self.number}/{self.of}"

        def shuffled(groups: list[str], kind: str) -> list[str]:
            return sorted(groups, key=lambda group: bucket(kind, self.salt, group))

        everything = shuffled(pairs[PROMPT_GROUP].unique().sort().to_list(), "fold")
        test = everything[self.number :: self.of]
        others = [group for place, group in enumerate(everything) if place % self.of != self.number]
        others = shuffled(others, inner)
        validation = round(len(others) * VALIDATION_SHARE)
        splits = ["test"] * len(test) + ["val"] * validation
        splits += ["train"] * (len(others) - validation)
        return pl.DataFrame(
            {PROMPT_GROUP: [*test, *others], "dealt": splits},
            {PROMPT_GROUP: pl.String, "dealt": pl.String},
        )


def cross_fit(
    settings: EvaluateConfig,
    paths: PathsConfig,
    name: str,
    folds: int,
    progress: Progress = lambda folds: None,
) -> Metrics:
    """Train a run's settings on every fold, and return the metrics of all tests together.

    Folds that were trained before are taken over. Raises EvaluationError where a fold leaves
    nothing to train on or to test.
    """
    if folds < FEWEST_FOLDS:
        raise EvaluationError(f"--folds {folds} is no cross-fitting; use {FEWEST_FOLDS} or more")
    run = load_run(paths.runs, name)
    dataset, store = inputs_of_run(paths, run.metadata)
    require_same_data(run, dataset, store)
    folder = folder_of(paths.runs / name, folds)
    frames, tested, heads = [], [], []
    for fold in Fold.all_of(dataset, folds):
        trained = train_fold(run.metadata, fold, store, folder / f"{fold.number}")
        frames.append(predict_cells(trained, fold, store))
        tested.append(fold.pairs("test"))
        heads.append(trained.metadata)
        progress(1)
    import polars as pl

    predictions = pl.concat(frames)
    told = run.metadata.model_copy(
        update={"seconds": round(sum(head.seconds for head in heads), 3)}
    )
    metrics = metrics_of(settings, told, predictions, pl.concat(tested), store).model_copy(
        update={"folds": folds, "head_seal": digest([head.seal for head in heads])}
    )
    write_evaluation(folder, metrics, predictions)
    return metrics


def folder_of(run: Path, folds: int) -> Path:
    """Return where a run keeps what was trained on so many folds."""
    return run / "folds" / f"of-{folds}"


def train_fold(run: RunRecord, fold: Fold, store: FeatureStore, folder: Path) -> TrainedHead:
    """Train a run's settings on one fold, unless that was done before."""
    place = f"fold {fold.number + 1} of {fold.of} of run {run.run}"
    record = record_before_training(run.train, run.seed, fold, store, run.run)
    before = RunRecord.find(folder)
    if before is not None and before.deciding() == record.deciding():
        try:
            return TrainedHead.load(folder)
        except EvaluationError:
            pass  # damaged: trained again
    for split in ("train", "val", "test"):
        if fold.pairs(split, "seen").is_empty():
            raise EvaluationError(
                f"{place} has no {split} pairs of seen users: too few prompts; use fewer --folds"
            )
    data = TrainingData.load(run.train, fold, store, choose_device(run.train.device))
    began = time.perf_counter()
    fitted = fit_head(data, run.train, run.seed)
    trained = data.trained(fitted, record, time.perf_counter() - began)
    config: JsonObject = {"fold": fold.number, "of": fold.of}
    return trained.save(folder, config, fitted.log)
