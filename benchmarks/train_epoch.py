"""One training epoch against its matrix products alone: forward and backward, same dtype, same
threads.

    python benchmarks/train_epoch.py

PAL-A, d = 1024, batch 1024, K = 2, 2,000 users. The floor multiplies matrices of the very shapes an
epoch needs and does nothing else: per layer one product forward and, backward, one for the weights
and one for the input (none for the input of the first layer). Both alternate in one run.
"""

from __future__ import annotations

import argparse
import platform
import time
from datetime import date
from pathlib import Path
from statistics import median

import torch

from pal.config import TrainConfig
from pal.evaluate.report import as_markdown
from pal.train.build import build_head
from pal.train.module import HeadTraining
from pal.train.pairs import PairBatches, Pairs

DIM, BATCH, K, USERS, ITEMS, PAIRS = 1024, 1024, 2, 2000, 20_000, 20_480


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_epoch.md"))
    arguments = parser.parse_args()
    rows = [["head", "epoch, s", "matrix products alone, s", "ratio"]]
    for name in ("pal-a", "pal-b"):
        own, floor = measure(name, arguments.rounds)
        rows.append([name, f"{own:.2f}", f"{floor:.2f}", f"{own / floor:.2f}"])
    text = (
        f"# A training epoch against its matrix products\n\n{date.today()}, `python "
        "benchmarks/train_epoch.py`: "
        f"d = {DIM}, batch {BATCH}, K = {K}, {USERS:,} users, {PAIRS:,} pairs over {ITEMS:,} "
        "items, "
        f"float16 features, float32 arithmetic, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, median of "
        f"{arguments.rounds} alternating rounds.\n\n{as_markdown(rows)}\n"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


def measure(name: str, rounds: int) -> tuple[float, float]:
    """Return median seconds of an epoch through Lightning's own steps, and of its matrix
    products."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ITEMS, DIM, generator=generator).half()
    first, second, prompt = torch.randint(0, ITEMS, (3, PAIRS), generator=generator)
    user = torch.randint(0, USERS, (PAIRS,), generator=generator)
    pairs = Pairs(prompt if name == "pal-b" else None, first, second, user, torch.ones(PAIRS))
    settings = TrainConfig(head=name, k=K, batch_size=BATCH)
    module = HeadTraining(build_head(settings, DIM, USERS), settings)
    optimiser = module.configure_optimizers()
    batches = PairBatches(features, pairs, BATCH, seed=0)

    def epoch() -> None:
        for batch in batches:
            optimiser.zero_grad()
            module.training_step(batch, 0).backward()
            optimiser.step()
            module.head.constrain()

    weights = [torch.randn(DIM, DIM) for _ in range(3)]
    maps = [(2 * BATCH, 1), (BATCH, K)] if name == "pal-b" else [(2 * BATCH + BATCH, 1)]
    inputs = [(torch.randn(rows, DIM), copies) for rows, copies in maps]

    def products() -> None:
        for _ in range(len(batches)):
            for x, copies in inputs:
                for _ in range(copies):
                    for layer, weight in enumerate(weights):
                        x @ weight.T
                        x.T @ x
                        if layer:
                            x @ weight

    times: dict[str, list[float]] = {"epoch": [], "products": []}
    for step in range(rounds + 1):
        for label, work in (("epoch", epoch), ("products", products)):
            began = time.perf_counter()
            work()
            if step:  # the first round warms up
                times[label].append(time.perf_counter() - began)
    return median(times["epoch"]), median(times["products"])


if __name__ == "__main__":
    main()
