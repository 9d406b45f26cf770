"""Unseen users after 0, 1, 2, ... answers: nested shots, repeated draws, one set of judged pairs for all of them.

Everything that can be tuned is tuned on validation users; test users give their shots and are judged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pal.cache.reader import FeatureStore
from pal.chance import draw as draw_of
from pal.config import Config
from pal.errors import EvaluationError
from pal.evaluate.metrics import summarize, user_means
from pal.evaluate.run import predict
from pal.evaluate.ties import TieRule
from pal.tables import PreparedDataset, Split
from pal.train.adapt import Adapted, Answers, Prior, adapt_map, adapt_sgd, ask_in_turn, make_prior, tune_prior
from pal.train.checkpoint import TrainedHead
from pal.train.datamodule import Pairs, drop_without_feature
from pal.train.heads.head import Head

ROWS_AT_ONCE = 8192
DEFAULT_STRENGTH = 0.3
"""evaluation.md 3.12: as good as a tuned one on its generator; used where there are no validation users"""


@dataclass
class NewUsers:
    """Unseen users of one role: the pool their shots come from, and the pairs they are judged on."""

    names: list[str]
    pool: Answers
    judged: Answers
    pool_rows: list[Tensor]
    """each user's rows of the pool, sorted by pair id"""
    salt: str
    asked: Tensor | None = None
    """(most, U) rows of the pool in the order they were asked for; None: in random order"""

    def shots(self, count: int, repeat: int) -> Answers:
        """Return the first ``count`` answers of every user in the order of one draw; smaller counts are nested."""
        if self.asked is not None:
            return self.pool.take(self.asked[:count].flatten())
        chosen = []
        for name, rows in zip(self.names, self.pool_rows, strict=True):
            order = draw_of("shot", self.salt, f"{name}\x1f{repeat}", len(rows), count)
            chosen.append(rows[torch.from_numpy(order.astype(np.int64))])
        return self.pool.take(torch.cat(chosen))


@torch.no_grad()
def new_users(trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore, role: Split) -> NewUsers | None:
    """Return the unseen users who have pairs in split ``role`` (val or test), or None where there are none.

    Raises EvaluationError for a user who is to be judged but has no adaptation pair.
    """
    judged = drop_without_feature(dataset.pairs(role, "unseen"), store).sort("pair_id")
    pool = drop_without_feature(dataset.pairs("train", "unseen"), store).sort("pair_id")
    names = judged["user_id"].unique().sort().to_list()
    if not names:
        return None
    pool = pool.filter(pl.col("user_id").is_in(names))
    idle = sorted(set(names) - set(pool["user_id"].unique()))
    if idle:
        raise EvaluationError(
            f"{len(idle)} unseen users have no pair to adapt from, e.g. {idle[0]!r}; give them answers or drop them"
        )
    answers = [prepare_answers(trained, frame, store, names) for frame in (pool, judged)]
    rows = [(answers[0].user == number).nonzero().squeeze(1) for number in range(len(names))]
    return NewUsers(names, answers[0], answers[1], rows, str(dataset.card["settings"].get("salt", "v1")))


