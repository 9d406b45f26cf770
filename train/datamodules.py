"""Batches of pairs as Lightning's trainer asks for them."""

from __future__ import annotations

import lightning.pytorch as lightning

from pal.cache.mapped import Features
from pal.train.pairs import PairBatches, Pairs


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
