"""Whether one run is better than another: paired over users, corrected for the number of
comparisons.

The formulas are those of evaluation.md 2.2 and 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pal.evaluate.metrics import bootstrap_interval, credit

Array = NDArray[np.float64]


def sign_flip_p(differences: Array, draws: int, seed: int = 0) -> float:
    """Return the two-sided p of a mean difference over users, by flipping each user's sign at
    random."""
    generator = np.random.default_rng(seed)
    signs = generator.integers(0, 2, (draws, len(differences)), dtype=np.int8) * 2 - 1
    means = np.abs(signs @ differences) / len(differences)
    return float((1 + np.sum(means >= abs(differences.mean()) - 1e-12)) / (1 + draws))


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted for all comparisons of a table (Holm 1979), in the order given."""
    adjusted, running = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = running
    return adjusted


def chance_of_harm(discordant: NDArray[np.int64]) -> float:
    """Return the share of users who would do worse by chance alone; ``discordant``: pairs where the
    two differ."""
    from math import comb

    even = [comb(int(d), int(d) // 2) / 2.0**d if d % 2 == 0 else 0.0 for d in discordant]
    return float(np.mean([0.5 * (1.0 - e) for e in even]))


def compare_runs(
    baseline: tuple[str, pl.DataFrame], others: Sequence[tuple[str, pl.DataFrame]], draws: int
) -> list[dict[str, Any]]:
    """Compare runs with a baseline on the test cells they share; predictions as in
    ``predictions.parquet``.

    ``difference`` is the other's macro accuracy minus the baseline's; ``harmed`` the share of users
    who are worse off, ``harmed_by_chance`` what coin flips would give.
    """
    rows: list[dict[str, Any]] = []
    for name, predictions in others:
        for population in ("seen", "unseen"):
            both = _joined(baseline[1], predictions, population)
            if both.is_empty():
                continue
            first, second = (
                credit(both[m].to_numpy(), both["label"].to_numpy())
                for m in ("margin", "margin_right")
            )
            users = np.unique(both["user_id"].to_numpy(), return_inverse=True)[1]
            count = np.bincount(users)
            difference = np.bincount(users, second - first) / count
            discordant = np.bincount(users, second != first).astype(np.int64)
            low, high = bootstrap_interval(difference, draws)
            rows.append(
                {
                    "a": baseline[0],
                    "b": name,
                    "cell": "test_seen" if population == "seen" else "test_unseen_0",
                    "n_users": len(count),
                    "n_pairs": len(both),
                    "difference": float(difference.mean()),
                    "ci95": [low, high],
                    "p": sign_flip_p(difference, draws),
                    "harmed": float((difference < 0).mean()),
                    "harmed_by_chance": chance_of_harm(discordant),
                }
            )
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = adjusted
    return rows


def _joined(first: pl.DataFrame, second: pl.DataFrame, population: str) -> pl.DataFrame:
    chosen = (pl.col("split") == "test") & (pl.col("population") == population)
    return (
        first.filter(chosen)
        .join(second.filter(chosen).select("pair_id", "margin"), on="pair_id")
        .sort("pair_id")
    )
