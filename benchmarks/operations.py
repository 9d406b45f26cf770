"""How many operations the matrix products of a sweep are."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode

from pal.config import Config
from pal.evaluate.inputs import open_inputs
from pal.sweep.plan import Planner
from pal.train.data import TrainingData
from pal.train.pairs import SeedBatches
from pal.train.stack import StackTraining, widen


def operations_of(config: Config, device: str) -> float:
    """Return the operations of training all heads of a grid, by those of one step of a stack of one
    head a seed."""
    candidates = list(Planner(config).grid())
    seeds = list(dict.fromkeys(one.config.seed for one in candidates))
    few = [next(one for one in candidates if one.config.seed == seed) for seed in seeds]
    settings = few[0].config.train
    data = TrainingData.load(settings, *open_inputs(config), device)
    largest = max(one.config.train.k for one in candidates)
    heads = [widen(data.new_head(one.config.train, one.config.seed), largest) for one in few]
    stack = StackTraining(heads, [one.config.train for one in few], len(seeds)).to(device)
    stack.configure_optimizers()
    batches = SeedBatches(data.features, data.train, settings.batch_size, seeds)
    with FlopCounterMode(display=False) as counter:
        stack.training_step(next(iter(batches)), 0)
    return counter.get_total_flops() / len(few) * len(candidates) * len(batches) * settings.epochs
