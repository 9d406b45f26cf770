"""Whether heads are any worse for matrix products in bfloat16: those that made the features, or
those of training steps.

    python benchmarks/mixed.py --source FOLDER --persona FOLDER [--only NAME ...] [--seeds 5]
    python benchmarks/mixed.py ... --what training

    -> docs/results/mixed.md

Each seed draws another split, other questions to new people, initial weights and batches; both
arithmetics get the same. Harmless is what lies within the spread of float32 over its seeds, or
within what float32 kept in float32 instead of float16 changes (``--what control``): training may
fall into another optimum by any rounding. FOLDER of ``--source`` holds ``polis/<conversation>`` and
``polarized-issues``. A line for each head and seed is kept in benchmarks/results/mixed: killed, the
same command goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from lines import Line, add_line, lines_of
from real import SETS, nothing, settings_of

from pal import pipeline
from pal.config import load
from pal.evaluate.report import NOTHING, Table, as_markdown

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "mixed.md"
LINES = Path(__file__).resolve().parent / "results" / "mixed"
DTYPE = "embed.minilm.compute_dtype"
ARITHMETICS: dict[str, dict[str, str]] = {
    "float32": {DTYPE: "float32"},
    "mixed": {DTYPE: "mixed"},
    "control": {DTYPE: "float32", "embed.minilm.store_dtype": "float32"},
    "bfloat16": {DTYPE: "float32", "train.precision": "bfloat16"},
}
MEASURED = {
    "features": ("float32", "mixed"),
    "control": ("control",),
    "training": ("float32", "bfloat16"),
}
"""what is run for each question"""
HEADS: dict[str, dict[str, Any]] = {
    "pal-a": {"train.k": 2},
    "pal-b": {"train.k": 2},
    "auto": {},
}
STEPPED = ("pal-a", "pal-b")
"""heads that take training steps"""
PLANTED = {"persona-2": 2, "persona-4": 4}
"""and the number of groups"""
SHOTS = (0, 5)
NAMES = ("demo", *PLANTED, *SETS)


def settings(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what decides a dataset."""
    if name == "demo":
        return {"dataset": "demo"}
    if name in PLANTED:
        own = {"source": str(options.persona.resolve()), "groups": PLANTED[name]}
        return {"dataset": "persona", **{f"data.persona.{key}": own[key] for key in own}}
    return settings_of(name, options.source.resolve())


