"""Whether one run is better than another: paired, corrected for how many are compared.

The formulas are those of evaluation.md 2.2 and 2.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pal.config import EvaluateConfig
from pal.dataset import Population
from pal.evaluate.cross_fit import predictions_of_folds
from pal.evaluate.crossed import Crossing
from pal.evaluate.folds import Over, folder_of
from pal.evaluate.metrics import negative_log_likelihoods
from pal.evaluate.predict import in_test, load_run, predictions_of
from pal.evaluate.records import Interval
from pal.evaluate.ties import TieRule, folds_of
from pal.records import Entry

CELLS: dict[Population, str] = {"seen": "test_seen", "unseen": "test_unseen_0"}


class Comparison(Entry):
    """One run ``b`` against the baseline ``a`` in one cell, on the pairs that both predict."""

    a: str
    b: str
    cell: str
    metric: Literal["macro_accuracy"] = "macro_accuracy"
    n_users: int
    n_prompts: int
    n_pairs: int
    difference: float
    """b minus a"""
    ci95: Interval | None
    """over users and prompts; null with a single one of either"""
    ci95_from: Literal["users", "prompts"]
    """where most of the uncertainty comes from"""
    nll_difference: float
    """of the mean over pairs, b minus a: below 0, b is better"""
    nll_ci95: Interval | None
    p: float
    """two-sided, of no difference of the accuracy"""
    harmed: float
    """share of users who are worse off under b"""
    harmed_by_chance: float
    """what coin flips would give"""
    p_holm: float
    """corrected for all comparisons of the table"""


def holm(p: Sequence[float]) -> list[float]:
    """Return p values adjusted for all comparisons of a table (Holm 1979), in the order given."""
    adjusted, running = [0.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = running
    return adjusted


def chance_of_harm(discordant: NDArray[np.int64]) -> float:
    """Return the share of users who would do worse by chance alone.

    ``discordant`` (users,): pairs of each user on which the two runs differ.
    """
    from scipy.stats import binom  # slow to import, and only comparisons need it

    tied = np.where(discordant % 2 == 0, binom.pmf(discordant // 2, discordant, 0.5), 0.0)
    return float(np.mean(0.5 * (1.0 - tied)))


def compare(
    settings: EvaluateConfig,
    runs: Path,
    names: Sequence[str],
    folds: int | None = None,
    over: Over = "prompts",
) -> list[Comparison]:
    """Compare every further run with the first, on the predictions both have.

    ``folds``: on those of cross-fitting over so many folds of prompts, or of answers. Empty where
    the runs are not all of one dataset and split. Raises EvaluationError for predictions that are
    of another head than their run's.
    """
    heads = [load_run(runs, name) for name in names]
    if len({(t.metadata.split_digest, t.metadata.pairs_digest) for t in heads}) > 1:
        return []
    tables = []
    for name, trained in zip(names, heads, strict=True):
        folder = runs / name
        if folds is None:
            tables.append((name, predictions_of(folder, trained.metadata.seal)))
        else:
            tables.append((name, predictions_of_folds(folder_of(folder, folds, over))))
    return compare_runs(settings, tables[0], tables[1:])


def compare_runs(
    settings: EvaluateConfig,
    baseline: tuple[str, pl.DataFrame],
    others: Sequence[tuple[str, pl.DataFrame]],
) -> list[Comparison]:
    """Compare predictions with those of a baseline on the test cells they share.

    Ties count as ``settings.ties`` says, under the threshold of each run's own validation pairs.
    """
    rows = []
    for name, predictions in others:
        for population in CELLS:
            row = _compare(settings, baseline, (name, predictions), population)
            if row is not None:
                rows.append(row)
    adjusted = holm([row.p for row in rows])
    return [row.model_copy(update={"p_holm": p}) for row, p in zip(rows, adjusted, strict=True)]


def _compare(
    settings: EvaluateConfig,
    a: tuple[str, pl.DataFrame],
    b: tuple[str, pl.DataFrame],
    population: Population,
) -> Comparison | None:
    """Return b against a in one cell, not corrected yet; None without a common pair that counts."""
    rules = [TieRule.choose(settings.ties, t.filter(pl.col("split") == "val")) for _, t in (a, b)]
    other = in_test(b[1], population).select("pair_id", "margin")
    both = in_test(a[1], population).join(other, on="pair_id").sort("pair_id")
    both = both.filter(pl.Series(rules[0].keeps(both["label"].to_numpy()), dtype=pl.Boolean))
    if both.is_empty():
        return None
    label = both["label"].to_numpy()
    first, second = (
        rule.credit(both[margin].to_numpy(), label, folds_of(both))
        for rule, margin in zip(rules, ("margin", "margin_right"), strict=True)
    )
    crossing = Crossing.of(both)
    found = crossing.macro(second - first)
    difference = crossing.user_means(second - first)
    losses = [
        negative_log_likelihoods(both[margin].to_numpy(), label)
        for margin in ("margin", "margin_right")
    ]
    likelihood = crossing.micro(losses[1] - losses[0])
    discordant = np.bincount(crossing.users, second != first).astype(np.int64)
    return Comparison(
        a=a[0],
        b=b[0],
        cell=CELLS[population],
        n_users=crossing.n_users,
        n_prompts=crossing.n_prompts,
        n_pairs=len(both),
        difference=found.value,
        ci95=found.ci95_of_difference,
        ci95_from=found.side,
        nll_difference=likelihood.value,
        nll_ci95=likelihood.ci95_of_difference,
        p=found.p,
        harmed=float((difference < 0).mean()),
        harmed_by_chance=chance_of_harm(discordant),
        p_holm=found.p,
    )
