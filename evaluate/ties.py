"""What a prediction earns on pairs that were labelled as ties (evaluation.md 2.5)."""

from __future__ import annotations

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


@dataclass(frozen=True)
class TieRule:
    """``half``, ``drop`` or ``pickscore``, with the threshold that validation pairs chose."""

    name: str
    threshold: float | None = None

    @classmethod
    def choose(cls, name: str, validation: pl.DataFrame) -> TieRule:
        """Return the rule; ``validation``: predictions of validation pairs."""
        if name != "pickscore":
            return cls(name)
        return cls(name, tie_threshold(validation["p"].to_numpy(), validation["label"].to_numpy()))

    def keeps(self, label: Array) -> NDArray[np.bool_]:
        """Return which pairs count, (n,) bool."""
        return label != 0.5 if self.name == "drop" else np.ones(len(label), bool)

    def credit(self, margin: Array, label: Array) -> Array:
        """Return each prediction's share of correctness, (n,)."""
        if self.threshold is None:
            return credit(margin, label)
        return credit_with_ties(sigmoid(margin), label, self.threshold)

    def told_in(self, cell: Cell, label: Array) -> Cell:
        """Return a cell that says what a reader must know of ties, if there are any, to compare."""
        count = int(np.sum(label == 0.5))
        if not count and self.threshold is None:
            return cell
        told: dict[str, str | int | float] = {"ties": self.name, "n_ties": count}
        if self.threshold is not None:
            told["tie_threshold"] = self.threshold
            told["tie_random_baseline"] = tie_baseline(label, self.threshold)
        return cell.model_copy(update=told)
