"""Fitting several heads as one stack: what ``fit_head`` does for one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from pal.cache.mapped import Features
from pal.config import TrainConfig
from pal.errors import TrainError
from pal.train.data import Fitted, TrainingData
from pal.train.datamodules import Lane, LanesDataModule
from pal.train.heads.head import Head
from pal.train.module import HeadTraining
from pal.train.pairs import LaneBatches, PairBatches
from pal.train.stack import widen, with_users
from pal.train.stack_training import StackTraining
from pal.train.stepwise import fit

Progress = Callable[[int], None]
PROBE_STEPS = 4


@dataclass(frozen=True)
class Together:
    """M heads of one shape for a stack, on F training sets of one cache (folds; F may be 1) and S
    seeds: F x S lanes of R heads each, ordered by fold, then by seed."""

    folds: Sequence[TrainingData]
    seeds: Sequence[int]
    settings: Sequence[TrainConfig]
    """(S x R,) of the heads of one fold, ordered by seed; in the others they are the same"""

    @property
    def lanes(self) -> list[Lane]:
        return [Lane(data.train, data.val, seed) for data in self.folds for seed in self.seeds]

    @property
    def batch_size(self) -> int:
        return self.settings[0].batch_size

    @cached_property
    def places(self) -> list[tuple[TrainingData, int, TrainConfig]]:
        """Data, seed and settings of each head, (M,)."""
        heads_of_seed = len(self.settings) // len(self.seeds)
        return [
            (data, self.seeds[number // heads_of_seed], own)
            for data in self.folds
            for number, own in enumerate(self.settings)
        ]

    def new_heads(self) -> list[Head]:
        """Build each head as it would be alone, then bring all to the largest K and the most
        users."""
        k = max(own.k for own in self.settings)
        users = max(len(data.users) for data in self.folds)
        return [with_users(widen(d.new_head(own, seed), k), users) for d, seed, own in self.places]

    def fit(
        self, halving: int | None = None, progress: Progress = lambda _: None
    ) -> list[Fitted | None]:
        """Train all heads; None stands for those that ``halving`` dropped.

        Each is what ``fit_head`` gives, but for rounding, and for other draws of what is random
        within a step (dropout, Gumbel noise). Raises TrainError if one of them never had a finite
        validation loss. ``progress`` is called after each epoch.
        """
        built, own_settings = self.new_heads(), [own for *_, own in self.places]
        module = StackTraining(built, own_settings, len(self.lanes), halving, len(self.folds))
        features = self.folds[0].features
        batches = LanesDataModule(features, self.lanes, self.batch_size)
        fit(module, batches, str(features.device), progress)
        found: list[Fitted | None] = []
        for place, (head, (data, _, own)) in enumerate(zip(built, self.places, strict=True)):
            if place not in module.alive:
                found.append(None)
                continue
            state, epoch = module.best_state[place], module.best_epoch[place]
            if not state:
                raise TrainError("the validation loss was never finite; use a lower learning rate")
            # statistics of the features are there already
            head.load_state_dict(state, strict=False)
            mine = with_users(widen(head, own.k), len(data.users))
            row = {"epoch": float(epoch), "val/loss": module.best_loss[place]}
            found.append(Fitted(mine, [row], epoch))
        return found

    def step_seconds(self) -> float:
        """Return the time of one training step of all heads; the fastest of a few."""
        features = self.folds[0].features
        built, own_settings = self.new_heads(), [own for *_, own in self.places]
        module = StackTraining(built, own_settings, len(self.lanes), folds=len(self.folds))
        module.configure_optimizers()
        pairs, seeds = zip(*((lane.train, lane.seed) for lane in self.lanes), strict=True)
        batches = LaneBatches(features, pairs, self.batch_size, seeds)
        epoch = iter(batches)
        return fastest(lambda: module.training_step(next(epoch), 0), len(batches), features)


def step_seconds_alone(data: TrainingData, settings: TrainConfig, seed: int) -> float:
    """Return the time of one training step of a single head; the fastest of a few."""
    module = HeadTraining(data.new_head(settings, seed), settings).to(data.features.device)
    module.on_train_epoch_start()
    optimiser = module.configure_optimizers()
    batches = PairBatches(data.features, data.train, settings.batch_size, seed)
    epoch = iter(batches)

    def step() -> None:
        optimiser.zero_grad()
        module.training_step(next(epoch), 0).backward()
        optimiser.step()

    return fastest(step, len(batches), data.features)


def fastest(step: Callable[[], None], batches: int, features: Features) -> float:
    """Return the least time that a step takes, of as many tries as there are batches, at most
    a few."""
    times = []
    for _ in range(min(PROBE_STEPS, batches)):
        began = time.perf_counter()
        step()
        if features.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)
