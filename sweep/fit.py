"""Training one stack of heads, or one head, and how many heads to train together."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pal.dataset import PreparedDataset, Split
from pal.errors import TrainError, in_a_line
from pal.evaluate.folds import Fold
from pal.evaluate.inputs import open_inputs
from pal.evaluate.seen import SeenPairs
from pal.sweep.lent import LentFeatures
from pal.sweep.plan import Candidate, digests_of, split_stack
from pal.train.build import reads_prompt
from pal.train.data import Fitted, TrainingData, record_before_training
from pal.train.fit import fit_each, load_each
from pal.train.run_record import TrainedHead
from pal.train.together import Together, step_seconds_alone

LARGEST_STACK = 1_000_000_000
"""numbers that a stack may need where its width goes by size: 4 GB"""
IMPORT_SECONDS = 4.0
"""of Lightning, once a sweep"""
CLEARLY_QUICKER = 3.0
"""how many times as quick, for each head, the quickest stack is than the smallest"""
COPIES, ON_THE_WAY = 6, 4
"""numbers for each weight: with gradients, moments and the best epoch; and, for each row of a batch
and dimension of the features, of both items, forwards and back"""


@dataclass
class World:
    """What candidates of one world are trained on and evaluated by: the dataset, or each of its
    folds."""

    data: list[TrainingData]
    seen: list[SeenPairs]

    @classmethod
    def of(cls, one: Candidate, device: str, lent: np.ndarray | None = None) -> World:
        """Load the world of a candidate; raises TrainError if it is not what was planned.

        ``lent``: its features, in memory already; else they are read from the cache.
        """
        dataset, store = open_inputs(one.config)
        if digests_of(dataset, store) != one.digests:
            raise TrainError(
                f"dataset {dataset.name} or its cache changed during the sweep; run it again"
            )
        if lent is not None:
            store = LentFeatures(store, lent)
        folds, train = one.config.sweep.folds, one.config.train
        parts = [dataset] if folds is None else complete_folds(dataset, folds)
        data = load_each(train, parts, store, device)
        return cls(data, SeenPairs.of_each(data, reads_prompt(train)))


def complete_folds(dataset: PreparedDataset, folds: int) -> Sequence[PreparedDataset]:
    """Return the folds of a dataset; raises TrainError if one has nothing to train on, to choose by
    or to test."""
    parts = Fold.all_of(dataset, folds)
    splits: tuple[Split, ...] = ("test", "train", "val")
    for split in splits:
        for part in parts:
            if part.pairs(split, "seen").is_empty():
                other = "fewer" if split == "test" else "more"
                raise TrainError(
                    f"fold {part.number + 1} of {folds} of dataset {dataset.name} has no {split} "
                    f"pairs of seen users: too few prompts for sweep.folds = {folds}; use {other}"
                )
    return parts


class Worlds:
    """The world at hand: stacks come world by world, so only the last one is kept."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.lent: np.ndarray | None = None
        """the features of the next world, where they are in memory already"""
        self._last: dict[str, World] = {}

    def of(self, one: Candidate) -> World:
        if one.world not in self._last:
            self._last.clear()
            self._last[one.world] = World.of(one, self.device, self.lent)
        return self._last[one.world]

    def clear(self) -> None:
        """Drop the features: they are large, and Lightning's loops, which train heads alone, hold
        them in cycles."""
        self._last.clear()
        self.collect()

    def collect(self) -> None:
        """Give back the memory of what is not needed any more."""
        gc.collect()
        self.release()

    def release(self) -> None:
        """Let other processes of a GPU have what torch holds of its memory unused."""
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


@dataclass
class Result:
    """What training made of one candidate."""

    candidate: Candidate
    trained: list[TrainedHead]
    """the head, or that of each fold; empty if it was dropped on the way"""
    seconds: float
    """its share of the stack's time"""


def train_alone(world: World, one: Candidate, run: str) -> Result:
    """Train one head as ``pal train`` would, or those of all folds."""
    every = range(len(world.data))
    made = list(fit_each(world.data, one.config.train, one.config.seed, every))
    seconds = sum(seconds for _, seconds in made)
    return _result(world, one, [fitted for fitted, _ in made], seconds, run)


def train_together(
    world: World, stack: Sequence[Candidate], halving: int | None, run: str
) -> list[Result]:
    """Train a stack of heads; raises TrainError if one of them never had a finite loss."""
    began = time.perf_counter()
    found = together(world, stack).fit(halving)
    seconds = (time.perf_counter() - began) / len(stack)
    results = []
    for place, one in enumerate(stack):
        fitted = [part for part in found[place :: len(stack)] if part is not None]
        results.append(_result(world, one, fitted, seconds, run))
    return results


def together(world: World, stack: Sequence[Candidate]) -> Together:
    """Return a stack as it is trained, on all folds where there are any."""
    seeds = seeds_of(stack)
    heads = len(stack) // len(seeds)
    expected = [seed for seed in seeds for _ in range(heads)]
    assert [one.config.seed for one in stack] == expected, "not as many heads of every seed"
    return Together(world.data, seeds, [one.config.train for one in stack])


