"""Seen users' pairs for many heads: joined once, predicted by each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from pal.cache.mapped import Features
from pal.config import EvaluateConfig
from pal.dataset import Split
from pal.evaluate.predict import cell_of, pairs_of, predict_joined
from pal.evaluate.records import Cell
from pal.evaluate.ties import TieRule
from pal.train.data import TrainingData
from pal.train.pairs import Pairs, with_prompts
from pal.train.run_record import TrainedHead


@dataclass
class SeenPairs:
    """Validation and test pairs of the seen users, joined once for all heads of a sweep."""

    features: Features
    """on the CPU, where heads are evaluated"""
    frames: dict[Split, pl.DataFrame]
    pairs: dict[Split, Pairs]

    @classmethod
    def of_each(cls, folds: Sequence[TrainingData], reads_prompt: bool) -> list[SeenPairs]:
        """Return those of several training sets of one cache, which share its features.

        Pairs without a prompt are left out for heads that read it.
        """
        features = folds[0].features.cpu()
        return [cls._of(data, features, reads_prompt) for data in folds]

    @classmethod
    def _of(cls, data: TrainingData, features: Features, with_prompt: bool) -> SeenPairs:
        splits: tuple[Split, ...] = ("val", "test")
        frames = {
            split: pairs_of(data.dataset, data.store, data.users, split, "seen") for split in splits
        }
        if with_prompt:
            frames = {split: with_prompts(frame) for split, frame in frames.items()}
        pairs = {
            split: Pairs.join(frame, data.store, data.users, with_prompt, "cpu")
            for split, frame in frames.items()
        }
        return cls(features, frames, pairs)


def predict_seen(trained: TrainedHead, seen: SeenPairs) -> pl.DataFrame:
    """Return the predictions of one head of a sweep: ``val`` to select by, ``test`` to report."""
    return pl.concat(
        predict_joined(trained, frame, seen.pairs[split], seen.features)
        for split, frame in seen.frames.items()
    )


def cells_of_seen(settings: EvaluateConfig, predictions: pl.DataFrame) -> dict[Split, Cell]:
    """Return the cells of what ``predict_seen`` gave: of one head, or of those of all folds."""
    splits: tuple[Split, ...] = ("val", "test")
    of_split = {split: predictions.filter(pl.col("split") == split) for split in splits}
    ties = TieRule.choose(settings.ties, of_split["val"])
    return {split: cell_of(settings, rows, ties) for split, rows in of_split.items()}
