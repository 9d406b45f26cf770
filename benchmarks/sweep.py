"""A 64-head sweep against the same heads trained in 64 processes, and one after another in one
process.

    python benchmarks/sweep.py simulated
    python benchmarks/sweep.py persona --source ../shared/persona [--latent 64]

4 values of K x 4 seeds x 4 learning rates of PAL-A. The sweep is timed whole, as a process of its
own. Of the 64 single trainings ``--sample`` are timed, spread evenly over the grid, and their mean
is multiplied by 64; all three alternate in one run. The floor is what the matrix products of all
training steps take by themselves.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from operations import operations_of

from pal import pipeline
from pal.config import load
from pal.embed.peak import matrix_rate
from pal.evaluate.report import as_markdown

K, SEEDS, RATES = (1, 2, 4, 8), (0, 1, 2, 3), (3e-4, 1e-3, 2e-3, 4e-3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["simulated", "persona"])
    parser.add_argument("--source")
    parser.add_argument(
        "--latent",
        type=int,
        help="latent dimension; default: that of the features, with a residual map",
    )
    parser.add_argument("--sample", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    choice = {
        "dataset": arguments.what,
        "encoder": "identity" if arguments.what == "simulated" else "minilm",
    }
    settings = {"train.head": "pal-a", "data.persona.groups": 4}
    if arguments.latent:
        settings |= {"train.latent_dim": arguments.latent, "train.mlp": "mlp2-relu-dropout0"}
    out = arguments.out.resolve()
    source = arguments.source and str(Path(arguments.source).resolve())
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        dim = pipeline.embed(
            load(None, (), {**choice, **settings, f"data.{arguments.what}.source": source}).config
        ).dim
        flags = [f"--dataset={choice['dataset']}", f"--encoder={choice['encoder']}"]
        flags += [f"--set={key}={value}" for key, value in settings.items()]
        axes = ["--set=sweep.head=[pal-a]"]
        axes += [
            f"--set=sweep.{axis}={list(v)}"
            for axis, v in (("k", K), ("seed", SEEDS), ("lr", RATES))
        ]
        grid = list(itertools.product(K, SEEDS, RATES))
        # a stride prime to the grid's sides, so that every K, seed and rate has its turn
        sample = [grid[(5 + 27 * number) % len(grid)] for number in range(arguments.sample)]

        def sweep() -> float:
            shutil.rmtree("sweeps", ignore_errors=True)
            return seconds_of([*flags, *axes], "sweep")

        times: dict[str, list[float]] = {"sweep": [], "processes": [], "in one process": []}
        times["sweep"].append(sweep())
        for number, (k, seed, lr) in enumerate(sample):
            chosen = [f"--k={k}", f"--seed={seed}", f"--set=train.lr={lr}"]
            own = [*flags, *chosen, f"--run=process-{number}"]
            times["processes"].append(seconds_of(own, "train"))
            config = load(
                None, (), {**choice, **settings, "train.k": k, "train.lr": lr, "seed": seed}
            ).config
            began = time.perf_counter()
            pipeline.train(config, f"here-{number}")
            times["in one process"].append(time.perf_counter() - began)
        times["sweep"].append(sweep())
        swept = {
            "sweep.head": ["pal-a"],
            "sweep.k": list(K),
            "sweep.seed": list(SEEDS),
            "sweep.lr": list(RATES),
        }
        operations = operations_of(load(None, (), {**choice, **settings, **swept}).config, "cpu")
        floor = operations / matrix_rate("cpu", torch.float32, 2048)
    whole = float(np.mean(times["sweep"]))
    rows = [["way", "seconds for 64 heads", "times the sweep", "measured"]]
    rows.append(
        [
            "pal sweep",
            f"{whole:.1f}",
            "1.0",
            " ".join(f"{t:.1f}" for t in times["sweep"]) + " (whole)",
        ]
    )
    for name in ("processes", "in one process"):
        total = 64 * float(np.mean(times[name]))
        mean, spread = np.mean(times[name]), np.std(times[name], ddof=1)
        each = f"{mean:.2f} ± {spread:.2f} s each, {len(sample)} of 64"
        rows.append([f"pal train, {name}", f"{total:.0f}", f"{total / whole:.1f}", each])
    listed = f"{operations / 1e12:.1f} TFLOP at the rate of a square product; training steps only"
    rows.append(["floor: matrix products", f"{floor:.1f}", f"{floor / whole:.2f}", listed])
    latent = arguments.latent or dim
    text = (
        f"# Sweep of 64 heads, {arguments.what}, d = {dim}, latent dimension {latent}\n\n"
        f"{date.today()}, `{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}`, "
        f"{torch.get_num_threads()} threads, "
        f"{platform.machine()}, 100 users, 10,000 training pairs, 20 "
        f"epochs.\n\n{as_markdown(rows)}\n"
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / f"sweep_{arguments.what}_{latent}.md").write_text(text, encoding="utf-8")
    print(text)


def seconds_of(arguments: list[str], command: str) -> float:
    """Return the wall time of one pal process."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pal", command, *arguments], check=True, capture_output=True
    )
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