def measured(
    name: str, head: str, seed: int, what: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Train a head in each arithmetic of a question, and return accuracy and NLL of its cells."""
    found: dict[str, Any] = {"head": head, "seed": seed}
    own = settings(name, options)
    k = {"train.k": PLANTED[name]} if name in PLANTED and "train.k" in HEADS[head] else {}
    for arithmetic in MEASURED[what]:
        runs = Path("runs", name, what, arithmetic, f"{head}-{seed}")
        config = load(
            None,
            (),
            {
                **own,
                f"data.{own['dataset']}.salt": f"seed{seed}",
                "seed": seed,
                "train.head": head,
                **HEADS[head],
                **k,
                **ARITHMETICS[arithmetic],
                "adapt.shots": list(SHOTS),
                "paths.data": f"data-{name}-{what}",
                "paths.cache": "cache",
                "paths.runs": str(runs),
            },
        ).config
        pipeline.embed(config, tell=nothing)
        metrics = pipeline.train(config, tell=nothing)
        adapted = pipeline.adapt(config, metrics.run).test_unseen
        cells = {"seen": metrics.test_seen}
        cells |= {f"new, {n} answers": adapted.get(f"{n}") for n in SHOTS}
        found[arithmetic] = {
            cell: [one.accuracy, one.nll] for cell, one in cells.items() if one is not None
        }
        shutil.rmtree(runs)
    return found


def file_of(name: str, what: str) -> Path:
    return LINES / f"{name}{'' if what == 'features' else f'-{what}'}.jsonl"


def kept(name: str, what: str) -> list[Line]:
    return lines_of(file_of(name, what))


def rows_of(name: str, questions: Sequence[str], others: Sequence[str]) -> Table:
    """Return what is known of a set: float32 over its seeds, and by how much others differ."""
    table: Table = []
    for head in HEADS:
        by_seed: dict[int, dict[str, Any]] = {}
        for line in [line for what in questions for line in kept(name, what)]:
            if line["head"] == head:
                by_seed.setdefault(line["seed"], {}).update(line)
        lines = [line for line in by_seed.values() if "float32" in line]
        for cell in lines[0]["float32"] if len(lines) > 1 else ():
            told = [name, head, f"{len(lines)}", cell]
            for place in range(2):
                plain = np.array([line["float32"][cell][place] for line in lines])
                told += [f"{plain.mean():.4f}", f"{plain.std(ddof=1):.4f}"]
                for other in others:
                    changed = [
                        line[other][cell][place] - line["float32"][cell][place]
                        for line in lines
                        if other in line
                    ]
                    told += (
                        [f"{np.mean(changed):+.4f}", f"{np.abs(changed).max():.4f}"]
                        if changed
                        else [NOTHING, NOTHING]
                    )
            table.append(told)
    return table


def table_of(questions: Sequence[str], others: Sequence[str]) -> tuple[str, str]:
    """Return a table of all sets, and in which of its rows the first of the others is beyond the
    spread of float32."""
    columns = ["set", "head", "seeds", "people"]
    for what in ("accuracy", "NLL"):
        columns += [f"{what}, float32", "its spread"]
        columns += [name for other in others for name in (f"{other} less float32", "largest")]
    rows = [row for name in NAMES for row in rows_of(name, questions, others)]
    places = (4, 6 + 2 * len(others))
    beyond = [
        f"{row[0]} {row[1]} {row[3]}"
        for row in rows
        if any(abs(float(row[at + 2])) > float(row[at + 1]) for at in places)
    ]
    told = f"{', '.join(beyond) or 'none'}: {len(beyond)} of {len(rows)} rows"
    return as_markdown([columns, *rows]), told


def write() -> None:
    features, beyond = table_of(("features", "control"), ("mixed", "control"))
    training, beyond_it = table_of(("training",), ("bfloat16",))
    TABLE.write_text(
        "# Products in bfloat16\n\n"
        f"Written by `python benchmarks/mixed.py` on {datetime.now(UTC):%Y-%m-%d} from "
        "benchmarks/results/mixed, MiniLM, PAL with K = 2 (persona-4: 4).\nMeans over seeds, each "
        "of another split, other questions, initial weights and batches; both "
        "arithmetics get the same ones. The spread is the standard deviation of float32 over its "
        "seeds, and what is said\nto be harmless lies within it.\n\n"
        "## Features\n\n"
        "`embed.<encoder>.compute_dtype=mixed`; heads are trained in float32. Mixed is beyond the "
        f"spread in {beyond}.\nThe control is float32 kept in float32, where others are kept in "
        "float16; it was run for fewer seeds.\n\n" + features + "\n\n## Training\n\n"
        "`train.precision=bfloat16` (`--what training`), features in float32, heads that take "
        f"steps. It is beyond the spread in {beyond_it}.\n\n" + training + "\n",
        encoding="utf-8",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--persona", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(NAMES), choices=NAMES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("mixed"))
    parser.add_argument("--what", default="features", choices=MEASURED)
    parser.add_argument("--heads", nargs="+", choices=HEADS)
    options = parser.parse_args(arguments)
    options.source, options.persona = options.source.resolve(), options.persona.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    os.chdir(options.work)
    LINES.mkdir(parents=True, exist_ok=True)
    heads = options.heads or (STEPPED if options.what == "training" else HEADS)
    for seed in range(options.seeds):
        for name in options.only:
            done = {(line["head"], line["seed"]) for line in kept(name, options.what)}
            for head in heads:
                if (head, seed) not in done:
                    line = measured(name, head, seed, options.what, options)
                    add_line(file_of(name, options.what), line)
                    print(name, line, flush=True)
        write()
    write()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
