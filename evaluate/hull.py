"""Unseen users whom no mixture of a head's prototypes explains, and a head grown for them."""

from __future__ import annotations

import polars as pl
import torch

from pal.cache.reader import FeatureStore
from pal.dataset import PreparedDataset
from pal.errors import EvaluationError
from pal.evaluate.few_shot import DEFAULT_STRENGTH, new_users, prepare_answers
from pal.train.adapt.grow import grow, outside, surprise
from pal.train.adapt.map import make_prior
from pal.train.heads.users import UserWeights
from pal.train.pairs import Pairs, drop_without_feature
from pal.train.run_record import TrainedHead

FEWEST = 10
"""answers below which nothing is said about a user"""


def outside_users(
    trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore
) -> list[dict[str, float | str]]:
    """Return the unseen users outside the prototypes' hull with their surprise, the largest first.

    Their adaptation answers are compared with as many validation answers of each seen user. Users
    with fewer than ten are left out on either side; where that leaves nobody, or for heads without
    prototypes, nobody is named.
    """
    if not isinstance(trained.head.users, UserWeights):
        return []
    frame = drop_without_feature(dataset.pairs("val", "seen"), store).sort("pair_id")
    frame = frame.filter(pl.len().over("user_id") >= FEWEST)
    try:
        users = new_users(trained, dataset, store, "test", FEWEST)
    except EvaluationError:  # nobody has as many
        return []
    if users is None or frame.is_empty():
        return []
    shortest = int(frame.group_by("user_id").len()["len"].min())  # type: ignore[arg-type]
    count = min(shortest, int(users.pool.user.bincount().min()))
    frame = frame.filter(pl.int_range(pl.len()).over("user_id") < count)
    names = frame["user_id"].unique().sort().to_list()
    prior = make_prior(trained.head, DEFAULT_STRENGTH)
    seen = surprise(trained.head, prepare_answers(trained, frame, store, names), prior)
    new = surprise(trained.head, users.shots(count, 0), prior)
    far = outside(new, seen).nonzero().squeeze(1)
    found: list[dict[str, float | str]] = [
        {"user_id": users.names[number], "surprise": round(float(new[number]), 4)}
        for number in far.tolist()
    ]
    return sorted(found, key=lambda user: -float(user["surprise"]))


def grow_for_outside(
    trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore, count: int, seed: int
) -> TrainedHead | None:
    """Return the head with prototypes for the users outside its hull, from their adaptation
    answers; None if none."""
    if dataset.pairs("test", "unseen", ["user_id"]).is_empty():
        raise EvaluationError(
            f"dataset {dataset.name} has no unseen users to grow for; prepare it with some"
        )
    names = [str(user["user_id"]) for user in outside_users(trained, dataset, store)]
    if not names:
        return None
    frame = drop_without_feature(dataset.pairs("train", "unseen"), store).sort("pair_id")
    frame = frame.filter(pl.col("user_id").is_in(names))
    pairs = Pairs.join(frame, store, names, trained.head.uses_prompt, "cpu")
    everything = pairs.batch(store.features(), torch.arange(len(pairs)))
    return grow(trained, everything, names, count, seed)
