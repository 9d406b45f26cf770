"""One training epoch against its matrix products alone: forward and backward, same threads.

    python benchmarks/train_epoch.py

PAL-A and PAL-B, d = 1024, batch 1024, K = 2, 2,000 users, in each ``train.precision``. The floor
multiplies matrices of the very shapes that an epoch needs if every row is mapped, and does nothing
else: per layer one product forward and, backward, one for the weights and one for the input (none
for the input of the first layer). All of them alternate in one run.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

import torch

from pal.config import TrainConfig
from pal.evaluate.report import as_markdown
from pal.train.build import build_head, resolve
from pal.train.module import HeadTraining
from pal.train.pairs import PairBatches, Pairs
from pal.train.probe import quickest

DIM, BATCH, K, USERS, ITEMS, PAIRS = 1024, 1024, 2, 2000, 20_000, 20_480
PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/train_epoch.md"))
    arguments = parser.parse_args()
    header = ["head", "precision", "epoch, s", "to float32 products", "to bfloat16 products"]
    rows, floors = [header], []
    for name in ("pal-a", "pal-b"):
        seconds = measure(name, arguments.pairs, arguments.rounds)
        floor = {one: seconds[f"products {one}"] for one in PRECISIONS}
        floors.append(f"of {name} {floor['float32']:.2f} s and {floor['bfloat16']:.2f} s")
        for precision in PRECISIONS:
            own = seconds[f"epoch {precision}"]
            ratios = [f"{own / floor[one]:.2f}" for one in PRECISIONS]
            rows.append([name, precision, f"{own:.2f}", *ratios])
    text = (
        f"# A training epoch against its matrix products\n\n{date.today()}, `python "
        "benchmarks/train_epoch.py`: "
        f"d = {DIM}, batch {BATCH}, K = {K}, {USERS:,} users, {arguments.pairs:,} pairs over "
        f"{ITEMS:,} items, float16 features, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, median of {arguments.rounds} alternating rounds. The products "
        f"alone take in float32 and in bfloat16: {', '.join(floors)}. `train.precision=auto` takes "
        f"{quickest('cpu')} here.\n\n{as_markdown(rows)}\n"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


def measure(name: str, count: int, rounds: int) -> dict[str, float]:
    """Return median seconds of an epoch by our own steps, and of its matrix products, in each
    precision."""
    work: dict[str, Callable[[], None]] = {}
    for precision in PRECISIONS:
        work[f"epoch {precision}"] = epoch_of(name, precision, count)
        work[f"products {precision}"] = products_of(name, precision, -(-count // BATCH))
    times: dict[str, list[float]] = {label: [] for label in work}
    for number in range(rounds + 1):
        for label, once in work.items():
            began = time.perf_counter()
            once()
            if number:  # the first round warms up
                times[label].append(time.perf_counter() - began)
    return {label: median(values) for label, values in times.items()}


def epoch_of(name: str, precision: str, count: int) -> Callable[[], None]:
    """Return what trains a head for an epoch."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(ITEMS, DIM, generator=generator).half()
    first, second, prompt = torch.randint(0, ITEMS, (3, count), generator=generator)
    user = torch.randint(0, USERS, (count,), generator=generator)
    pairs = Pairs(prompt if name == "pal-b" else None, first, second, user, torch.ones(count))
    chosen = {"head": name, "k": K, "batch_size": BATCH, "precision": precision}
    settings = resolve(TrainConfig.model_validate(chosen))
    module = HeadTraining(build_head(settings, DIM, USERS), settings)
    optimiser = module.configure_optimizers()
    batches = PairBatches(features, pairs, BATCH, seed=0)

    def epoch() -> None:
        for batch in batches:
            optimiser.zero_grad()
            module.training_step(batch, 0).backward()
            optimiser.step()
            module.head.constrain()

    return epoch


def products_of(name: str, precision: str, batches: int) -> Callable[[], None]:
    """Return what multiplies the matrices of an epoch."""
    dtype = getattr(torch, precision)
    weights = [torch.randn(DIM, DIM, dtype=dtype) for _ in range(3)]
    maps = [(2 * BATCH, 1), (BATCH, K)] if name == "pal-b" else [(2 * BATCH + BATCH, 1)]
    inputs = [(torch.randn(rows, DIM, dtype=dtype), copies) for rows, copies in maps]

    def products() -> None:
        for _ in range(batches):
            for x, copies in inputs:
                for _ in range(copies):
                    for layer, weight in enumerate(weights):
                        x @ weight.T
                        x.T @ x
                        if layer:
                            x @ weight

    return products


if __name__ == "__main__":
    main()