def _result(
    world: World, one: Candidate, fitted: Sequence[Fitted], seconds: float, run: str
) -> Result:
    config, trained = one.config, []
    for data, part in zip(world.data, fitted, strict=False):  # none where it was dropped
        record = record_before_training(config.train, config.seed, data.dataset, data.store, run)
        trained.append(data.trained(part, record, seconds, head_id=one.id))
    return Result(one, trained, seconds)


def seeds_of(stack: Sequence[Candidate]) -> list[int]:
    """Return the seeds of a stack in its order."""
    return list(dict.fromkeys(one.config.seed for one in stack))


def choose_width(worlds: Worlds, group: Sequence[Candidate], report: Callable[[str], None]) -> int:
    """Return how many heads of a group to train together; 1 where that cannot be found, as each
    head then fails or succeeds by itself.

    Where halving makes the heads of a stack rivals it is a matter of their size: the same command
    is to drop the same heads, whatever else the machine is doing.
    """
    if len(group) == 1:
        return 1
    if group[0].config.sweep.halving is None:
        return measure_width(worlds, group, report)
    try:
        width = width_by_size(worlds.of(group[0]), group)
    except Exception as error:
        report(f"heads trained together: their size is not known ({in_a_line(error)})")
        return 1
    if width > len(seeds_of(group)):
        report(f"halving among up to {width} of {len(group)} heads that can be trained together")
    return width


def width_by_size(world: World, group: Sequence[Candidate]) -> int:
    """Return how many heads of a group fit into one stack, by the numbers that they need; of a
    group that is cut, the parts are of about equal size."""
    seeds, data = len(seeds_of(group)), world.data[0]
    largest = max((one.config for one in group), key=lambda config: config.train.k)
    head = data.new_head(largest.train, largest.seed)
    weights = sum(parameter.numel() for parameter in head.parameters())
    maps = sum(parameter.numel() for parameter in head.roles()["maps"])
    rows = min(largest.train.batch_size, len(data.train))
    on_the_way = ON_THE_WAY * maps * rows / data.store.dim
    numbers = len(world.data) * (COPIES * weights + on_the_way)
    fitting = max(1, int(LARGEST_STACK / (numbers * seeds)))
    columns = len(group) // seeds
    parts = math.ceil(columns / fitting)
    return seeds * math.ceil(columns / parts)


def measure_width(worlds: Worlds, group: Sequence[Candidate], report: Callable[[str], None]) -> int:
    """Return the quickest of a few widths at which heads can be trained; 1 where there is none.

    Heads alone are tried last, and not where more heads in a stack are clearly quicker than few:
    there a head alone, about as quick as a few together, cannot be the quickest. They are taken
    only where that saves more than the import of Lightning, which trains them.
    """
    seeds = len(seeds_of(group))
    wider = (seeds, 4 * seeds, len(group))
    seconds: dict[int, float] = {}
    for width in sorted({width for width in wider if 1 < width <= len(group)}):
        found = seconds_at(worlds, group, width, report)
        if found is None:
            worlds.collect()
            break
        seconds[width] = found
    known = list(seconds.values())
    stacked = min(seconds, key=lambda width: seconds[width], default=1)
    allowed = seconds[stacked] - IMPORT_SECONDS / steps_of(worlds, group) if known else math.inf
    if not known or (allowed > 0.0 and seconds[stacked] > known[0] / CLEARLY_QUICKER):
        alone = seconds_at(worlds, group, 1, report)
        if alone is not None:
            seconds[1] = alone
    worlds.collect()
    fastest = 1 if seconds.get(1, math.inf) < allowed else stacked
    listed = ", ".join(f"{width} at {1e3 * seconds[width]:.2f}" for width in sorted(seconds))
    if listed:
        report(f"ms per head and step, by heads trained together: {listed}; taking {fastest}")
    return fastest


def steps_of(worlds: Worlds, group: Sequence[Candidate]) -> int:
    """Return how many training steps all heads of a group take together."""
    train = group[0].config.train
    batches = math.ceil(len(worlds.of(group[0]).data[0].train) / train.batch_size)
    return len(group) * train.epochs * batches


def seconds_at(
    worlds: Worlds, group: Sequence[Candidate], width: int, report: Callable[[str], None]
) -> float | None:
    """Return the time of a training step for each of so many heads together; None if it fails."""
    stack = split_stack(group, width)[0]
    try:
        return step_seconds(worlds.of(stack[0]), stack) / len(stack)
    except Exception as error:
        which = f"{width} heads together, or more," if width > 1 else "a head alone"
        report(f"the time of {which} cannot be measured ({in_a_line(error)})")
        return None


def step_seconds(world: World, stack: Sequence[Candidate]) -> float:
    """Return the time of one training step of a stack, or of a single head, in all folds."""
    if len(stack) > 1:
        return together(world, stack).step_seconds()
    config = stack[0].config
    return sum(step_seconds_alone(data, config.train, config.seed) for data in world.data)
