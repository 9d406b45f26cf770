"""What a prediction earns on pairs that were labelled as ties (evaluation.md 2.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pal.evaluate.metrics import (
    Array,
    credit,
    credit_with_ties,
    sigmoid,
    tie_baseline,
    tie_threshold,
)


@dataclass(frozen=True)
class TieRule:
    """``half``, ``drop`` or ``pickscore``; the last with the threshold that the validation pairs
    chose."""

    name: str
    threshold: float | None = None

    @classmethod
    def choose(cls, name: str, validation: pl.DataFrame) -> TieRule:
        """Return the rule; ``validation``: predictions of validation pairs."""
        if name != "pickscore":
            return cls(name)
        return cls(name, tie_threshold(validation["p"].to_numpy(), validation["label"].to_numpy()))

    def keeps(self, label: Array) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Return which pairs count, (n,) bool."""
        return label != 0.5 if self.name == "drop" else np.ones(len(label), bool)

    def credit(self, margin: Array, label: Array) -> Array:
        """Return each prediction's share of correctness, (n,)."""
        return (
            credit(margin, label)
            if self.threshold is None
            else credit_with_ties(sigmoid(margin), label, self.threshold)
        )

    def facts(self, label: Array) -> dict[str, Any]:
        """Return what a reader must know to compare the numbers; empty where there are no ties."""
        ties = int(np.sum(label == 0.5))
        if not ties and self.threshold is None:
            return {}
        found: dict[str, Any] = {"ties": self.name, "n_ties": ties}
        if self.threshold is not None:
            found |= {
                "tie_threshold": self.threshold,
                "tie_random_baseline": tie_baseline(label, self.threshold),
            }
        return found
