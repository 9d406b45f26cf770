"""Training one stack of heads, or one head, and how many heads to train together."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pal.errors import TrainError
from pal.evaluate.inputs import open_inputs
from pal.evaluate.predict import SeenPairs
from pal.sweep.plan import Candidate, digests_of, split_stack
from pal.train.data import Fitted, TrainingData, record_before_training
from pal.train.fit import fit, fit_head
from pal.train.heads.head import Head
from pal.train.module import HeadTraining
from pal.train.pairs import Batch, PairsDataModule, SeedBatches
from pal.train.run_record import TrainedHead
from pal.train.stack import StackTraining, widen

PROBE_STEPS = 4


@dataclass
class World:
    """What candidates of one world are trained on and evaluated by."""

    data: TrainingData
    seen: SeenPairs

    @classmethod
    def of(cls, one: Candidate, device: str) -> World:
        """Load the world of a candidate; raises TrainError if it is not what was planned."""
        dataset, store = open_inputs(one.config)
        if digests_of(dataset, store) != one.digests:
            raise TrainError(
                f"dataset {dataset.name} or its cache changed during the sweep; run it again"
            )
        data = TrainingData.load(one.config.train, dataset, store, device)
        return cls(data, SeenPairs.load(data))


class Worlds:
    """The world at hand: stacks come world by world, so only the last one is kept."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._last: dict[str, World] = {}

    def of(self, one: Candidate) -> World:
        if one.world not in self._last:
            self._last.clear()
            self._last[one.world] = World.of(one, self.device)
        return self._last[one.world]

    def clear(self) -> None:
        """Drop the features: they are large, and Lightning's loops hold them in cycles."""
        self._last.clear()
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()


@dataclass
class Result:
    """What training made of one candidate."""

    candidate: Candidate
    trained: TrainedHead | None
    """None if it was dropped on the way"""
    seconds: float
    """its share of the stack's time"""


def train_alone(world: World, one: Candidate, run: str) -> Result:
    """Train one head as ``pal train`` would."""
    began = time.perf_counter()
    fitted = fit_head(world.data, one.config.train, one.config.seed)
    return _result(world, one, fitted, time.perf_counter() - began, run)


def train_together(
    world: World, stack: Sequence[Candidate], halving: int | None, run: str
) -> list[Result]:
    """Train a stack of heads; raises TrainError if one of them never had a finite loss."""
    data, heads = world.data, heads_of(world, stack)
    seeds = seeds_of(stack)
    module = StackTraining(heads, [one.config.train for one in stack], len(seeds), halving)
    began = time.perf_counter()
    size = stack[0].config.train.batch_size
    batches = PairsDataModule(data.features, data.train, data.val, size, seeds)
    fit(module, batches, str(data.features.device), lambda epochs: None)
    seconds = (time.perf_counter() - began) / len(stack)
    results = []
    for place, one in enumerate(stack):
        if place not in module.alive:
            results.append(Result(one, None, seconds))
            continue
        if not module.best_state[place]:
            raise TrainError("the validation loss was never finite; use a lower learning rate")
        # statistics of the features are there already
        heads[place].load_state_dict(module.best_state[place], strict=False)
        head, epoch = widen(heads[place], one.config.train.k), module.best_epoch[place]
        results.append(_result(world, one, Fitted(head, [{"epoch": epoch}], epoch), seconds, run))
    return results


def _result(world: World, one: Candidate, fitted: Fitted, seconds: float, run: str) -> Result:
    data, config = world.data, one.config
    record = record_before_training(config.train, config.seed, data.dataset, data.store, run)
    return Result(one, data.trained(fitted, record, seconds, head_id=one.id), seconds)


def heads_of(world: World, stack: Sequence[Candidate]) -> list[Head]:
    """Build each head as ``pal train`` would, then bring all of a stack to the largest K."""
    heads = [world.data.new_head(one.config.train, one.config.seed) for one in stack]
    largest = max(one.config.train.k for one in stack)
    return [widen(head, largest) for head in heads] if len(stack) > 1 else heads


def seeds_of(stack: Sequence[Candidate]) -> list[int]:
    """Return the seeds of a stack in its order."""
    return list(dict.fromkeys(one.config.seed for one in stack))


def measure_width(worlds: Worlds, group: Sequence[Candidate], report: Callable[[str], None]) -> int:
    """Return how many heads of a group to train together: the quickest of a few widths."""
    if len(group) == 1:
        return 1
    seeds = len(seeds_of(group))
    wider = [width for width in (seeds, 4 * seeds, len(group)) if width % seeds == 0]
    widths = sorted({1, *(width for width in wider if 1 < width <= len(group))})
    seconds = {}
    for width in widths:
        stack = split_stack(group, width)[0]
        seconds[width] = step_seconds(worlds.of(stack[0]), stack) / len(stack)
    fastest = min(seconds, key=lambda width: seconds[width])
    listed = ", ".join(f"{width} at {1e3 * value:.2f}" for width, value in seconds.items())
    report(f"ms per head and step, by heads trained together: {listed}; taking {fastest}")
    return fastest


def step_seconds(world: World, stack: Sequence[Candidate]) -> float:
    """Return the time of one training step of a stack, or of a single head; the fastest of a
    few."""
    data, heads = world.data, heads_of(world, stack)
    device, settings = data.features.device, stack[0].config.train
    batches = iter(SeedBatches(data.features, data.train, settings.batch_size, seeds_of(stack)))
    if len(stack) == 1:
        single = HeadTraining(heads[0], settings).to(device)
        single.on_train_epoch_start()
        optimiser = single.configure_optimizers()

        def step(batch: list[Batch]) -> None:
            optimiser.zero_grad()
            single.training_step(batch[0], 0).backward()
            optimiser.step()
    else:
        many = StackTraining(heads, [one.config.train for one in stack], len(seeds_of(stack)))
        many.configure_optimizers()

        def step(batch: list[Batch]) -> None:
            many.training_step(batch, 0)

    times = []
    for _, batch in zip(range(PROBE_STEPS), batches, strict=False):
        began = time.perf_counter()
        step(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)
