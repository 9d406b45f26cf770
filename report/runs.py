"""Runs side by side on a page: their table, their intervals, by K and by the number of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from pal.config import EvaluateConfig
from pal.errors import PalError
from pal.evaluate.compare import CELLS, Comparison, compare_runs
from pal.evaluate.cross_fit import read_folds
from pal.evaluate.metrics import credit, sigmoid
from pal.evaluate.predict import in_test
from pal.evaluate.records import Cell, Metrics
from pal.evaluate.report import Table as Rows
from pal.evaluate.report import (
    folds_line,
    table_of_comparisons,
    table_of_runs,
    table_of_shots_by_run,
)
from pal.evaluate.sentences import difference_sentence
from pal.names import NAME
from pal.report.charts import Value, forest, lines, reliability
from pal.report.evaluated import Evaluated, sources_of
from pal.report.page import Beside, Block, Bullets, Page, Picture, Table, Text

MOST_DRAWN, MOST_CURVES = 24, 8
ACCURACY = "accuracy, mean over people"
INTERVALS = (
    "Intervals of 95 % are over people and prompts at once; a p behind one says that most of it "
    "comes from the prompts."
)


def add_runs(
    page: Page, settings: EvaluateConfig, runs: Sequence[Evaluated], problems: Sequence[str] = ()
) -> None:
    """Add runs side by side, each compared with the first where that can be done."""
    if not runs:
        page.add("Runs", [Bullets(list(problems))] if problems else [])
        return
    metrics = [run.metrics for run in runs]
    blocks: list[Block] = [
        Text(INTERVALS),
        _table("The runs, on test answers.", table_of_runs(metrics)),
    ]
    if any(one.untrained for one in metrics):
        told = "An encoder has random weights (untrained): its numbers say nothing about people."
        blocks.append(Text(told, "warning"))
    if problems:
        blocks.append(Bullets(list(problems)))
    page.add("Runs", blocks)
    predictions, unread = _predictions_of(runs)
    pictures = (
        _forest(metrics), _by_k(runs), _by_shots(metrics), calibration(settings, predictions)
    )  # fmt: skip
    drawn = [one for one in pictures if one is not None]
    if drawn:
        page.add("Accuracy", [Beside(drawn)], 3)
    if any(len(one.test_unseen) > 1 for one in metrics):
        table = _table(
            "New people, by the number of their answers.", table_of_shots_by_run(metrics)
        )
        page.add("New people", [table], 3)
    page.add("By folds", _folds(runs), 3)
    differences = _comparisons(settings, runs, predictions)
    page.add("Differences", [*differences, *([Bullets(unread)] if unread else [])], 3)
    for run in runs:
        page.cite(*sources_of(run))


def value_of(cell: Cell) -> Value:
    """Return a cell's accuracy, mean over users, with its interval."""
    return Value(cell.macro_accuracy, cell.macro_ci95)


def by_shots(metrics: Metrics) -> dict[int, Value]:
    """Return what new users reach by the number of their answers, the fewest first."""
    return {
        int(shots): value_of(metrics.test_unseen[shots])
        for shots in sorted(metrics.test_unseen, key=int)
    }


def _forest(metrics: Sequence[Metrics]) -> Picture | None:
    values = {one.run: value_of(one.test_seen) for one in metrics if one.test_seen}
    if len(values) < 2:
        return None
    caption = "Seen people, new answers."
    if len(values) > MOST_DRAWN:
        caption += f" The {MOST_DRAWN} highest of {len(values)} runs."
        highest = sorted(values, key=lambda name: -values[name].value)[:MOST_DRAWN]
        values = {name: values[name] for name in values if name in highest}
    return forest(caption, values, ACCURACY)


