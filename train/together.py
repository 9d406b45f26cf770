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
from pal.train.heads.head import Head
from pal.train.lanes import Lane, Lanes
from pal.train.loss import LOSSES
from pal.train.pairs import PairBatches
from pal.train.stack import widen, with_users
from pal.train.stack_training import Progress, StackTraining
from pal.train.steps import StepOfHead, deterministic, optimiser_groups, rounded_in_steps

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
    def lanes(self) -> Lanes:
        every = [Lane(data.train, data.val, seed) for data in self.folds for seed in self.seeds]
        return Lanes(self.folds[0].features, every, self.settings[0].batch_size)

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
        built = self.new_heads()
        training = self.training_of(built, halving)
        training.fit(progress)
        found: list[Fitted | None] = []
        for place, (head, (data, _, own)) in enumerate(zip(built, self.places, strict=True)):
            if place not in training.alive:
                found.append(None)
                continue
            state, epoch = training.best_state[place], training.best_epoch[place]
            if not state:
                raise TrainError("the validation loss was never finite; use a lower learning rate")
            # statistics of the features are there already
            head.load_state_dict(state, strict=False)
            mine = with_users(widen(head, own.k), len(data.users))
            row = {"epoch": float(epoch), "val/loss": training.best_loss[place]}
            found.append(Fitted(mine, [row], epoch))
        return found

    def training_of(self, heads: Sequence[Head], halving: int | None = None) -> StackTraining:
        """Return the training of ``new_heads``."""
        settings = [own for *_, own in self.places]
        return StackTraining(heads, settings, self.lanes, halving, len(self.folds))

    def step_seconds(self) -> float:
        """Return the time of one training step of all heads; the fastest of a few."""
        training, batches = self.training_of(self.new_heads()), self.lanes.training()
        epoch = iter(batches)
        return fastest(lambda: training.step(next(epoch)), len(batches), self.folds[0].features)


def step_seconds_alone(data: TrainingData, settings: TrainConfig, seed: int) -> float:
    """Return the time of one training step of a single head, the fastest of a few; Lightning's part
    of it, about a millisecond, is left out."""
    head = data.new_head(settings, seed)
    of_head, rounds = StepOfHead(head, settings.bound), rounded_in_steps(head, settings)
    optimiser = torch.optim.AdamW(optimiser_groups(head, settings), fused=True)
    batches = PairBatches(data.features, data.train, settings.batch_size, seed)
    epoch = iter(batches)

    def step() -> None:
        optimiser.zero_grad()
        batch = next(epoch)
        margin_B, *excess = of_head.in_training(batch, rounds)
        loss = LOSSES[settings.loss](margin_B, batch.label).mean()
        sum((beyond_B.sum() for beyond_B in excess), loss).backward()
        optimiser.step()

    return fastest(step, len(batches), data.features)


def fastest(step: Callable[[], None], batches: int, features: Features) -> float:
    """Return the least time that a step takes, of as many tries as there are batches, at most
    a few."""
    times = []
    with deterministic(), torch.enable_grad():
        for _ in range(min(PROBE_STEPS, batches)):
            began = time.perf_counter()
            step()
            if features.device.type == "cuda":
                torch.cuda.synchronize(features.device)
            times.append(time.perf_counter() - began)
    return min(times)
