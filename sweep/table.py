"""The outcome of a sweep as tables for people."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pal.errors import TrainError
from pal.evaluate.report import Table, with_interval
from pal.files import atomic_file
from pal.sweep.record import RESULTS, SweepRow, SweepSummary, axes_of, read_results, table_of
from pal.train.build import with_k

MEANS = ("val_macro_accuracy", "test_macro_accuracy", "test_nll")
CSV = "table.csv"
MOST_REASONS = 5
"""why heads failed, told in a terminal"""


def table_of_sweep(folder: Path, rows: int | None = 10) -> Table:
    """Return the settings of a sweep averaged over seeds, the best by validation first.

    With folds both accuracies are those of all folds together. Intervals are over users and
    prompts.
    """
    frame = table_of(ok_rows(folder))
    if frame.is_empty():
        return [["no head was trained"]]
    axes = [name for name in axes_of(frame) if name in ("head", "k") or frame[name].n_unique() > 1]
    if frame["folds"].drop_nulls().len():
        axes.append("folds")
    grouped = frame.group_by(axes).agg(
        pl.len().alias("seeds"),
        *(pl.col(name).mean() for name in MEANS),
        *(pl.col(name).min() for name in ("val_ci95_low", "test_ci95_low")),
        *(pl.col(name).max() for name in ("val_ci95_high", "test_ci95_high")),
        pl.col("seconds").sum(),
    )
    grouped = grouped.sort("val_macro_accuracy", descending=True)
    grouped = grouped if rows is None else grouped.head(rows)
    table = [[*axes, "seeds", "validation, by user", "test, by user", "test NLL", "s"]]
    for row in grouped.iter_rows(named=True):
        accuracies = []
        for split in ("val", "test"):
            ends = row[f"{split}_ci95_low"], row[f"{split}_ci95_high"]
            interval = None if None in ends else ends
            accuracies.append(with_interval(row[f"{split}_macro_accuracy"], interval))
        numbers = [f"{row['seeds']}", *accuracies, f"{row['test_nll']:.3f}"]
        table.append([*(f"{row[axis]}" for axis in axes), *numbers, f"{row['seconds']:.1f}"])
    return table


def ok_rows(folder: Path) -> Sequence[SweepRow]:
    """Return the rows of the heads that a sweep was last asked for and that were trained to the
    end.

    Not those of earlier settings or labels: in a table they would pass for further seeds. Raises
    TrainError where some are not there.
    """
    return [row for row in asked_rows(folder) if row.status == "ok"]


def asked_rows(folder: Path) -> list[SweepRow]:
    """Return the rows of all heads that a sweep was last asked for; raises TrainError where some
    are not there."""
    asked, rows = SweepSummary.read(folder).asked, read_results(folder)
    missing = sum(head not in rows for head in asked)
    if missing:
        raise TrainError(
            f"{folder / RESULTS} lacks {missing} of the {len(asked)} heads that "
            f"{SweepSummary.file} beside it names; run the sweep again: pal sweep --name "
            f"{folder.name}"
        )
    return [rows[head] for head in asked]


def write_csv(folder: Path) -> None:
    """Write the whole table as a CSV file into the folder of a sweep."""
    with (
        atomic_file(folder / CSV) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        csv.writer(stream).writerows(table_of_sweep(folder, None))


def failures_text(summary: SweepSummary) -> str:
    """Return why heads failed, a line for each reason; nothing where none failed."""
    lines = [f"  {heads} failed: {why}" for why, heads in summary.why_failed.items()]
    if len(lines) > MOST_REASONS:
        more = len(lines) - MOST_REASONS
        lines = [*lines[:MOST_REASONS], f"  {more} further reasons are in {RESULTS}"]
    return "".join(f"\n{line}" for line in lines)


def nested_text(summary: SweepSummary) -> str:
    """Return what can be expected of the best head, of a sweep with folds; else nothing."""
    found = summary.cross_fitted
    if found is None:
        return ""
    test = found.test
    accuracy = with_interval(test.macro_accuracy, test.macro_ci95, test.ci95_from)
    chosen = "; ".join(with_k(one.head, one.k) for one in found.chosen)
    text = (
        f"Chosen in each of {found.folds} folds by its own validation ({chosen}): test, by user, "
        f"{accuracy}, NLL {test.nll:.3f}. This is what to expect of the best head.\n"
    )
    if found.n_crossing_folds:
        text += (
            f"{found.n_crossing_folds:,} comparisons of items in different folds were not tested.\n"
        )
    return text + "\n"
