"""Tables of runs for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def interval(cell: dict[str, Any]) -> str:
    """Write a macro accuracy with its 95 % interval."""
    if not cell:
        return "-"
    low, high = cell["macro_ci95"]
    return f"{cell['macro_accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def table_of_runs(metrics: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Return header and rows: accuracy per user on new prompts, seen users and zero-shot unseen ones."""
    rows = [["run", "head", "K", "parameters", "seen users", "unseen users, 0-shot", "NLL", "ECE"]]
    for m in metrics:
        seen = m["test_seen"]
        rows.append(
            [
                m["run"] + (" (untrained encoder)" if m["untrained"] else ""),
                m["head"],
                str(m["k"]),
                f"{m['params']:,}",
                interval(seen),
                interval(m["test_unseen"].get("0", {})),
                f"{seen['nll']:.3f}" if seen else "-",
                f"{seen['ece']:.3f}" if seen else "-",
            ]
        )
    return rows


def as_markdown(rows: list[list[str]]) -> str:
    """Lay rows out as an aligned Markdown table; the first is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
