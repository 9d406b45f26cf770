"""Pairs joined to cached features, in batches made by index: no worker, no copy per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import lightning.pytorch as lightning
import numpy as np
import polars as pl
import torch
from torch import Tensor

from pal.cache.reader import FeatureStore
from pal.dataset import ids_of
from pal.errors import TrainError

NO_USER = -1
NO_PROMPTS = "this head reads prompts, but the dataset has none; use --head pal-a"


class Batch(NamedTuple):
    """B comparisons with their features; ``prompt`` is None for heads that read no prompt."""

    prompt: Tensor | None
    first: Tensor
    second: Tensor
    user: Tensor
    label: Tensor


@dataclass
class Pairs:
    """Comparisons as row numbers, all (n,): rows of the feature table, and of the head's user
    table."""

    prompt: Tensor | None
    first: Tensor
    second: Tensor
    user: Tensor
    """NO_USER for users outside the table"""
    label: Tensor

    @classmethod
    def join(
        cls,
        frame: pl.DataFrame,
        store: FeatureStore,
        users: list[str],
        with_prompt: bool,
        device: str,
    ) -> Pairs:
        """Join rows of ``pairs.parquet`` to the cache; raises TrainError where prompts are needed
        and missing."""

        def rows(column: str) -> Tensor:
            # Items that stage one filed as errors have no feature; drop_without_feature removed
            # their pairs.
            return torch.from_numpy(store.index(ids_of(frame[column]))).to(device)

        prompt = None
        if with_prompt:
            if frame["prompt_id"].null_count():
                raise TrainError(NO_PROMPTS)
            prompt = rows("prompt_id")
        table = pl.DataFrame(
            {"user_id": users, "number": range(len(users))},
            {"user_id": pl.String, "number": pl.Int64},
        )
        joined = frame.select("user_id").join(
            table, on="user_id", how="left", maintain_order="left"
        )
        number = torch.from_numpy(joined["number"].fill_null(NO_USER).to_numpy(writable=True)).to(
            device
        )
        label = torch.from_numpy(frame["label"].to_numpy().astype(np.float32))
        return cls(prompt, rows("first_id"), rows("second_id"), number, label.to(device))

    def __len__(self) -> int:
        return len(self.label)

    def batch(self, features: Tensor, chosen: Tensor | slice) -> Batch:
        """Gather the features of some comparisons."""
        prompt = None if self.prompt is None else features[self.prompt[chosen]]
        return Batch(
            prompt,
            features[self.first[chosen]],
            features[self.second[chosen]],
            self.user[chosen],
            self.label[chosen],
        )

    def item_rows(self) -> Tensor:
        """Return the distinct feature rows of all items, sorted."""
        return torch.cat([self.first, self.second]).unique()


def drop_without_feature(frame: pl.DataFrame, store: FeatureStore) -> pl.DataFrame:
    """Leave out pairs of which stage one could not encode an item; they are counted in the cache's
    errors."""
    if not store.manifest.errors:
        return frame
    keep = np.ones(len(frame), bool)
    for column in ("prompt_id", "first_id", "second_id"):
        present = frame[column].is_not_null().to_numpy()
        keep &= (store.index(ids_of(frame[column]), missing="mask") >= 0) | ~present
    return frame.filter(pl.Series(keep))


def with_prompts(frame: pl.DataFrame) -> pl.DataFrame:
    """Leave out pairs without a prompt, which heads that read prompts cannot use."""
    return frame.filter(pl.col("prompt_id").is_not_null())


class PairBatches:
    """Iterates over comparisons once an epoch, in a new order each time or in their own."""

    def __init__(self, features: Tensor, pairs: Pairs, batch_size: int, seed: int | None) -> None:
        """``seed`` None keeps the order of the pairs."""
        self.features, self.pairs, self.batch_size = features, pairs, batch_size
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order: Tensor | None = None
        if self.generator is not None:
            # drawn on the CPU, so that every device sees the same order
            order = torch.randperm(len(self.pairs), generator=self.generator).to(
                self.features.device
            )
        for start in range(0, len(self.pairs), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            yield self.pairs.batch(self.features, chosen if order is None else order[chosen])


class SeedBatches:
    """Batches of several seeds side by side: one list of batches a step, each in its own seed's
    order."""

    def __init__(
        self, features: Tensor, pairs: Pairs, batch_size: int, seeds: Sequence[int]
    ) -> None:
        self.streams = [PairBatches(features, pairs, batch_size, seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self.streams[0])

    def __iter__(self) -> Iterator[list[Batch]]:
        yield from (list(batches) for batches in zip(*self.streams, strict=True))


class PairsDataModule(lightning.LightningDataModule):
    """Training and validation pairs of the seen users, features resident on the device."""

    def __init__(
        self,
        features: Tensor,
        train: Pairs,
        val: Pairs,
        batch_size: int,
        seeds: int | Sequence[int],
    ) -> None:
        """A sequence of seeds gives the training batches of all of them side by side, for a stack
        of heads."""
        super().__init__()
        self.features, self.train_pairs, self.val_pairs = features, train, val
        self.batch_size, self.seeds = batch_size, seeds

    def train_dataloader(self) -> PairBatches | SeedBatches:
        if isinstance(self.seeds, int):
            return PairBatches(self.features, self.train_pairs, self.batch_size, self.seeds)
        return SeedBatches(self.features, self.train_pairs, self.batch_size, self.seeds)

    def val_dataloader(self) -> PairBatches:
        return PairBatches(self.features, self.val_pairs, 8 * self.batch_size, None)