def _by_k(runs: Sequence[Evaluated]) -> Picture | None:
    """Draw heads of which there are several K, of everything else alike, a curve each."""
    curves: dict[str, dict[int, Value]] = {}
    for run in sorted(runs, key=lambda run: run.metrics.k):
        cell, one = run.metrics.test_seen, run.metrics
        if cell:
            name = f"{one.head}, {one.dataset}, {one.encoder}, seed {one.seed}"
            curves.setdefault(name, {}).setdefault(one.k, value_of(cell))
    curves = {name: curve for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None
    shared = _shared_words([name.split(", ") for name in curves])
    shown = {
        ", ".join(part for part in name.split(", ") if part not in shared) or name: curve
        for name, curve in list(curves.items())[:MOST_CURVES]
    }
    caption = "Seen people by the number of prototypes K. Whether a step is real, the differences "
    return lines(f"{caption}below say.", shown, "K", ACCURACY, is_log=True)


def _shared_words(names: Sequence[Sequence[str]]) -> set[str]:
    return set.intersection(*map(set, names)) if len(names) > 1 else set(names[0][1:])


def _by_shots(metrics: Sequence[Metrics]) -> Picture | None:
    several = {one.run: by_shots(one) for one in metrics if len(one.test_unseen) > 1}
    if not several:
        return None
    caption = "New people by the number of their answers; 0: the mean over the seen people."
    first = dict(list(several.items())[:MOST_CURVES])
    return lines(caption, first, "answers", ACCURACY, is_log=True)


def _predictions_of(runs: Sequence[Evaluated]) -> tuple[dict[str, pl.DataFrame], list[str]]:
    """Return the predictions of runs, and a sentence for each whose cannot be read."""
    found: dict[str, pl.DataFrame] = {}
    problems = []
    for run in runs:
        try:
            found[run.name] = run.predictions()
        except PalError as problem:
            problems.append(f"Answer by answer, {run.name} is not shown: {problem}.")
    return found, problems


def calibration(
    settings: EvaluateConfig, predictions: Mapping[str, pl.DataFrame]
) -> Picture | None:
    """Draw how often what runs are sure of is right, on seen people's test answers."""
    curves = {}
    for name, of_run in list(predictions.items())[:MOST_CURVES]:
        rows = in_test(of_run, "seen").filter(pl.col("label") != 0.5)
        if not rows.is_empty():
            margin, label = rows["margin"].to_numpy(), rows["label"].to_numpy()
            curves[name] = sigmoid(np.abs(margin)), credit(margin, label)
    if not curves:
        return None
    bins = min(settings.ece_bins, 10)
    told = f"Seen people's test answers, ties left out, in {bins} bins of as many each."
    return reliability(told, curves, bins)


def _folds(runs: Sequence[Evaluated]) -> list[Block]:
    """Tell the numbers of cross-fitting, where every prompt is tested once."""
    found, problems = [], []
    for run in runs:
        for folder in sorted((run.folder / "folds").glob("*/")):
            if not NAME.fullmatch(folder.name):
                continue  # not finished by another command
            try:
                found.append(read_folds(folder))
            except PalError as problem:
                told = f"What {run.name} reaches in {folder} cannot be shown"
                problems.append(f"{told}: {problem}.")
    blocks: list[Block] = [Bullets(problems)] if problems else []
    for kind in sorted({folds_line(one).split(". ")[0] for one in found}):
        some = [one for one in found if folds_line(one).startswith(kind)]
        blocks.append(_table(f"{kind.rstrip('.')}.", table_of_runs(some)))
    return blocks


def _comparisons(
    settings: EvaluateConfig, runs: Sequence[Evaluated], predictions: Mapping[str, pl.DataFrame]
) -> list[Block]:
    """Compare each run with the first of its dataset and split; K = 1 comes first where it is."""
    groups: dict[tuple[str, str], list[Evaluated]] = {}
    for run in runs:
        key = (run.record.split_digest, run.record.pairs_digest)
        if run.name in predictions:
            groups.setdefault(key, []).append(run)
    found: list[Comparison] = []
    problems = []
    for some in groups.values():
        ordered = sorted(some, key=lambda run: not run.has_one_taste)
        if len(ordered) > 1:
            try:
                first, *others = [(one.name, predictions[one.name]) for one in ordered]
                found += compare_runs(settings, first, others)
            except PalError as problem:
                problems.append(f"{problem}.")
    blocks: list[Block] = []
    if found:
        table = table_of_comparisons(found)
        blocks.append(_table("Paired differences of the accuracy by person.", table))
        seen = [one for one in found if one.cell == CELLS["seen"]]
        best = max(seen or found, key=lambda one: abs(one.difference))
        blocks.append(Text(difference_sentence(best)))
    if len(groups) > 1:
        told = "Runs of different datasets or splits share no answer, so they are not compared."
        blocks.append(Text(told))
    return [*blocks, *([Bullets(problems)] if problems else [])]


def _table(caption: str, rows: Rows) -> Table:
    return Table.of(caption, rows[0], rows[1:])
