"""How time and memory grow with items, pairs, users and heads: each ten times as many, beside the
stage that they belong to.

    python benchmarks/growth.py [--base 20] [--factors 1 3 10]

Simulated datasets of d = 16 and the identity encoder, so that nothing but our own work is measured.
Each measurement is the call of one stage in a process of its own, whose imports are over; its
memory is the peak above what the process had before. Writes benchmarks/results/growth.md and
growth.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pal import pipeline
from pal.config import Config, load
from pal.evaluate.report import as_markdown

PAIRS = 100
"""training pairs of a user in the base"""
EPOCHS, HEADS = 3, 4
RUN = "grown"


@dataclass(frozen=True)
class Axis:
    """What grows, and the stages that must do more for it, in the order in which they run."""

    what: str
    stages: tuple[str, ...]
    before: tuple[str, ...] = ()
    """stages that run first and are not measured"""

    def sizes(self, base: int, factor: int) -> dict[str, int]:
        """Return the settings of the dataset."""
        users = base * (factor if self.what == "users" else 1)
        pairs = PAIRS * (factor if self.what == "pairs" else 1)
        return {
            "users": users,
            "unseen_users": users,
            "validation_users": users // 4,
            "pairs_per_user": pairs,
            "validation_pairs_per_user": pairs // 10,
            "test_pairs_per_user": pairs // 10,
        }

    def count(self, stage: str, base: int, factor: int) -> str:
        """Return how many there are, of what."""
        sizes = self.sizes(base, factor)
        if self.what == "heads":
            return f"{HEADS * factor:,} heads"
        if self.what == "users":
            return f"{sizes['users']:,} users"
        seen, new, val = (sizes[k] for k in ("users", "unseen_users", "validation_users"))
        own = sizes["pairs_per_user"]
        pairs = own * (seen + new + val) + own // 10 * (2 * seen + new + val)
        return f"{2 * pairs:,} items" if stage == "embed" else f"{pairs:,} pairs"


AXES = {
    axis.what: axis
    for axis in (
        Axis("pairs", ("prepare", "embed", "train")),
        Axis("users", ("prepare", "embed", "train", "adapt")),
        Axis("heads", ("sweep",), before=("prepare", "embed")),
    )
}


def config_of(axis: Axis, base: int, factor: int) -> Config:
    settings: dict[str, Any] = {
        "dataset": "simulated",
        "encoder": "identity",
        "train.head": "pal-a",
        "train.k": 3,
        "train.epochs": EPOCHS,
        "train.device": "cpu",
        "sweep.head": ["pal-a"],
        "sweep.k": [3],
        "sweep.seed": list(range(HEADS * factor if axis.what == "heads" else HEADS)),
        **{f"data.simulated.{key}": value for key, value in axis.sizes(base, factor).items()},
    }
    return load(overrides=[f"{key}={json.dumps(value)}" for key, value in settings.items()]).config


def call(stage: str, config: Config) -> None:
    """Run one stage."""
    if stage == "prepare":
        pipeline.prepare(config, tell=str)
    elif stage == "embed":
        pipeline.embed(config, tell=str)
    elif stage == "train":
        pipeline.train(config, RUN, tell=str)
    elif stage == "adapt":
        pipeline.adapt(config, RUN, tell=str)
    else:
        summary = pipeline.sweep(config, RUN, report=str)
        assert summary.trained == summary.heads > 0, summary


def measured(stage: str, config: Config) -> dict[str, float]:
    """Return the seconds of the processor that a stage takes, which others on the same cores change
    little, and its peak of memory in MB above what was there before."""
    import polars  # noqa: F401
    import torch

    import pal.sweep.run
    import pal.train.by_lightning  # noqa: F401

    torch.set_num_threads(1)
    before = peak = resident()
    is_over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_over.wait(0.02):
            peak = max(peak, resident())

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.process_time()
    try:
        call(stage, config)
    finally:
        seconds = time.process_time() - began
        is_over.set()
        watching.join()
    return {"seconds": seconds, "mb": (peak - before) / 1e6}


def resident() -> int:
    """Return the anonymous memory of this process; mapped files are the system's to take back."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition("RssAnon:")[2].split()[0])


def in_own_process(axis: Axis, stage: str, base: int, factor: int, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", axis.what, stage]
    done = subprocess.run(
        [*command, "--base", str(base), "--factors", str(factor)],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "10000"},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{axis.what} x {factor}, {stage}: {found}", file=sys.stderr, flush=True)
    return found


def grown(axis: Axis, base: int, factors: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Return what each stage takes with each factor."""
    found: dict[str, list[dict[str, Any]]] = {stage: [] for stage in axis.stages}
    for factor in factors:
        with tempfile.TemporaryDirectory() as place:
            for stage in (*axis.before, *axis.stages):
                one = in_own_process(axis, stage, base, factor, Path(place))
                if stage in found:
                    found[stage].append(one)
    return found


def plot(
    found: dict[tuple[str, str], list[dict[str, Any]]], factors: list[int], path: Path
) -> None:
    """Draw time and memory against the number, both as multiples of the base."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "growth"
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, layout="constrained")
    for panel, key, title in (
        (panels[0], "seconds", "time of the processor"),
        (panels[1], "mb", "memory"),
    ):
        for (what, stage), points in found.items():
            y = [point[key] / points[0][key] for point in points]
            panel.plot(factors, y, marker="o", label=f"{what}: {stage}")
        panel.plot(factors, factors, color="0.6", linestyle="--", label="in proportion")
        panel.set(xscale="log", yscale="log", title=title, xlabel="times as many")
    panels[0].set_ylabel("times as much")
    panels[0].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=int, default=20, help="seen users, and unseen ones")
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    base, factors = arguments.base, arguments.factors
    if arguments.one:
        what, stage = arguments.one
        print(json.dumps(measured(stage, config_of(AXES[what], base, factors[0]))))
        return
    began = time.perf_counter()
    found = {
        (what, stage): points
        for what, axis in AXES.items()
        for stage, points in grown(axis, base, factors).items()
    }
    rows = [["stage", "from", "to", "processor, s", "times", "MB", "times"]]
    for (what, stage), points in found.items():
        ends = [AXES[what].count(stage, base, factor) for factor in (factors[0], factors[-1])]
        row, first, last = [stage, *ends], points[0], points[-1]
        for key, digits in (("seconds", 1), ("mb", 0)):
            row.append(f"{first[key]:,.{digits}f} to {last[key]:,.{digits}f}")
            row.append(f"{last[key] / first[key]:.1f}")
        rows.append(row)
    text = f"""# Growth

{date.today()}, `python benchmarks/growth.py --base {base} --factors \
{" ".join(map(str, factors))}`: {os.cpu_count()} cores ({platform.machine()}), one thread, \
{time.perf_counter() - began:.0f} s in all; load average {os.getloadavg()[0]:.1f}.
Simulated data of d = 16, identity encoder, PAL-A with K = 3, {EPOCHS} epochs. Each stage in a \
process of its own, without its imports; seconds are the processor's; memory is the peak above \
what the process had before.

{as_markdown(rows)}

![Time and memory against the number](growth.svg)
"""
    arguments.out.mkdir(parents=True, exist_ok=True)
    plot(found, factors, arguments.out / "growth.svg")
    (arguments.out / "growth.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
