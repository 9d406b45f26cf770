"""What a prediction earns on pairs that were labelled as ties (evaluation.md 2.5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pal.evaluate.crossed import Array
from pal.evaluate.metrics import (
    credit,
    credit_with_ties,
    sigmoid,
    tie_baseline,
    tie_threshold,
)
from pal.evaluate.records import Cell

FOLD = "fold"
"""column of cross-fitted predictions: which head, from 0, made them"""


def folds_of(predictions: pl.DataFrame) -> NDArray[np.int64] | None:
    """Return the fold of each prediction, (n,); None where one head made them all."""
    return predictions[FOLD].to_numpy() if FOLD in predictions.columns else None


def of_folds(predictions: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return the predictions of all folds in one table that says which is whose."""
    numbered = enumerate(predictions)
    return pl.concat(frame.with_columns(pl.lit(n).alias(FOLD)) for n, frame in numbered)


@dataclass(frozen=True)
class TieRule:
    """``half``, ``drop`` or ``pickscore``, with the threshold that validation pairs chose: of each
    fold its own, for what validates in one fold is tested in another."""

    name: str
    thresholds: tuple[float, ...] = ()
    """by fold; one where there are no folds"""

    @classmethod
    def choose(cls, name: str, validation: pl.DataFrame) -> TieRule:
        """Return the rule; ``validation``: predictions of validation pairs."""
        if name != "pickscore":
            return cls(name)
        folds = folds_of(validation)
        parts = [validation]
        if folds is not None and len(folds):
            parts = [validation.filter(pl.col(FOLD) == n) for n in range(int(folds.max()) + 1)]
        chosen = [tie_threshold(part["p"].to_numpy(), part["label"].to_numpy()) for part in parts]
        return cls(name, tuple(chosen))

    def keeps(self, label: Array) -> NDArray[np.bool_]:
        """Return which pairs count, (n,) bool."""
        return label != 0.5 if self.name == "drop" else np.ones(len(label), bool)

    def credit(self, margin: Array, label: Array, fold: NDArray[np.int64] | None = None) -> Array:
        """Return each prediction's share of correctness, (n,); ``fold`` as of ``folds_of``."""
        if not self.thresholds:
            return credit(margin, label)
        last = len(self.thresholds)  # a fold without validation pairs has 0, as ``tie_threshold``
        place = 0 if fold is None else np.minimum(fold, last)
        threshold = np.array([*self.thresholds, 0.0])[place]
        return credit_with_ties(sigmoid(margin), label, threshold)

    def told_in(self, cell: Cell, label: Array) -> Cell:
        """Return a cell that says what a reader must know of ties, if there are any, to compare."""
        count = int(np.sum(label == 0.5))
        if not count and not self.thresholds:
            return cell
        told: dict[str, str | int | float] = {"ties": self.name, "n_ties": count}
        if self.thresholds:
            baselines = [tie_baseline(label, threshold) for threshold in self.thresholds]
            told["tie_threshold"] = float(np.mean(self.thresholds))
            told["tie_random_baseline"] = float(np.mean(baselines))
        return cell.model_copy(update=told)
