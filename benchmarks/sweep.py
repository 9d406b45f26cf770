"""A 64-head sweep against the same heads trained one by one: in 64 processes, of this tree or of an
older one, and one after another in one process.

    python benchmarks/sweep.py simulated
    python benchmarks/sweep.py persona --source ../shared/persona [--latent 64] [--before FOLDER]

4 values of K x 4 seeds x 4 learning rates of PAL-A. The sweep is timed whole, as a process of its
own, with its products in float32 and as ``train.precision=auto`` has them. Of the 64 single
trainings, in float32, ``--sample`` are timed, spread evenly over the grid, and their mean is
multiplied by 64; all alternate in one run. FOLDER is a checkout of an older commit, made ready by
``make typings``. The floor is what the matrix products of all training steps take by themselves.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
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
from pal.probe import gain
from pal.sweep.record import read_results

K, SEEDS, RATES = (1, 2, 4, 8), (0, 1, 2, 3), (3e-4, 1e-3, 2e-3, 4e-3)
GRID = list(itertools.product(K, SEEDS, RATES))
AXES = {"sweep.head": ["pal-a"], "sweep.k": K, "sweep.seed": SEEDS, "sweep.lr": RATES}
SWEEPS = {"pal sweep": "float32", "pal sweep, auto": "auto"}
"""names of the ways, and their ``train.precision``"""
PROCESSES, ONE, OLDER = "pal train, processes", "pal train, in one process", "older, processes"


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
    parser.add_argument("--before", type=Path, help="a checkout of an older commit")
    parser.add_argument("--sample", type=int, default=8, help="single trainings that are timed")
    parser.add_argument("--rounds", type=int, default=2, help="times that the sweeps are run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    settings = {
        "dataset": arguments.what,
        "encoder": "identity" if arguments.what == "simulated" else "minilm",
        "train.head": "pal-a",
        "data.persona.groups": 4,
    }
    if arguments.source:
        settings |= {f"data.{arguments.what}.source": str(Path(arguments.source).resolve())}
    if arguments.latent:
        settings |= {"train.latent_dim": arguments.latent, "train.mlp": "mlp2-relu-dropout0"}
    called = command(arguments.before)
    out, before = arguments.out.resolve(), arguments.before and arguments.before.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        dim = pipeline.embed(load(None, (), settings).config).dim
        times, accuracy = measured(settings, arguments.sample, arguments.rounds, before)
        listed = {name: list(values) for name, values in AXES.items()}
        operations = operations_of(load(None, (), {**settings, **listed}).config, "cpu")
        floor = operations / matrix_rate("cpu", torch.float32, 2048)
    whole = {
        name: float(np.mean(each)) * (1 if name in SWEEPS else len(GRID))
        for name, each in times.items()
    }
    rows = [["way", "seconds for 64 heads", *(f"times {name}" for name in SWEEPS), "measured"]]
    for name, seconds in whole.items():
        ratios = [f"{seconds / whole[sweep]:.1f}" for sweep in SWEEPS]
        rows.append([name, f"{seconds:.1f}", *ratios, told(name, times[name], accuracy)])
    rest = f"{operations / 1e12:.1f} TFLOP at the rate of a square product; training steps only"
    ratios = [f"{floor / whole[sweep]:.2f}" for sweep in SWEEPS]
    rows.append(["floor: products in float32", f"{floor:.1f}", *ratios, rest])
    latent = arguments.latent or dim
    text = (
        f"# Sweep of 64 heads, {arguments.what}, d = {dim}, latent dimension {latent}\n\n"
        f"{date.today()}, {called}, {torch.get_num_threads()} threads, {platform.machine()}, "
        f"products in bfloat16 {gain('cpu'):.1f} times as fast as in float32, "
        f"load average {os.getloadavg()[0]:.1f}, 100 users, 10,000 training pairs, 20 epochs."
        f"\n\n{as_markdown(rows)}\n"
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / f"sweep_{arguments.what}_{latent}.md").write_text(text, encoding="utf-8")
    print(text)


def command(before: Path | None) -> str:
    """Return this command in Markdown, with an older tree's commit beside it, not its place."""
    called = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    if before is None:
        return f"`{called}`"
    git = ["git", "-C", str(before), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    return f"`{called.replace(str(before), 'FOLDER')}` (FOLDER at commit {commit})"


def measured(
    settings: dict[str, object], sample: int, rounds: int, before: Path | None
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the seconds of each run of each way, and the mean accuracy of each sweep's heads."""
    flags = [f"--set={key}={value}" for key, value in settings.items()]
    axes = [f"--set={axis}={list(values)}".replace("'", "") for axis, values in AXES.items()]
    older = None if before is None else {**os.environ, "PYTHONPATH": str(before / "typings")}
    names = [*SWEEPS, PROCESSES, ONE, *([OLDER] if older else [])]
    times: dict[str, list[float]] = {name: [] for name in names}
    accuracy = {}
    if older:
        Path("older").mkdir()
        seconds_of(["embed", *flags], older, "older")
    # a stride prime to the grid's sides, so that every K, seed and rate has its turn
    chosen = [GRID[(5 + 27 * number) % len(GRID)] for number in range(sample)]
    for number, (k, seed, lr) in enumerate(chosen):
        if number < rounds:
            for name, precision in SWEEPS.items():
                own = [f"--set=train.precision={precision}", f"--name={precision}-{number}"]
                times[name].append(seconds_of(["sweep", *flags, *axes, *own]))
                accuracy[name] = mean_accuracy(Path("sweeps") / f"{precision}-{number}")
        own = [f"--set=train.k={k}", f"--set=seed={seed}", f"--set=train.lr={lr}"]
        run = ["train", *flags, *own, f"--run=process-{number}"]
        times[PROCESSES].append(seconds_of(run))
        if older:
            times[OLDER].append(seconds_of(run, older, "older"))
        config = load(None, (), {**settings, "train.k": k, "train.lr": lr, "seed": seed}).config
        began = time.perf_counter()
        pipeline.train(config, f"here-{number}")
        times[ONE].append(time.perf_counter() - began)
    return times, accuracy


def told(name: str, seconds: list[float], accuracy: dict[str, float]) -> str:
    """Say what was measured of one way."""
    if name in SWEEPS:
        runs = " ".join(f"{each:.1f}" for each in seconds)
        return f"{runs} (whole); mean accuracy {accuracy[name]:.4f}"
    spread = np.std(seconds, ddof=1) if len(seconds) > 1 else 0.0
    return f"{np.mean(seconds):.2f} ± {spread:.2f} s each, {len(seconds)} of {len(GRID)}"


def mean_accuracy(folder: Path) -> float:
    """Return the mean accuracy of a sweep's heads on seen users' new pairs."""
    cells = [row.test for row in read_results(folder).values()]
    return float(np.mean([cell.macro_accuracy for cell in cells if cell is not None]))


def seconds_of(
    arguments: list[str], environment: dict[str, str] | None = None, folder: str | None = None
) -> float:
    """Return the wall time of one pal process."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pal", *arguments], check=True, capture_output=True,
        env=environment, cwd=folder,
    )  # fmt: skip
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
