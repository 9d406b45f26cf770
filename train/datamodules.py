"""Batches of pairs as Lightning's trainer asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import lightning.pytorch as lightning

from pal.cache.mapped import Features
from pal.train.pairs import LaneBatches, PairBatches, Pairs


class PairsDataModule(lightning.LightningDataModule):
    """Training and validation pairs of the seen users for one head, features resident on the
    device.

    Under a Trainer of several processes each has its part of every batch; an epoch's last training
    batch loses what cannot be shared equally.
    """

    def __init__(
        self, features: Features, train: Pairs, val: Pairs, batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self.features, self.train_pairs, self.val_pairs = features, train, val
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> PairBatches:
        return PairBatches(
            self.features, self.train_pairs, self.batch_size, self.seed, self._part()
        )

    def val_dataloader(self) -> PairBatches:
        size = 8 * self.batch_size
        return PairBatches(self.features, self.val_pairs, size, None, self._part())

    def _part(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


@dataclass
class Lane:
    """What some heads of a stack learn from, and in which order."""

    train: Pairs
    val: Pairs
    seed: int


class LanesDataModule(lightning.LightningDataModule):
    """The same for a stack of heads: lanes side by side, features resident on the device."""

    def __init__(self, features: Features, lanes: Sequence[Lane], batch_size: int) -> None:
        super().__init__()
        self.features, self.lanes, self.batch_size = features, list(lanes), batch_size

    def train_dataloader(self) -> LaneBatches:
        pairs, seeds = [lane.train for lane in self.lanes], [lane.seed for lane in self.lanes]
        return LaneBatches(self.features, pairs, self.batch_size, seeds)

    def val_dataloader(self) -> LaneBatches:
        """Where all lanes share their pairs, there is one batch for all; of a size that takes no
        more memory than a training step."""
        pairs = [lane.val for lane in self.lanes]
        if all(one is pairs[0] for one in pairs):
            pairs = pairs[:1]
        return LaneBatches(self.features, pairs, 2 * self.batch_size, [None] * len(pairs))
