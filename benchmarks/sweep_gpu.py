"""Hundreds of heads at d = 1024 on half a million pairs: heads per minute, and the share of the
device's matrix rate.

    python benchmarks/sweep_gpu.py

A trial of the script itself:

    python benchmarks/sweep_gpu.py --device cpu --heads 8 --dim 64 --users 50 --epochs 1

PAL-A, K = 2 and 4, the rest seeds and learning rates. Operations are those that torch counts in one
training step of a stack, times all steps; validation and evaluation are in the time and not in the
operations, so the share is a lower bound. The matrix rate is that of a square product in the same
float32, with what torch is set to (TF32 or not).
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from operations import operations_of

from pal import pipeline
from pal.config import load
from pal.embed.peak import matrix_rate
from pal.evaluate.report import as_markdown

KS, SEEDS = (2, 4), (0, 1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--heads", type=int, default=256, help="a multiple of 8")
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--users", type=int, default=5000, help="with 100 training pairs each")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    rates = [round(3e-4 * 1.2**n, 7) for n in range(arguments.heads // (len(KS) * len(SEEDS)))]
    options = {
        "dataset": "simulated", "encoder": "identity", "data.simulated.dim": arguments.dim,
        "data.simulated.users": arguments.users, "embed.identity.store_dtype": "float16",
        "train.batch_size": 4096, "train.epochs": arguments.epochs,
        "train.device": arguments.device, "sweep.head": ["pal-a"],
        "sweep.k": list(KS), "sweep.seed": list(SEEDS), "sweep.lr": rates, "sweep.workers": 1,
    }  # fmt: skip
    out = arguments.out.resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        config = load(None, (), options).config
        pipeline.embed(config)
        began = time.perf_counter()
        summary = pipeline.sweep(config, "gpu")
        seconds = time.perf_counter() - began
        assert not summary.failed, summary
        operations = operations_of(config, arguments.device)
    rate = matrix_rate(arguments.device, torch.float32)
    card = (
        torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine()
    )
    rows = [
        ["heads", "pairs", "seconds", "heads per minute", "together", "share of the matrix rate"]
    ]
    shown = [f"{summary.heads}", f"{100 * arguments.users:,}", f"{seconds:.1f}"]
    shown += [
        f"{60 * summary.heads / seconds:.1f}",
        f"{summary.together}",
        f"{operations / seconds / rate:.2f}",
    ]
    text = (
        f"# A sweep of {summary.heads} heads, d = {arguments.dim}, {arguments.epochs} "
        f"epochs\n\n{date.today()}, "
        f"`python benchmarks/sweep_gpu.py`, {card}, matrix rate {rate / 1e12:.2f} TFLOP/s "
        "(float32, precision "
        f"{torch.get_float32_matmul_precision()}).\n\n{as_markdown([*rows, shown])}\n"
    )
    name = "sweep_gpu.md" if arguments.device.startswith("cuda") else "sweep_gpu_trial.md"
    out.mkdir(parents=True, exist_ok=True)
    (out / name).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
