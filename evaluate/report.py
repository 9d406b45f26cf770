"""Tables of runs for people.

Intervals are over users and prompts; a ``p`` behind one says that most of it comes from the
prompts: more of them would narrow it, more users would not.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from pal.evaluate.compare import Comparison
from pal.evaluate.evaluation import Evaluation
from pal.evaluate.free import FreeBaseline
from pal.evaluate.records import ZERO_SHOT, Cell, Interval, Metrics
from pal.evaluate.sentences import p_cell, sentences_of
from pal.files import atomic_file, write_json
from pal.train.build import has_prototypes

Table = list[list[str]]
"""rows of cells; the first is the header"""
NOTHING = "-"
RUNS = [
    "run", "head", "K", "parameters", "s", "cache MB", "seen users", "worst decile",
    "unseen, 0-shot", "NLL", "ECE",
]  # fmt: skip


def interval(cell: Cell | None) -> str:
    """Write a macro accuracy with its 95 % interval."""
    if cell is None:
        return NOTHING
    return with_interval(cell.macro_accuracy, cell.macro_ci95, cell.ci95_from)


def with_interval(value: float, ci95: Interval | None, side: str = "users", sign: str = "") -> str:
    """Write a number with its interval, and a p if most of that comes from the prompts."""
    if ci95 is None:
        return f"{value:{sign}.3f} [one user or prompt]"
    low, high = (f"{end:{sign}.3f}" for end in ci95)
    return f"{value:{sign}.3f} [{low}, {high}]" + (" p" if side == "prompts" else "")


def table_of_runs(metrics: Sequence[Metrics]) -> Table:
    """Return the accuracy per user on new prompts, of seen users and of zero-shot unseen ones."""
    return [RUNS, *(_row_of_run(run) for run in metrics)]


def _row_of_run(run: Metrics) -> list[str]:
    seen = run.test_seen
    return [
        run.run + (" (untrained encoder)" if run.untrained else ""),
        run.head,
        str(run.k) if has_prototypes(run.head) else NOTHING,
        f"{run.params:,}",
        f"{run.seconds:.1f}",
        f"{run.cache_bytes / 1e6:.1f}",
        interval(seen),
        f"{seen.worst_decile:.3f}" if seen else NOTHING,
        interval(run.test_unseen.get(ZERO_SHOT)),
        f"{seen.nll:.3f}" if seen else NOTHING,
        f"{seen.ece:.3f}" if seen else NOTHING,
    ]


def table_of_shots(cells: Mapping[str, Cell]) -> Table:
    """Return how unseen users do by the number of their answers."""
    rows = [["shots", "accuracy, by user", "worst decile", "NLL", "ECE", "worse than at 0 shots"]]
    for shots, cell in cells.items():
        numbers = (cell.worst_decile, cell.nll, cell.ece, cell.harmed_vs_0 or 0.0)
        rows.append([shots, interval(cell), *(f"{number:.3f}" for number in numbers)])
    return rows


def table_of_comparisons(comparisons: Sequence[Comparison]) -> Table:
    """Return differences in accuracy by user, with paired intervals."""
    rows = [
        ["compared", "cell", "users", "prompts", "difference", "p (Holm)", "worse off", "by chance"]
    ]
    for one in comparisons:
        rows.append(
            [
                f"{one.b} - {one.a}",
                one.cell,
                f"{one.n_users}",
                f"{one.n_prompts}",
                with_interval(one.difference, one.ci95, one.ci95_from, "+"),
                p_cell(one.p_holm),
                f"{one.harmed:.2f}",
                f"{one.harmed_by_chance:.2f}",
            ]
        )
    return rows


def table_of_free(baselines: Sequence[FreeBaseline]) -> Table:
    """Return the baselines that cost nothing."""
    rows = [["free baseline", "seen users", "unseen users"]]
    for one in baselines:
        rows.append([one.baseline, interval(one.test_seen), interval(one.test_unseen)])
    return rows


def table_of_shots_by_run(metrics: Sequence[Metrics]) -> Table:
    """Return unseen users' accuracy for every number of shots that a run was adapted with."""
    counts = sorted({int(shots) for run in metrics for shots in run.test_unseen})
    rows = [["run, unseen users", *(f"{count} shots" for count in counts)]]
    for run in metrics:
        left_out = run.n_users_left_out
        told = f" ({left_out} with too few answers left out)" if left_out else ""
        cells = [interval(run.test_unseen.get(str(count))) for count in counts]
        rows.append([run.run + told, *cells])
    return rows


def folds_line(run: Metrics) -> str:
    """Say what cross-fitting tested, and what it could not."""
    told = f"{run.folds} folds: every prompt was tested once, by a head that never saw it."
    if run.folds_over == "answers":
        told = (
            f"{run.folds} folds of answers: every answer was tested once, by a head that knows its "
            "prompt from others."
        )
    crossing = run.n_crossing_folds
    if crossing:
        told += f" {crossing:,} comparisons of items in different folds were not tested."
    return told


def write_report(folder: Path, found: Evaluation) -> str:
    """Write ``evaluation.md``, ``.csv`` and ``.json`` into a folder and return the Markdown."""
    runs = table_of_runs(found.runs)
    text = as_markdown(runs)
    folds = [run for run in found.runs if run.folds]
    if folds:
        text = f"{folds_line(folds[0])}\n\n{text}"
    if any(len(run.test_unseen) > 1 for run in found.runs):
        text += "\n\n" + as_markdown(table_of_shots_by_run(found.runs))
    for name, baselines in found.free_baselines.items():
        text += f"\n\nDataset {name}:\n\n" + as_markdown(table_of_free(baselines))
    if found.comparisons:
        text += "\n\n" + as_markdown(table_of_comparisons(found.comparisons))
    for sentence in sentences_of(found):
        text += f"\n\n{sentence}"
    with atomic_file(folder / "evaluation.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    with (
        atomic_file(folder / "evaluation.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        csv.writer(stream).writerows(runs)
    write_json(folder / "evaluation.json", found.model_dump(mode="json"))
    return text


def as_markdown(rows: Table) -> str:
    """Lay rows out as an aligned Markdown table; the first is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
