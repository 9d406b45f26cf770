"""Unseen users whom no mixture of a head's prototypes explains, and a head grown for them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import torch

from pal.cache.mapped import features_of
from pal.cache.reader import FeatureStore
from pal.dataset import PreparedDataset
from pal.errors import EvaluationError
from pal.evaluate.few_shot import Trial, balanced, new_users, prepare_answers
from pal.evaluate.predict import pairs_of, readable, require_same_data
from pal.files import locked
from pal.names import require_name
from pal.records import Entry, JsonObject
from pal.train.adapt.grow import grow, outside, require_growable, surprise
from pal.train.adapt.prior import DEFAULT_STRENGTH, make_prior
from pal.train.heads.users import UserWeights
from pal.train.pairs import Pairs, drop_without_feature
from pal.train.run_record import TrainedHead

FEWEST = 10
"""answers below which nothing is said about a user"""


class OutsideUser(Entry):
    """A user whom a head does not explain."""

    user_id: str
    surprise: float
    """mean cross-entropy in nats, every second answer predicted from the others"""


def outside_users(
    trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore
) -> list[OutsideUser]:
    """Return the unseen users outside the prototypes' hull, the most surprising first.

    Their adaptation answers are compared with as many validation answers of each seen user. Users
    with fewer than ten are left out on either side; where that leaves nobody, or for heads without
    prototypes, nobody is named.
    """
    if not isinstance(trained.head.users, UserWeights):
        return []
    frame = pairs_of(dataset, store, trained.users, "val", "seen").sort("pair_id")
    frame = readable(frame, trained.head)
    frame = frame.filter(pl.len().over("user_id") >= FEWEST)
    try:
        names, _ = balanced([Trial(trained, dataset, store)], FEWEST)
    except EvaluationError:  # nobody has as many
        return []
    users = new_users(trained, dataset, store, "test", names)
    if users is None or frame.is_empty():
        return []
    shortest = min(count for _, count in frame["user_id"].value_counts().iter_rows())
    count = min(shortest, int(users.pool.user.bincount().min()))
    frame = frame.filter(pl.int_range(pl.len()).over("user_id") < count)
    names = frame["user_id"].unique().sort().to_list()
    prior = make_prior(trained.head, DEFAULT_STRENGTH)
    seen = surprise(trained.head, prepare_answers(trained, frame, store, names), prior)
    new = surprise(trained.head, users.shots(count, 0), prior)
    far = outside(new, seen).nonzero().squeeze(1)
    found = [
        OutsideUser(user_id=users.names[number], surprise=round(float(new[number]), 4))
        for number in far.tolist()
    ]
    return sorted(found, key=lambda user: -user.surprise)


def grow_run(
    trained: TrainedHead,
    dataset: PreparedDataset,
    store: FeatureStore,
    runs: Path,
    count: int,
    seed: int,
    config: JsonObject,
) -> TrainedHead | None:
    """Add ``count`` prototypes for the users outside a run's hull, as a new run ``<run>-grown``.

    They are learned from those users' adaptation answers; None where there is no such user.
    ``config`` is saved beside the head, to be read by people. Raises EvaluationError where the
    dataset has no unseen users, and TrainError for heads without prototypes to add to.
    """
    require_growable(trained.head, trained.metadata.train)
    require_same_data(trained, dataset, store)
    if dataset.pairs("test", "unseen", ["user_id"]).is_empty():
        raise EvaluationError(
            f"dataset {dataset.name} has no unseen users to grow for; prepare it with some"
        )
    names = [user.user_id for user in outside_users(trained, dataset, store)]
    if not names:
        return None
    frame = drop_without_feature(dataset.pairs("train", "unseen"), store).sort("pair_id")
    frame = readable(frame, trained.head)
    frame = frame.filter(pl.col("user_id").is_in(names))
    pairs = Pairs.join(frame, store, names, trained.head.uses_prompt, "cpu")
    answers = pairs.batch(features_of(store), torch.arange(len(pairs)))
    run = trained.metadata
    head, settings, users = grow(
        trained.head, run.train, trained.users, answers, names, count, seed
    )
    name = require_name("run", f"{run.run}-grown")
    record = run.model_copy(
        update={
            "run": name,
            "grown_from": run.run,
            "head_id": None,
            "params": sum(parameter.numel() for parameter in head.parameters()),
            "params_per_user": settings.k,
            "train": settings,
            "users": users,
        }
    )
    with locked(runs / name):
        record.require_same_run(runs / name, "remove that folder first")
        return TrainedHead(head, record).save(runs / name, config, [{"epoch": 0}])
