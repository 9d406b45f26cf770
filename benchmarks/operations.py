"""How many operations the matrix products of a sweep are."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode

from pal.config import Config
from pal.evaluate.inputs import open_inputs
from pal.sweep.plan import Planner
from pal.train.data import TrainingData
from pal.train.together import Together


def operations_of(config: Config, device: str) -> float:
    """Return the operations of training all heads of a grid, by those of a stack of one head a
    seed."""
    candidates = list(Planner(config).grid())
    seeds = list(dict.fromkeys(one.config.seed for one in candidates))
    few = [next(one for one in candidates if one.config.seed == seed) for seed in seeds]
    data = TrainingData.load(few[0].config.train, *open_inputs(config), device)
    largest = max(one.config.train.k for one in candidates)
    widest = [one.config.train.model_copy(update={"k": largest}) for one in few]
    return operations_of_stack(Together([data], seeds, widest)) / len(few) * len(candidates)


def operations_of_stack(stack: Together) -> float:
    """Return the operations of training a stack on one set, by those of one of its steps."""
    training, batches = stack.training_of(stack.new_heads()), stack.lanes.training()
    with FlopCounterMode(display=False) as counter:
        training.step(next(iter(batches)))
    return float(counter.get_total_flops() * len(batches) * stack.settings[0].epochs)
