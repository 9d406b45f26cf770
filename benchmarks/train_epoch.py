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
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

import torch
from gpu_sizes import seconds_of

from pal.config import TrainConfig
from pal.evaluate.report import as_markdown
from pal.train.build import build_head, resolve
from pal.train.module import HeadTraining
from pal.train.pairs import PairBatches, Pairs
from pal.train.probe import quickest

DIM, K, USERS, PAIRS = 1024, 2, 2000, 20_480


@dataclass(frozen=True)
class Sizes:
    """Of an epoch, and where it runs."""

    pairs: int = PAIRS
    batch: int = 1024
    items: int = 20_000
    dim: int = DIM
    device: str = "cpu"


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
    rows, floors, sizes = [header], [], Sizes(arguments.pairs)
    for name in ("pal-a", "pal-b"):
        seconds = measure(name, sizes, arguments.rounds)
        floor = {one: seconds[f"products {one}"] for one in PRECISIONS}
        floors.append(f"of {name} {floor['float32']:.2f} s and {floor['bfloat16']:.2f} s")
        for precision in PRECISIONS:
            own = seconds[f"epoch {precision}"]
            ratios = [f"{own / floor[one]:.2f}" for one in PRECISIONS]
            rows.append([name, precision, f"{own:.2f}", *ratios])
    text = (
        f"# A training epoch against its matrix products\n\n{date.today()}, `python "
        "benchmarks/train_epoch.py`: "
        f"d = {DIM}, batch {sizes.batch}, K = {K}, {USERS:,} users, {arguments.pairs:,} pairs over "
        f"{sizes.items:,} items, float16 features, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, median of {arguments.rounds} alternating rounds. The products "
        f"alone take in float32 and in bfloat16: {', '.join(floors)}. `train.precision=auto` takes "
        f"{quickest('cpu')} here.\n\n{as_markdown(rows)}\n"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")
    print(text)


def measure(name: str, sizes: Sizes, rounds: int) -> dict[str, float]:
    """Return median seconds of an epoch by our own steps, and of its matrix products, in each
    precision."""
    work: dict[str, Callable[[], None]] = {}
    for precision in PRECISIONS:
        work[f"epoch {precision}"] = epoch_of(name, precision, sizes)
        work[f"products {precision}"] = products_of(name, precision, sizes)
    times: dict[str, list[float]] = {label: [] for label in work}
    for number in range(rounds + 1):
        for label, once in work.items():
            seconds = seconds_of(once, sizes.device)
            if number:  # the first round warms up
                times[label].append(seconds)
    return {label: median(values) for label, values in times.items()}


def epoch_of(name: str, precision: str, sizes: Sizes) -> Callable[[], None]:
    """Return what trains a head for an epoch."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    device, count = sizes.device, sizes.pairs
    features = torch.randn(sizes.items, sizes.dim, generator=generator).half().to(device)
    rows = torch.randint(0, sizes.items, (3, count), generator=generator).to(device)
    first, second, prompt = rows
    user = torch.randint(0, USERS, (count,), generator=generator).to(device)
    label = torch.ones(count, device=device)
    pairs = Pairs(prompt if name == "pal-b" else None, first, second, user, label)
    chosen = {"head": name, "k": K, "batch_size": sizes.batch, "precision": precision}
    settings = resolve(TrainConfig.model_validate(chosen))
    module = HeadTraining(build_head(settings, sizes.dim, USERS), settings).to(device)
    optimiser = module.configure_optimizers()
    batches = PairBatches(features, pairs, sizes.batch, seed=0)

    def epoch() -> None:
        module.on_train_epoch_start()
        for batch in batches:
            optimiser.zero_grad()
            module.training_step(batch, 0).backward()
            optimiser.step()
            module.head.constrain()

    return epoch


def products_of(name: str, precision: str, sizes: Sizes) -> Callable[[], None]:
    """Return what multiplies the matrices of an epoch."""
    dim, batch, batches = sizes.dim, sizes.batch, -(-sizes.pairs // sizes.batch)
    where = {"dtype": getattr(torch, precision), "device": sizes.device}
    weights = [torch.randn(dim, dim, **where) for _ in range(3)]
    maps = [(2 * batch, 1), (batch, K)] if name == "pal-b" else [(2 * batch + batch, 1)]
    inputs = [(torch.randn(rows, dim, **where), copies) for rows, copies in maps]

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
