"""Pairs joined to cached features, in batches made by index: no worker, no copy per row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pal.cache.mapped import Features
from pal.cache.reader import FeatureStore
from pal.dataset import ids_of
from pal.errors import TrainError
from pal.train.heads.things import Table, Things

NO_USER = -1
NO_PROMPTS = "this head reads prompts, but the dataset has none; use --head pal-a"


class Judged(NamedTuple):
    """The things whose liking a margin is a difference of, (n, 2), and with which sign, (n, 2)."""

    thing: Tensor
    sign: Tensor

    def take(self, chosen: Tensor | slice) -> Judged:
        return Judged(self.thing[chosen], self.sign[chosen])


class Batch(NamedTuple):
    """B comparisons with their features, row by row; ``prompt`` is None for heads that read no
    prompt."""

    prompt: Tensor | None
    first: Tensor
    second: Tensor
    user: Tensor
    label: Tensor


class Step(NamedTuple):
    """B comparisons for heads to learn from or to judge, each distinct thing once."""

    things: Things
    user: Tensor
    label: Tensor
    real: Tensor | None = None
    """(B,) 1 for a comparison, 0 for a row that only fills the batch up; None: all are real"""
    judged: Judged | None = None
    """where training knows things by name (``pal.train.priors``)"""


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
    judged: Judged | None = None

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

    def content(self, rows: int) -> Tensor:
        """Return numbers (B,) that are equal where the same is compared; ``rows``: of the table of
        features."""
        pair = self.first * rows + self.second
        if self.prompt is None:
            return pair
        return self.prompt * len(pair) + pair.unique(return_inverse=True)[1]

    def take(self, chosen: Tensor | slice) -> Pairs:
        """Return some of the comparisons."""
        return Pairs(
            None if self.prompt is None else self.prompt[chosen],
            self.first[chosen],
            self.second[chosen],
            self.user[chosen],
            self.label[chosen],
            None if self.judged is None else self.judged.take(chosen),
        )

    def batch(self, features: Features, chosen: Tensor | slice) -> Batch:
        """Gather the features of some comparisons."""
        prompt = None if self.prompt is None else features[self.prompt[chosen]]
        return Batch(
            prompt,
            features[self.first[chosen]],
            features[self.second[chosen]],
            self.user[chosen],
            self.label[chosen],
        )

    def step(self, features: Features, chosen: Tensor | slice) -> Step:
        """Gather the features of the distinct things in some comparisons."""
        items = torch.cat([self.first[chosen], self.second[chosen]])
        prompt = None if self.prompt is None else Table.of(features, self.prompt[chosen])
        return Step(
            Things(prompt, Table.of(features, items)),
            self.user[chosen],
            self.label[chosen],
            judged=None if self.judged is None else self.judged.take(chosen),
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

    def __init__(
        self,
        features: Features,
        pairs: Pairs,
        batch_size: int,
        seed: int | None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """``seed`` None keeps the order of the pairs. ``part``: the number of this process and how
        many there are, each of which has its part of every batch."""
        self.features, self.pairs, self.batch_size = features, pairs, batch_size
        self.rank, self.ranks = part
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        whole, left = divmod(len(self.pairs), self.batch_size)
        is_enough = left >= self.ranks or (left and self.generator is None)
        return whole + bool(is_enough)

    def __iter__(self) -> Iterator[Step]:
        for chosen in self.places():
            yield self.pairs.step(self.features, chosen)

    def places(self) -> Iterator[Tensor]:
        """Yield which pairs are in each batch of an epoch."""
        # drawn on the CPU, so that every device sees the same order
        order = (
            torch.arange(len(self.pairs))
            if self.generator is None
            else torch.randperm(len(self.pairs), generator=self.generator)
        )
        for places in order.to(self.features.device).split(self.batch_size):
            if self.ranks == 1:
                yield places
            elif self.generator is None:  # a part without a comparison adds nothing to a sum
                yield places[self.rank :: self.ranks]
            else:  # of one size, since the mean over processes is that of their means
                size = len(places) // self.ranks
                if size:
                    yield places[self.rank * size : (self.rank + 1) * size]
