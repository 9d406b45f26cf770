"""All heads on answers of real people, cross-fitted: docs/results/real.md.

    python benchmarks/real.py --source FOLDER [--sets ssis canadian-electoral-reform] [--seeds 1]

FOLDER holds ``polis/<conversation>`` and ``polarized-issues``, as their platforms export them.
Every prompt (a statement; of polarized-issues, a fold of the answers) is tested once, by heads that
never saw it; settings are each head's defaults. What is done already is taken over from ``real/``.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pal import pipeline
from pal.config import load
from pal.evaluate.records import Cell
from pal.evaluate.report import Table, as_markdown, with_interval
from pal.train.build import defaults_of, heads

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "real.md"
SETS: dict[str, dict[str, Any]] = {
    "ssis": {"kind": "polis", "min_answers": 20},
    "canadian-electoral-reform": {"kind": "polis", "min_answers": 10},
    "15-per-hour-seattle": {"kind": "polis", "min_answers": 10},
    "polarized-issues": {"kind": "remesh", "min_answers": 10},
    "bowling-green": {"kind": "polis", "min_answers": 20},
}
HEADS: list[dict[str, Any]] = [
    {"head": "bt-linear"}, {"head": "bt-mlp"}, {"head": "per-user"}, {"head": "user-embedding"},
    {"head": "vpl"}, {"head": "drm", "k": 4}, {"head": "lore", "k": 4},
    *({"head": head, "k": k} for head in ("pal-a", "pal-b") for k in (1, 2, 4)),
]  # fmt: skip
FOLDS = 5


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("real"))
    options = parser.parse_args(arguments)
    source = options.source.resolve()
    options.work.mkdir(exist_ok=True)
    os.chdir(options.work)
    sections = []
    for name in options.sets:
        began = time.perf_counter()
        table = measure(name, source, options.seeds)
        spent = time.perf_counter() - began
        sections.append(f"## {name}\n\n{as_markdown(table)}\n\n{spent:.0f} s in this call.")
        print(sections[-1], flush=True)
        TABLE.write_text(as_text(sections, options.seeds), encoding="utf-8")
    return 0


def measure(name: str, source: Path, seeds: int) -> Table:
    """Return the rows of one dataset, the free baselines first."""
    kind = SETS[name]["kind"]
    place = source / "polarized-issues" if kind == "remesh" else source / "polis" / name
    settings = {**SETS[name], "source": str(place)}
    config = load(None, (), {"dataset": name, f"data.{name}": settings}).config
    pipeline.embed(config)
    runs = []
    for options in HEADS:
        for seed in range(seeds):
            train = {f"train.{key}": value for key, value in options.items()}
            own = load(
                None, (), {"dataset": name, f"data.{name}": settings, "seed": seed, **train}
            ).config
            run = f"{name}-{'-'.join(str(value) for value in options.values())}-s{seed}"
            if not (own.paths.runs / run / "head.json").is_file():
                pipeline.train(own, run)
            runs.append(run)
            pipeline.evaluate(own, [run], FOLDS)
            print(run, flush=True)
    found = pipeline.evaluate(config, runs, FOLDS)
    rows = [["head", "K", "seed", "seen users", "NLL", "unseen, 0 shots", "NLL"]]
    for one in found.free_baselines[name]:
        rows.append([one.baseline, "", "", *cells(one.test_seen), *cells(one.test_unseen)])
    for run in found.runs:
        has_k = "k" in defaults_of(heads()[run.head])
        told = [run.head, str(run.k) if has_k else "", str(run.seed)]
        rows.append([*told, *cells(run.test_seen), *cells(run.test_unseen.get("0"))])
    return rows


def cells(cell: Cell | None) -> list[str]:
    if cell is None:
        return ["-", "-"]
    accuracy = with_interval(cell.macro_accuracy, cell.macro_ci95, cell.ci95_from)
    return [accuracy, with_interval(cell.nll, cell.nll_ci95)]


def as_text(sections: list[str], seeds: int) -> str:
    return (
        "\n\n".join(
            [
                "# Heads on answers of real people",
                f"Made by `python benchmarks/real.py --source FOLDER --seeds {seeds}` on "
                f"{datetime.now(UTC):%Y-%m-%d}, MiniLM, {FOLDS} folds over prompts: every prompt "
                "is tested\nonce, by heads that never saw it. Accuracy is the mean over users; "
                "95 %\n"
                "intervals are over users and prompts (`p`: most of it comes from the prompts). "
                "A coin has NLL 0.693. Settings are each head's defaults.",
                *sections,
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
