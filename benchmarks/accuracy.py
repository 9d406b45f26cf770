"""Accuracy on new pairs of seen users, K below, at and above K*; writes a table into docs/results/.

    python benchmarks/accuracy.py persona --source ../shared/persona
    python benchmarks/accuracy.py simulation

Each seed draws another data split, other users' questions, initial weights and batch order. Intervals are
mean +- t(0.975) * s / sqrt(seeds).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from pal import pipeline
from pal.config import Config, load
from pal.evaluate.report import as_markdown

SIMULATION = {"train.epochs": 60, "train.user_lr": 2e-2, "encoder": "identity", "dataset": "simulated"}


def persona(work: Path, source: str, seeds: int) -> Iterator[tuple[list[str], list[Config]]]:
    for groups in (2, 4):
        for head in ("pal-a", "pal-b"):
            for k in (1, groups):
                options = {
                    "dataset": "persona", "data.persona.source": source, "data.persona.groups": groups,
                    "train.head": head, "train.k": k,
                }  # fmt: skip
                yield [f"{groups}", head, f"{k}"], configs(work, options, seeds, "data.persona.salt")


def simulation(work: Path, source: str, seeds: int) -> Iterator[tuple[list[str], list[Config]]]:
    for k in (1, 2, 3, 5):
        options = {**SIMULATION, "data.simulated.groups": 3, "train.head": "pal-a", "train.k": k}
        yield ["3", "pal-a", f"{k}"], configs(work, options, seeds, "data.simulated.salt")


def configs(work: Path, options: dict[str, Any], seeds: int, salt: str) -> list[Config]:
    paths = {f"paths.{name}": str(work / name) for name in ("data", "cache", "runs")}
    return [load(None, (), {**options, **paths, "seed": seed, salt: f"seed{seed}"}).config for seed in range(seeds)]


def mean_and_interval(values: list[float]) -> str:
    spread = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.3f} ± {spread:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["persona", "simulation"])
    parser.add_argument("--source", default="hf:Anthropic/model-written-evals", help="raw persona statements")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    arguments = parser.parse_args()
    rows = [["K*", "head", "K", "accuracy", "per seed", "macro accuracy", "NLL"]]
    with tempfile.TemporaryDirectory() as folder:
        for names, seeds in globals()[arguments.what](Path(folder), arguments.source, arguments.seeds):
            cells = []
            for config in seeds:
                pipeline.embed(config)
                cells.append(pipeline.train(config)["test_seen"])
            accuracy = [cell["accuracy"] for cell in cells]
            rows.append(
                [
                    *names,
                    mean_and_interval(accuracy),
                    " ".join(f"{value:.3f}" for value in accuracy),
                    mean_and_interval([cell["macro_accuracy"] for cell in cells]),
                    mean_and_interval([cell["nll"] for cell in cells]),
                ]
            )
            print(as_markdown([rows[0], rows[-1]]), flush=True)
    command = f"python benchmarks/accuracy.py {arguments.what} --seeds {arguments.seeds}"
    text = (
        f"# {arguments.what.capitalize()}: seen users, new pairs\n\n"
        f"{date.today()}, `{command}`, {arguments.seeds} seeds, 100 users, 100 training and 50 test pairs each.\n\n"
        f"{as_markdown(rows)}\n"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.what}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
