"""Unseen users after 0, 1, 2, ... answers: nested shots, repeated draws, one set of judged pairs
for all of them.

Everything that can be tuned is tuned on validation users; test users give their shots and are
judged.
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
from pal.chance import words
from pal.config import Config
from pal.dataset import PreparedDataset, Split, ids_of
from pal.errors import EvaluationError
from pal.evaluate.metrics import summarize, user_means
from pal.evaluate.predict import predict
from pal.evaluate.ties import TieRule
from pal.train.adapt.map import (
    Adapted,
    Answers,
    Prior,
    adapt_map,
    adapt_sgd,
    ask_in_turn,
    make_prior,
    tune_prior,
)
from pal.train.heads.head import Head
from pal.train.pairs import Pairs, drop_without_feature
from pal.train.run_record import TrainedHead

ROWS_AT_ONCE = 8192
DEFAULT_STRENGTH = 0.3
"""evaluation.md 3.12: as good as a tuned one on its generator; used where there are no validation
users"""


@dataclass
class NewUsers:
    """Unseen users of one role: the pool their shots come from, and the pairs they are judged
    on."""

    names: list[str]
    pool: Answers
    judged: Answers
    pool_ids: np.ndarray
    """(B,) S16, the pair behind each row of the pool"""
    salt: str
    left_out: int = 0
    """users with pairs to judge who have too few answers to take part"""
    asked: Tensor | None = None
    """(most, U) rows of the pool in the order they were asked for; None: in random order"""

    def shots(self, count: int, repeat: int) -> Answers:
        """Return the first ``count`` answers of every user in the order of one draw; smaller counts
        are nested.

        A user with fewer gives all, which no test user does: the panel is made of those who have
        enough.
        """
        if self.asked is not None:
            return self.pool.take(self.asked[:count].flatten())
        user = self.pool.user.numpy()
        order = np.lexsort((words("shot", self.salt, f"{repeat}", self.pool_ids), user))
        size = np.bincount(user, minlength=len(self.names))
        place = np.arange(len(user)) - np.repeat(size.cumsum() - size, size)
        return self.pool.take(torch.from_numpy(order[place < count]))


@torch.no_grad()
def new_users(
    trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore, role: Split, least: int = 0
) -> NewUsers | None:
    """Return the unseen users who have pairs in split ``role`` (val or test) and ``least`` answers
    to adapt from.

    The others are counted, not judged (evaluation.md 1.3: a balanced panel). None where the split
    has no unseen user at all; raises EvaluationError where nobody has so many answers.
    """
    judged, pool = (
        drop_without_feature(dataset.pairs(split, "unseen"), store).sort("user_id", "pair_id")
        for split in (role, "train")
    )
    everybody = judged["user_id"].unique().sort().to_list()
    if not everybody:
        return None
    answers = dict(pool["user_id"].value_counts().iter_rows())
    names = [name for name in everybody if answers.get(name, 0) >= least]
    if not names:
        most = max(answers.get(name, 0) for name in everybody)
        raise EvaluationError(
            f"{least} shots were asked for, but no unseen user of dataset {dataset.name} has more "
            f"than {most} "
            f"adaptation pairs; use --shots with at most {most}"
        )
    pool, judged = (frame.filter(pl.col("user_id").is_in(names)) for frame in (pool, judged))
    known, to_judge = (prepare_answers(trained, frame, store, names) for frame in (pool, judged))
    salt = str(dataset.card["settings"].get("salt", "v1"))
    return NewUsers(
        names, known, to_judge, ids_of(pool["pair_id"]), salt, len(everybody) - len(names)
    )


def prepare_answers(
    trained: TrainedHead, frame: pl.DataFrame, store: FeatureStore, names: list[str]
) -> Answers:
    """Join comparisons to features and compute what the head needs of them, users numbered by
    ``names``."""
    head = trained.head
    pairs = Pairs.join(frame, store, names, head.uses_prompt, "cpu")
    blocks = []
    for start in range(0, max(len(pairs), 1), ROWS_AT_ONCE):  # of no pairs, one block without rows
        rows = slice(start, start + ROWS_AT_ONCE)
        features = [
            None if which is None else store.gather(which[rows].numpy())
            for which in (pairs.prompt, pairs.first, pairs.second)
        ]
        blocks.append(head.prepare(*features))  # type: ignore[arg-type]
    prepared = tuple(
        None if part[0] is None else torch.cat(part) for part in zip(*blocks, strict=True)
    )
    return Answers(prepared, pairs.label, pairs.user, len(names))


def choose_prior(trained: TrainedHead, validation: NewUsers | None, count: int) -> Prior:
    """Return the prior for so many shots, tuned on validation users where there are any."""
    if (
        validation is None
        or count == 0
        or trained.head.is_amortised
        or not trained.head.users.logits.shape[1]
    ):
        return make_prior(trained.head, DEFAULT_STRENGTH)
    return tune_prior(trained.head, validation.shots(count, 0), validation.judged)


def adapt_users(
    config: Config, head: Head, shots: Answers, judged: Answers, prior: Prior, repeat: int
) -> Adapted:
    """Adapt all users at once by the method of the settings; ``judged`` is read by protocol
    ``released`` alone."""
    if head.is_amortised:
        inferred = head.infer(shots.prepared, shots.label, shots.user, shots.users)
        return Adapted(inferred, inferred)
    released = config.adapt.protocol == "released"
    if (config.adapt.method == "sgd" or released) and len(shots.label):
        return adapt_sgd(head, shots, seed=repeat, judged=judged if released else None)
    return adapt_map(head, shots, prior)


def ask(trained: TrainedHead, validation: NewUsers | None, users: NewUsers, most: int) -> Tensor:
    """Return what to ask each user in turn, (most, U) rows of the pool; raises EvaluationError for
    other heads."""
    if trained.head.is_amortised or not trained.head.users.logits.shape[1]:
        raise EvaluationError(
            f"head {trained.facts['train']['head']} has no uncertain user weights to ask about; "
            f"adapt it without --active"
        )
    return ask_in_turn(
        trained.head, users.pool, choose_prior(trained, validation, min(most, 5)), most
    )


def few_shot(
    config: Config, trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore
) -> dict[str, Any]:
    """Return ``test_unseen`` by number of shots, and the seconds that adaptation itself took.

    All cells judge the same pairs of the same users: those with as many answers as the largest
    number of shots; ``n_users_left_out`` counts the others. Each cell averages ``adapt.repeats``
    draws within a user before anything else. ``harmed_vs_0`` is the share of users who do worse
    than with no answer at all.
    """
    users = new_users(trained, dataset, store, "test", max(config.adapt.shots, default=0))
    if users is None:
        raise EvaluationError(
            f"dataset {dataset.name} has no unseen users with test pairs; prepare it with some"
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
        raise EvaluationError(
            "all pairs to be judged are ties, and evaluate.ties = 'drop' leaves none; use half"
        )
    for count in sorted({0, *config.adapt.shots}):
        prior = choose_prior(trained, validation, count)
        margins = []
        for repeat in range(config.adapt.repeats if count and not config.adapt.active else 1):
            began = time.perf_counter()
            adapted = adapt_users(
                config, trained.head, users.shots(count, repeat), users.judged, prior, repeat
            )
            seconds += time.perf_counter() - began
            with torch.no_grad():
                margin = trained.head.prepared_margin(
                    users.judged.prepared, adapted.codes, users.judged.user
                )
            margins.append(margin.double().numpy()[keep])
        repeats = len(margins)
        joined = np.concatenate(margins), np.tile(label, repeats), np.tile(number, repeats)
        right = ties.credit(*joined[:2])
        per_user = user_means(right, joined[2])
        zero_shot = per_user if zero_shot is None else zero_shot
        cell = summarize(*joined, config.evaluate.bootstrap, config.evaluate.ece_bins, right)
        cell |= {
            "n_pairs": len(label),
            "repeats": repeats,
            "harmed_vs_0": float((per_user < zero_shot).mean()),
        }
        cell |= ties.facts(every_label)
        if count in config.adapt.shots:
            cells[str(count)] = cell
    return {
        "test_unseen": cells,
        "seconds": round(seconds, 4),
        "n_users": len(users.names),
        "n_users_left_out": users.left_out,
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
