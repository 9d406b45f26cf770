"""Hundreds of heads at d = 1024 on half a million pairs, as a sweep trains them: in stacks.

    python benchmarks/gpu_sweep.py OUT.json [--device cuda] [--small]

PAL-A, K = 2 and 4, the rest seeds and learning rates; features of a million of random numbers and
answers by planted groups lie in memory, since what a sweep reads and evaluates does not depend on
the device. Validation after each epoch is in the time and not in the operations, which are those
that torch counts in one step times all steps: the share is a lower bound.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import torch
from gpu_sizes import Found, fastest_rate, options_of, wait_for
from operations import operations_of_stack

from pal.config import TrainConfig
from pal.train.data import TrainingData
from pal.train.pairs import Pairs
from pal.train.together import Together

DIM, ITEMS, USERS, PAIRS, VALIDATION, EPOCHS, BATCH = 1024, 200_000, 5000, 500_000, 20_000, 2, 4096
HEADS = {"float32": 32, "bfloat16": 256}
KS, SEEDS, STACK, GROUPS = (2, 4), (0, 1, 2, 3), 32, 2


def main() -> None:
    options = options_of(__doc__)
    device, small = options.device, options.small
    sizes = (32, 400, 50, 2000, 200) if small else (DIM, ITEMS, USERS, PAIRS, VALIDATION)
    data = made(device, *sizes)
    found = Found(options.out)
    found.table(
        f"PAL-A, d = {sizes[0]:,}, {sizes[3]:,} pairs, {EPOCHS} epochs, batches of {BATCH:,}, "
        f"stacks of {STACK}.", "precision", "heads", "seconds", "heads per minute",
        "share of the float32 rate", "best validation loss",
    )  # fmt: skip
    rate = fastest_rate(device, torch.float32, small)
    for precision, heads in HEADS.items():
        stacks = stacks_of(precision, 8 if small else heads, 8 if small else STACK)
        operations = sum(operations_of_stack(Together([data], SEEDS, own)) for own in stacks)
        wait_for(device)
        began = time.perf_counter()
        fitted = [one for own in stacks for one in Together([data], SEEDS, own).fit()]
        wait_for(device)
        seconds = time.perf_counter() - began
        best = min(row["val/loss"] for one in fitted for row in one.log)
        found.row(
            precision, len(fitted), f"{seconds:.1f}", f"{60 * len(fitted) / seconds:.0f}",
            f"{operations / seconds / rate:.2f}", f"{best:.4f}",
        )  # fmt: skip


def made(
    device: str, dim: int, items: int, users: int, train: int, validation: int
) -> TrainingData:
    """Return answers of users of two groups, each with a taste along a line of its own."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(items, dim, generator=generator)
    tastes = features @ torch.randn(dim, GROUPS, generator=generator) / dim**0.5

    def pairs(count: int) -> Pairs:
        first, second = torch.randint(0, items, (2, count), generator=generator)
        user = torch.randint(0, users, (count,), generator=generator)
        group = user % GROUPS
        label = (tastes[first, group] > tastes[second, group]).float()
        return Pairs(None, *(part.to(device) for part in (first, second, user, label)))

    names = [f"u{number}" for number in range(users)]
    store: Any = SimpleNamespace(dim=dim)
    nothing: Any = None
    cached = features.half().to(device)
    return TrainingData(nothing, store, names, cached, pairs(train), pairs(validation))


def stacks_of(precision: str, heads: int, width: int) -> list[list[TrainConfig]]:
    """Return the settings of all heads, stack by stack, in each as many of every seed."""
    rates = [round(3e-4 * 1.2**n, 7) for n in range(heads // (len(KS) * len(SEEDS)))]
    grid = [
        {"head": "pal-a", "k": k, "lr": rate, "precision": precision,
         "batch_size": BATCH, "epochs": EPOCHS}
        for rate in rates for k in KS
    ]  # fmt: skip
    own = [TrainConfig.model_validate(one) for one in grid]
    each = width // len(SEEDS)
    parts = [own[start : start + each] for start in range(0, len(own), each)]
    return [part * len(SEEDS) for part in parts]


if __name__ == "__main__":
    main()