def prepare_answers(trained: TrainedHead, frame: pl.DataFrame, store: FeatureStore, names: list[str]) -> Answers:
    """Join comparisons to features and compute what the head needs of them, users numbered by ``names``."""
    head = trained.head
    pairs = Pairs.join(frame, store, names, head.uses_prompt, "cpu")
    blocks = []
    for start in range(0, len(pairs), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        features = [
            None if which is None else store.gather(which[rows].numpy())
            for which in (pairs.prompt, pairs.first, pairs.second)
        ]
        blocks.append(head.prepare(*features))  # type: ignore[arg-type]
    prepared = tuple(None if part[0] is None else torch.cat(part) for part in zip(*blocks, strict=True))
    return Answers(prepared, pairs.label, pairs.user, len(names))


def choose_prior(trained: TrainedHead, validation: NewUsers | None, count: int) -> Prior:
    """Return the prior for so many shots, tuned on validation users where there are any."""
    if validation is None or count == 0 or trained.head.is_amortised or not trained.head.users.logits.shape[1]:
        return make_prior(trained.head, DEFAULT_STRENGTH)
    return tune_prior(trained.head, validation.shots(count, 0), validation.judged)


def adapt_users(config: Config, head: Head, shots: Answers, judged: Answers, prior: Prior, repeat: int) -> Adapted:
    """Adapt all users at once by the method of the settings; ``judged`` is read by protocol ``released`` alone."""
    if head.is_amortised:
        inferred = head.infer(shots.prepared, shots.label, shots.user, shots.users)
        return Adapted(inferred, inferred)
    released = config.adapt.protocol == "released"
    if (config.adapt.method == "sgd" or released) and len(shots.label):
        return adapt_sgd(head, shots, seed=repeat, judged=judged if released else None)
    return adapt_map(head, shots, prior)


def ask(trained: TrainedHead, validation: NewUsers | None, users: NewUsers, most: int) -> Tensor:
    """Return what to ask each user in turn, (most, U) rows of the pool; raises EvaluationError for other heads."""
    if trained.head.is_amortised or not trained.head.users.logits.shape[1]:
        raise EvaluationError(
            f"head {trained.facts['train']['head']} has no uncertain user weights to ask about; "
            f"adapt it without --active"
        )
    return ask_in_turn(trained.head, users.pool, choose_prior(trained, validation, min(most, 5)), most)


def few_shot(config: Config, trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore) -> dict[str, Any]:
    """Return ``test_unseen`` by number of shots, and the seconds that adaptation itself took.

    Each cell averages ``adapt.repeats`` draws within a user before anything else. ``harmed_vs_0`` is the share
    of users who do worse than with no answer at all.
    """
    users = new_users(trained, dataset, store, "test")
    if users is None:
        raise EvaluationError(f"dataset {dataset.name} has no unseen users with test pairs; prepare it with some")
    shallowest = min(len(rows) for rows in users.pool_rows)
    too_many = [n for n in config.adapt.shots if n > shallowest]
    if too_many:
        raise EvaluationError(
            f"{max(too_many)} shots were asked for, but an unseen user has only {shallowest} adaptation pairs; "
            f"lower --shots or prepare the dataset with more pairs per user"
        )
    validation = new_users(trained, dataset, store, "val")
    if config.adapt.active:
        users.asked = ask(trained, validation, users, max(config.adapt.shots))
    frame = drop_without_feature(dataset.pairs("val", "seen"), store)
    ties = TieRule.choose(config.evaluate.ties, predict(trained, frame, store, store.features()))
    cells: dict[str, Any] = {}
    seconds, zero_shot = 0.0, None
    every_label = users.judged.label.double().numpy()
    keep = ties.keeps(every_label)
    label, number = every_label[keep], users.judged.user.numpy()[keep]
    if not len(label):
        raise EvaluationError("all pairs to be judged are ties, and evaluate.ties = 'drop' leaves none; use half")
    for count in sorted({0, *config.adapt.shots}):
        prior = choose_prior(trained, validation, count)
        margins = []
        for repeat in range(config.adapt.repeats if count and not config.adapt.active else 1):
            began = time.perf_counter()
            adapted = adapt_users(config, trained.head, users.shots(count, repeat), users.judged, prior, repeat)
            seconds += time.perf_counter() - began
            with torch.no_grad():
                margin = trained.head.prepared_margin(users.judged.prepared, adapted.codes, users.judged.user)
            margins.append(margin.double().numpy()[keep])
        repeats = len(margins)
        joined = np.concatenate(margins), np.tile(label, repeats), np.tile(number, repeats)
        right = ties.credit(*joined[:2])
        per_user = user_means(right, joined[2])
        zero_shot = per_user if zero_shot is None else zero_shot
        cell = summarize(*joined, config.evaluate.bootstrap, config.evaluate.ece_bins, right)
        cell |= {"n_pairs": len(label), "repeats": repeats, "harmed_vs_0": float((per_user < zero_shot).mean())}
        cell |= ties.facts(every_label)
        if count in config.adapt.shots:
            cells[str(count)] = cell
    return {
        "test_unseen": cells,
        "seconds": round(seconds, 4),
        "n_users": len(users.names),
        "method": _method(config, trained.head),
        "protocol": config.adapt.protocol,
    }


def _method(config: Config, head: Head) -> str:
    """Name what was done, in words that cannot be taken for another protocol."""
    if head.is_amortised:
        return "inferred"
    if config.adapt.protocol == "released":
        return "sgd, epoch chosen on the test pairs"
    return config.adapt.method + (", active" if config.adapt.active else "")
