"""A sweep on a page: what was tried, accuracy by K, and what to expect of the best head."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pal.errors import EvaluationError
from pal.report.charts import Value, lines
from pal.report.evaluated import Evaluated, read_run
from pal.report.page import Beside, Block, Facts, Page, Source, Table, Text
from pal.report.runs import ACCURACY, INTERVALS
from pal.report.subjects import Subject
from pal.sweep.plot import best_by_k
from pal.sweep.record import RESULTS, BestHead, SweepSummary, table_of
from pal.sweep.table import asked_rows, nested_text, ok_rows, table_of_sweep
from pal.train.build import with_k

MOST_ROWS, MOST_FAILURES = 30, 10


def add_sweep(page: Page, sweep: Subject) -> SweepSummary:
    """Add a sweep and return its summary; raises TrainError where it cannot be trusted."""
    summary = SweepSummary.read(sweep.folder)
    page.add(f"Sweep {sweep.name}", _what(summary))
    rows = table_of_sweep(sweep.folder, MOST_ROWS)
    if len(rows) > 1:
        caption = "Settings averaged over seeds, the best by validation first."
        page.add("Settings", [Table.of(caption, rows[0], rows[1:]), Text(INTERVALS)], 3)
        frame = table_of(ok_rows(sweep.folder))
        page.add("Accuracy by K", _by_k(frame), 3)
    page.add("Heads that failed", _failed(sweep.folder), 3)
    file, command = str(sweep.folder / RESULTS), f"pal sweep --name {sweep.name}"
    asked = ", ".join(one[:6] for one in summary.asked[:3])
    more = f", and {len(summary.asked) - 3} more" if len(summary.asked) > 3 else ""
    page.cite(Source(f"sweep {sweep.name}", file, f"heads {asked}{more}", command))
    return summary


def _what(summary: SweepSummary) -> list[Block]:
    best = summary.best
    rows = [
        ("Heads", f"{summary.heads:,}, of which {summary.failed:,} failed and "
         f"{summary.dropped:,} were dropped on the way"),
        ("Trained last time", f"{summary.trained:,} in {summary.seconds:.1f} s ({summary.mode})"),
    ]  # fmt: skip
    if best is not None:
        told = f"{with_k(best.head, best.k)}, validation accuracy {best.val_macro_accuracy:.3f}"
        rows.append(("Best by validation", f"{told}; it is run {best.run}"))
    blocks: list[Block] = [Facts(rows)]
    expected = nested_text(summary).strip()
    return [*blocks, *([Text(expected, "good")] if expected else [])]


def _by_k(frame: pl.DataFrame) -> list[Block]:
    """Draw the settings of each K that are best by validation, on test answers."""
    curves: dict[str, dict[int, Value]] = {}
    for row in best_by_k(frame).sort("k").iter_rows(named=True):
        ends = row["test_ci95_low"], row["test_ci95_high"]
        value = Value(row["test_macro_accuracy"], None if None in ends else ends)
        curves.setdefault(row["head"], {})[row["k"]] = value
    if not any(len(curve) > 1 for curve in curves.values()):
        return []
    told = (
        "Of every K the settings that are best by validation, on test answers. Intervals of heads "
        "that were tested on the same answers overlap even where one is surely better: pal "
        "evaluate compares runs answer by answer."
    )
    return [Beside([lines(told, curves, "K", ACCURACY, is_log=True)])]


def _failed(folder: Path) -> list[Block]:
    failed = [row for row in asked_rows(folder) if row.status == "failed"]
    if not failed:
        return []
    rows = [
        [one.head, str(one.k), str(one.seed), one.error or ""] for one in failed[:MOST_FAILURES]
    ]
    caption = f"{len(failed)} heads failed; the sweep tries them again."
    return [Table.of(caption, ["head", "K", "seed", "why"], rows)]


def best_run(runs: Path, best: BestHead) -> Evaluated:
    """Return a sweep's best run; raises EvaluationError where it is gone, damaged or another head
    by now."""
    run = read_run(runs / best.run)
    if run.record.head_id != best.head_id:
        raise EvaluationError(
            f"{run.folder} was made by another sweep since then; run the sweep again"
        )
    return run
