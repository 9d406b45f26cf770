"""Tables of runs for people."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pal.files import atomic_file, write_json

MEANS = ("val_macro_accuracy", "test_macro_accuracy", "test_nll")


def interval(cell: dict[str, Any]) -> str:
    """Write a macro accuracy with its 95 % interval."""
    if not cell:
        return "-"
    low, high = cell["macro_ci95"]
    return f"{cell['macro_accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def table_of_runs(metrics: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return header and rows: accuracy per user on new prompts, seen users and zero-shot unseen
    ones."""
    rows = [
        [
            "run",
            "head",
            "K",
            "parameters",
            "s",
            "cache MB",
            "seen users",
            "worst decile",
            "unseen, 0-shot",
            "NLL",
            "ECE",
        ]
    ]
    for m in metrics:
        seen = m["test_seen"]
        rows.append(
            [
                m["run"] + (" (untrained encoder)" if m["untrained"] else ""),
                m["head"],
                str(m["k"]),
                f"{m['params']:,}",
                f"{m['seconds']:.1f}",
                f"{m['cache_bytes'] / 1e6:.1f}",
                interval(seen),
                f"{seen['worst_decile']:.3f}" if seen else "-",
                interval(m["test_unseen"].get("0", {})),
                f"{seen['nll']:.3f}" if seen else "-",
                f"{seen['ece']:.3f}" if seen else "-",
            ]
        )
    return rows


def table_of_shots(cells: dict[str, Any]) -> list[list[str]]:
    """Return header and rows: unseen users by the number of their answers."""
    rows = [["shots", "accuracy, by user", "worst decile", "NLL", "ECE", "worse than at 0 shots"]]
    for shots, cell in cells.items():
        numbers = (cell["worst_decile"], cell["nll"], cell["ece"], cell["harmed_vs_0"])
        rows.append([shots, interval(cell), *(f"{number:.3f}" for number in numbers)])
    return rows


def table_of_comparisons(comparisons: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return header and rows: differences in accuracy by user, with paired intervals."""
    rows = [["compared", "cell", "users", "difference", "p (Holm)", "users worse off", "by chance"]]
    for c in comparisons:
        low, high = c["ci95"]
        difference = f"{c['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        shares = [f"{c['harmed']:.2f}", f"{c['harmed_by_chance']:.2f}"]
        rows.append(
            [
                f"{c['b']} - {c['a']}",
                c["cell"],
                f"{c['n_users']}",
                difference,
                f"{c['p_holm']:.4f}",
                *shares,
            ]
        )
    return rows


def table_of_free(baselines: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return header and rows of the baselines that cost nothing."""
    rows = [["free baseline", "seen users", "unseen users"]]
    rows += [
        [b["baseline"], interval(b["test_seen"]), interval(b["test_unseen"])] for b in baselines
    ]
    return rows


def table_of_shots_by_run(metrics: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return header and rows: unseen users' accuracy for every number of shots that a run was
    adapted with."""
    counts = sorted({int(shots) for m in metrics for shots in m["test_unseen"]})
    rows = [["run, unseen users", *(f"{count} shots" for count in counts)]]
    for m in metrics:
        left_out = m.get("n_users_left_out", 0)
        name = f"{m['run']} ({left_out} with too few answers left out)" if left_out else m["run"]
        rows.append([name, *(interval(m["test_unseen"].get(str(count), {})) for count in counts)])
    return rows


def write_report(folder: Path, result: dict[str, Any]) -> str:
    """Write ``evaluation.md``, ``.csv`` and ``.json`` into a folder and return the Markdown."""
    runs = table_of_runs(result["runs"])
    text = as_markdown(runs)
    if any(len(m["test_unseen"]) > 1 for m in result["runs"]):
        text += "\n\n" + as_markdown(table_of_shots_by_run(result["runs"]))
    for name, baselines in result["free_baselines"].items():
        text += f"\n\nDataset {name}:\n\n" + as_markdown(table_of_free(baselines))
    if result["comparisons"]:
        text += "\n\n" + as_markdown(table_of_comparisons(result["comparisons"]))
    with atomic_file(folder / "evaluation.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    with (
        atomic_file(folder / "evaluation.csv") as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as stream,
    ):
        csv.writer(stream).writerows(runs)
    write_json(folder / "evaluation.json", result)
    return text


def table_of_sweep(results: Path, rows: int = 10) -> list[list[str]]:
    """Return header and rows of a sweep: settings averaged over seeds, the best by validation
    first."""
    frame = pl.read_parquet(results).filter(pl.col("status") == "ok")
    if frame.is_empty():
        return [["no head was trained"]]
    facts = {"head_id", "seed", "status", "error", "together", "best_epoch", "params", "seconds"}
    axes = [
        name
        for name in frame.columns
        if name not in facts and not name.startswith(("val_", "test_"))
    ]
    axes = [name for name in axes if name in ("head", "k") or frame[name].n_unique() > 1]
    grouped = frame.group_by(axes).agg(
        pl.len().alias("seeds"),
        *(pl.col(name).mean() for name in MEANS),
        *(pl.col(name).min() for name in ("val_ci95_low", "test_ci95_low")),
        *(pl.col(name).max() for name in ("val_ci95_high", "test_ci95_high")),
        pl.col("seconds").sum(),
    )
    grouped = grouped.sort("val_macro_accuracy", descending=True).head(rows)
    table = [[*axes, "seeds", "validation, by user", "test, by user", "test NLL", "s"]]
    for row in grouped.iter_rows(named=True):
        accuracies = [
            f"{row[f'{s}_macro_accuracy']:.3f} [{row[f'{s}_ci95_low']:.3f}, "
            f"{row[f'{s}_ci95_high']:.3f}]"
            for s in ("val", "test")
        ]
        table.append(
            [
                *(f"{row[axis]}" for axis in axes),
                f"{row['seeds']}",
                *accuracies,
                f"{row['test_nll']:.3f}",
                f"{row['seconds']:.1f}",
            ]
        )
    return table


def as_markdown(rows: list[list[str]]) -> str:
    """Lay rows out as an aligned Markdown table; the first is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
