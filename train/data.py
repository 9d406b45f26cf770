"""What heads are trained from: pairs of the seen users, joined to features on a device."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pal.cache.mapped import Features, features_of
from pal.cache.reader import FeatureStore
from pal.cache.spec import encoder_of
from pal.config import TrainConfig
from pal.dataset import PreparedDataset
from pal.errors import PalWarning, TrainError
from pal.train.build import build_head, holds_votes, reads_prompt, settled
from pal.train.heads.head import Head
from pal.train.heads.standardise import Standardiser
from pal.train.pairs import NO_PROMPTS, Pairs, drop_without_feature, with_prompts
from pal.train.run_record import Log, RunRecord, TrainedHead
from pal.train.solve import Problem

SAME_ITEMS = "all items have the same feature, so there is nothing to learn from; check the encoder"
SAME_PROMPTS = (
    "all prompts have the same feature, so this head, which reads prompts, has nothing to learn "
    "from; use --head pal-a, which reads only items"
)


def seed_all(seed: int) -> None:
    """Set all generators that a head may draw its first weights from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class Fitted(NamedTuple):
    """A head after training."""

    head: Head
    log: Log
    best_epoch: int
    """the epoch it is from; 0 for heads that are solved at once"""


@dataclass
class TrainingData:
    """What all heads of one dataset, encoder and training set share."""

    dataset: PreparedDataset
    store: FeatureStore
    users: list[str]
    """ids of the seen users, sorted: the rows of every head's user table"""
    features: Features
    """(rows, dim) in the dtype of the cache; what is looked up is on the device"""
    train: Pairs
    val: Pairs

    @classmethod
    def load(
        cls,
        settings: TrainConfig,
        dataset: PreparedDataset,
        store: FeatureStore,
        device: str,
        features: Features | None = None,
    ) -> TrainingData:
        """Join the seen users' training and validation pairs to the features, by default those of
        the store.

        Test pairs are not read. A pair without a prompt is left out, with a warning, where the head
        reads prompts; other heads compare its items all the same. Raises TrainError where a split
        is empty.
        """
        reads_prompts = reads_prompt(settled(settings, dataset))
        train = drop_without_feature(dataset.pairs("train", "seen"), store)
        val = drop_without_feature(dataset.pairs("val", "seen"), store)
        if reads_prompts:
            train, val = _with_prompts(dataset.name, train, val)
        train = subset(train, settings.users, settings.pairs_per_user)
        users = train["user_id"].unique().sort().to_list()
        val = val.filter(pl.col("user_id").is_in(users))
        for split, frame in (("train", train), ("val", val)):
            if frame.is_empty():
                raise TrainError(
                    f"dataset {dataset.name} has no {split} pairs of seen users; prepare it with "
                    "more source rows"
                )
        with_prompt = all(frame["prompt_id"].null_count() == 0 for frame in (train, val))
        joined = [Pairs.join(frame, store, users, with_prompt, device) for frame in (train, val)]
        if features is None:
            features = features_of(store, settings.features, device)
        return cls(dataset, store, users, features, *joined)

    @cached_property
    def is_vote(self) -> bool:
        """Whether the same two answers are given to all prompts."""
        return self.train.prompt is not None and holds_votes(self.dataset)

    @property
    def problem(self) -> Problem:
        """The same data, for a head that is solved instead of trained step by step."""
        return Problem(self.features, self.train, self.val, len(self.users))

    def new_head(self, settings: TrainConfig, seed: int) -> Head:
        """Build a head with the weights of a seed, its feature statistics fitted."""
        seed_all(seed)
        head = build_head(settled(settings, self.dataset), self.store.dim, len(self.users))
        if head.uses_prompt and self.train.prompt is None:
            raise TrainError(NO_PROMPTS)
        for name in ("item_scale", "prompt_scale"):
            scaler = getattr(head, name, None)
            if scaler is None:  # only what the head reads: one prompt for all has no scale
                continue
            fitted = getattr(self, name)
            if fitted is not None:
                scaler.load_state_dict(fitted.state_dict())
        return head.to(self.features.device)

    @cached_property
    def item_scale(self) -> Standardiser:
        """Statistics of the training pairs' distinct items, fitted once for all heads."""
        return statistics_of(self.features, self.train.item_rows(), SAME_ITEMS)

    @cached_property
    def prompt_scale(self) -> Standardiser | None:
        """Statistics of the training pairs' distinct prompts, where there are any; raises
        TrainError where all have one prompt."""
        prompt = self.train.prompt
        return None if prompt is None else statistics_of(self.features, prompt, SAME_PROMPTS)

    def trained(
        self, fitted: Fitted, record: RunRecord, seconds: float, head_id: str | None = None
    ) -> TrainedHead:
        """Wrap a head that was fitted to this data; ``record`` is what was known before."""
        head = fitted.head.cpu().eval()
        after = {
            "params": sum(parameter.numel() for parameter in head.parameters()),
            "params_per_user": head.users.logits.shape[1],
            "seconds": round(seconds, 3),
            "best_epoch": fitted.best_epoch,
            "users": self.users,
            "head_id": head_id,
        }
        return TrainedHead(head, record.model_copy(update=after))


