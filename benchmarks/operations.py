"""How many operations the matrix products of a sweep are."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode

from pal.config import Config
from pal.evaluate.inputs import open_inputs
from pal.sweep.plan import Planner
from pal.train.data import TrainingData
from pal.train.pairs import LaneBatches
from pal.train.stack_training import StackTraining
from pal.train.together import Together


def operations_of(config: Config, device: str) -> float:
    """Return the operations of training all heads of a grid, by those of one step of a stack of one
    head a seed."""
    candidates = list(Planner(config).grid())
    seeds = list(dict.fromkeys(one.config.seed for one in candidates))
    few = [next(one for one in candidates if one.config.seed == seed) for seed in seeds]
    settings = few[0].config.train
    data = TrainingData.load(settings, *open_inputs(config), device)
    largest = max(one.config.train.k for one in candidates)
    widest = [one.config.train.model_copy(update={"k": largest}) for one in few]
    heads = Together([data], seeds, widest).new_heads()
    stack = StackTraining(heads, widest, len(seeds)).to(device)
    stack.configure_optimizers()
    batches = LaneBatches(data.features, [data.train] * len(seeds), settings.batch_size, seeds)
    with FlopCounterMode(display=False) as counter:
        stack.training_step(next(iter(batches)), 0)
    return counter.get_total_flops() / len(few) * len(candidates) * len(batches) * settings.epochs
