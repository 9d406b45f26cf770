"""What the heads of a stack learn from, side by side: each its own pairs in its own order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn

from pal.cache.mapped import Features
from pal.train.heads.things import alike
from pal.train.pairs import PairBatches, Pairs, Step


@dataclass
class Lane:
    """What some heads of a stack learn from, and in which order."""

    train: Pairs
    val: Pairs
    seed: int


@dataclass
class Lanes:
    """The lanes of a stack and the features that they share."""

    features: Features
    each: Sequence[Lane]
    batch_size: int

    def __len__(self) -> int:
        return len(self.each)

    def training(self) -> LaneBatches:
        """Return what heads learn from; each time that it is gone through is an epoch."""
        pairs, seeds = [lane.train for lane in self.each], [lane.seed for lane in self.each]
        return LaneBatches(self.features, pairs, self.batch_size, seeds)

    def validation(self) -> LaneBatches:
        """Return what heads are judged by, in batches that take no more memory than a training
        step; where all lanes share their pairs, there is one batch for all."""
        pairs = [lane.val for lane in self.each]
        if all(one is pairs[0] for one in pairs):
            pairs = pairs[:1]
        return LaneBatches(self.features, pairs, 2 * self.batch_size, [None] * len(pairs))


class LaneBatches:
    """Batches of several lanes side by side: one list a step, each in its own lane's order.

    A lane is what some heads of a stack learn from: pairs (of a fold, say) in the order of a seed.
    Batches of a step have one size: shorter ones are filled up with a pair that is not real, and
    lanes that are through before the longest end with batches of nothing else. So are their tables
    of things.
    """

    def __init__(
        self,
        features: Features,
        lanes: Sequence[Pairs],
        batch_size: int,
        seeds: Sequence[int | None],
    ) -> None:
        self.streams = [
            PairBatches(features, pairs, batch_size, seed)
            for pairs, seed in zip(lanes, seeds, strict=True)
        ]

    def __len__(self) -> int:
        return max(map(len, self.streams))

    def __iter__(self) -> Iterator[list[Step]]:
        nothing = torch.zeros(0, dtype=torch.long, device=self.streams[0].features.device)
        epochs = [stream.places() for stream in self.streams]
        for places in zip_longest(*epochs, fillvalue=nothing):
            size = max(map(len, places))
            steps = [
                filled_step(stream, place, size)
                for stream, place in zip(self.streams, places, strict=True)
            ]
            things = alike([step.things for step in steps])
            yield [step._replace(things=own) for step, own in zip(steps, things, strict=True)]


def filled_step(stream: PairBatches, places: Tensor, size: int) -> Step:
    """Return the batch of some pairs, brought to a size with the first pair, which is not real."""
    missing = size - len(places)
    if not missing:
        return stream.pairs.step(stream.features, places)
    step = stream.pairs.step(stream.features, nn.functional.pad(places, (0, missing)))
    real = torch.ones_like(step.label)
    real[len(places) :] = 0.0
    return step._replace(real=real)