def _with_prompts(dataset: str, *frames: pl.DataFrame) -> list[pl.DataFrame]:
    """Return the pairs that have prompts; raises TrainError where none has."""
    missing = [frame["prompt_id"].null_count() for frame in frames]
    every = sum(map(len, frames))
    if sum(missing) and sum(missing) == every:
        raise TrainError(NO_PROMPTS)
    if any(missing):
        warnings.warn(
            f"{sum(missing):,} of {every:,} training and validation pairs of dataset {dataset} "
            "have no prompt and are left out, as this head reads prompts; pal-a uses them",
            PalWarning,
            stacklevel=3,
        )
    return [with_prompts(frame) for frame in frames]


def record_before_training(
    settings: TrainConfig, seed: int, dataset: PreparedDataset, store: FeatureStore, run: str
) -> RunRecord:
    """Return what a run will say of its head, as far as it is known before any work."""
    return RunRecord(
        run=run,
        dataset=dataset.name,
        view=dataset.view,
        item_text=dataset.item_text,
        encoder=store.manifest.encoder,
        untrained=store.manifest.untrained,
        seed=seed,
        dim=store.dim,
        params=0,
        params_per_user=0,
        seconds=0.0,
        best_epoch=0,
        split_digest=dataset.split_digest,
        pairs_digest=dataset.pairs_digest,
        cache_fingerprint=store.fingerprint,
        encoder_spec=encoder_of(store.manifest.spec),
        train=settled(settings, dataset),
        users=[],
    )


def subset(frame: pl.DataFrame, users: int | None, pairs_per_user: int | None) -> pl.DataFrame:
    """Keep the first users by name and each one's first pairs by id, a random but fixed order."""
    if users is not None:
        chosen = frame["user_id"].unique().sort()[:users].to_list()
        frame = frame.filter(pl.col("user_id").is_in(chosen))
    if pairs_per_user is not None:
        frame = frame.filter(pl.int_range(pl.len()).over("user_id") < pairs_per_user)
    return frame


def statistics_of(features: Features, rows: Tensor, same: str) -> Standardiser:
    """Return the statistics of some rows' features; raises TrainError where they are of no use,
    ``same`` where all features are the same."""
    fitted = Standardiser(features.shape[1])
    fitted.fit(features, rows.unique())
    if not bool(torch.isfinite(fitted.mean).all()):  # one NaN or infinity among the rows is enough
        raise TrainError(
            "the cache holds NaN or infinite features; run: pal cache verify, then pal embed"
        )
    if not bool(fitted.scale.any()):
        raise TrainError(same)
    return fitted
