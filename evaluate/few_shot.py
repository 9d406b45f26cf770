"""Unseen users and the answers they are adapted by: nested shots, repeated draws.

Everything that can be tuned is tuned on validation users; test users give their shots and are
judged (``panel.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from torch import Tensor

from pal.cache.reader import FeatureStore
from pal.chance import words
from pal.config import AdaptConfig
from pal.dataset import PreparedDataset, Split, ids_of
from pal.errors import EvaluationError
from pal.evaluate.crossed import OTHER_GROUP, PROMPT_GROUP, with_prompt_group
from pal.evaluate.predict import readable
from pal.train.adapt.active import ask_in_turn
from pal.train.adapt.answers import Answers, Known
from pal.train.adapt.average import seen_vectors
from pal.train.adapt.descent import adapt_sgd
from pal.train.adapt.map import Adapted, adapt_map
from pal.train.adapt.prior import (
    DEFAULT_STRENGTH,
    TUNED_SHOTS,
    Prior,
    Priors,
    make_prior,
    tuned_for,
)
from pal.train.adapt.tune import tune_prior
from pal.train.heads.head import Head
from pal.train.pairs import Pairs, drop_without_feature
from pal.train.prepared import prepared
from pal.train.run_record import TrainedHead

USUAL_SHOTS = (0, *TUNED_SHOTS)
"""answers per new user where nobody says how many, as far as they can give them"""


@dataclass
class NewUsers:
    """Unseen users of one role: the pool their shots come from, and the pairs they are judged
    on."""

    names: list[str]
    pool: Answers
    judged: Answers
    prompt_groups: np.ndarray
    """(2, B) prompt group and other group of the judged pairs"""
    pool_ids: np.ndarray
    """(B,) S16, the pair behind each row of the pool"""
    salt: str
    asked: Tensor | None = None
    """(most, U) rows of the pool in the order they were asked for; None: in random order"""

    def shots(self, count: int, repeat: int) -> Answers:
        """Return the first ``count`` answers of every user in the order of one draw; smaller counts
        are nested.

        A user with fewer gives all, which no test user does: the panel is made of those who have
        enough.
        """
        if self.asked is not None:
            rows = self.asked[:count].flatten()
            return self.pool.take(rows[rows >= 0])
        user = self.pool.user.numpy()
        order = np.lexsort((words("shot", self.salt, f"{repeat}", self.pool_ids), user))
        size = np.bincount(user, minlength=len(self.names))
        place = np.arange(len(user)) - np.repeat(size.cumsum() - size, size)
        return self.pool.take(torch.from_numpy(order[place < count]))


class Trial(NamedTuple):
    """A head and what it is tried on: of cross-fitting, each head and its fold."""

    trained: TrainedHead
    dataset: PreparedDataset
    store: FeatureStore


def answers_of_unseen(
    trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore, role: Split
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return what unseen users are judged on in split ``role`` (val or test), and what they can be
    adapted by, both by user and pair."""
    judged, pool = (
        readable(drop_without_feature(dataset.pairs(split, "unseen"), store), trained.head).sort(
            "user_id", "pair_id"
        )
        for split in (role, "train")
    )
    return judged, pool


def answers_of_each(trials: Sequence[Trial]) -> dict[str, int]:
    """Return how many answers each unseen user can give wherever the user is judged; raises
    EvaluationError where nobody is judged."""
    fewest: dict[str, int] = {}
    for trial in trials:
        judged, pool = answers_of_unseen(*trial, "test")
        answers = Counter(pool["user_id"])
        for name in judged["user_id"].unique():
            fewest[name] = min(answers[name], fewest.get(name, answers[name]))
    if not fewest:
        raise EvaluationError(
            f"dataset {trials[0].dataset.name} has no unseen users with test pairs; prepare it "
            f"with some"
        )
    return fewest


def shots_that_fit(trials: Sequence[Trial], counts: Sequence[int]) -> tuple[int, ...]:
    """Return those numbers of shots that at least half of the unseen users can give."""
    given = answers_of_each(trials).values()
    return tuple(
        count for count in counts if 2 * sum(answers >= count for answers in given) >= len(given)
    )


def balanced(trials: Sequence[Trial], least: int) -> tuple[list[str], int]:
    """Return the unseen users with so many answers wherever they are judged, and how many have
    fewer (evaluation.md 1.3: a balanced panel); raises EvaluationError where nobody has."""
    fewest = answers_of_each(trials)
    names = sorted(name for name, count in fewest.items() if count >= least)
    if not names:
        most = max(fewest.values())
        raise EvaluationError(
            f"{least} shots were asked for, but no unseen user of dataset "
            f"{trials[0].dataset.name} has more than {most} adaptation pairs; use --shots with at "
            f"most {most}"
        )
    return names, len(fewest) - len(names)


@torch.no_grad()
def new_users(
    trained: TrainedHead,
    dataset: PreparedDataset,
    store: FeatureStore,
    role: Split,
    names: list[str] | None = None,
) -> NewUsers | None:
    """Return the unseen users of a split with what they are judged on, or of ``names`` those;
    None where there is no such user."""
    judged, pool = answers_of_unseen(trained, dataset, store, role)
    if names is None:
        names = judged["user_id"].unique().sort().to_list()
    if not names:
        return None
    pool, judged = (frame.filter(pl.col("user_id").is_in(names)) for frame in (pool, judged))
    known, to_judge = (prepare_answers(trained, frame, store, names) for frame in (pool, judged))
    groups = with_prompt_group(judged).select(PROMPT_GROUP, OTHER_GROUP).to_numpy().T
    return NewUsers(names, known, to_judge, groups, ids_of(pool["pair_id"]), dataset.salt)


def prepare_answers(
    trained: TrainedHead, frame: pl.DataFrame, store: FeatureStore, names: list[str]
) -> Answers:
    """Join comparisons to features and compute what the head needs of them, users numbered by
    ``names``."""
    head = trained.head
    pairs = Pairs.join(frame, store, names, head.uses_prompt, "cpu")
    found = prepared(head, pairs, lambda rows: store.gather(rows.numpy()))
    content = pairs.content(store.rows)
    known = None if head.is_amortised else Known.of(content, len(seen_vectors(head)))
    return Answers(found, pairs.label, pairs.user, len(names), content, known)


def choose_prior(trained: TrainedHead, validation: NewUsers | None, count: int) -> Prior:
    """Return the prior for so many shots, tuned on validation users where there are any."""
    if validation is None or count == 0 or not is_tuned(trained.head):
        return make_prior(trained.head, DEFAULT_STRENGTH)
    return tune_prior(trained.head, validation.shots(tuned_for(count), 0), validation.judged)


def is_tuned(head: Head) -> bool:
    """Say whether new users of a head have a prior to be tuned."""
    has_numbers = head.users.logits.shape[1] > 0
    return has_numbers and not head.is_amortised and not head.users.has_prior


def choose_priors(trained: TrainedHead, validation: NewUsers | None) -> Priors:
    """Return the priors for every number of shots, those of ``choose_prior``: what an export needs
    for users who come later."""
    if validation is None or not is_tuned(trained.head):
        return Priors.always(make_prior(trained.head, DEFAULT_STRENGTH))
    most = max(Counter(validation.pool.user.tolist()).values(), default=0)
    # who has given all answers gives the same ones for every larger number
    counts = [shots for shots in TUNED_SHOTS if shots == 1 or tuned_for(shots - 1) < most]
    return Priors({shots: choose_prior(trained, validation, shots) for shots in counts})


def adapt_users(
    settings: AdaptConfig,
    trained: TrainedHead,
    shots: Answers,
    judged: Answers,
    prior: Prior,
    repeat: int,
) -> Adapted:
    """Adapt all users at once by the method of the settings; ``judged`` is read by protocol
    ``released`` alone."""
    head = trained.head
    if head.is_amortised:
        inferred = head.infer(shots.prepared, shots.label, shots.user, shots.users)
        return Adapted(inferred, inferred)
    released = settings.protocol == "released"
    if (settings.method == "sgd" or released) and len(shots.label):
        told = judged if released else None
        return adapt_sgd(head, shots, repeat, told, trained.metadata.train.loss)
    return adapt_map(head, shots, prior, with_covariance=averages(settings, head))


def averages_strangers(settings: AdaptConfig) -> bool:
    """Say whether users without an answer are predicted as in an evaluation, by the mean
    probability over the seen ones: but for what repeats the released code."""
    return settings.method == "map" and settings.protocol == "strict"


def averages(settings: AdaptConfig, head: Head) -> bool:
    """Say whether probabilities are averages over who a user may be, and not those of one vector:
    where MAP is followed, of heads that have numbers of users."""
    has_numbers = not head.is_amortised and head.users.logits.shape[1] > 0
    return averages_strangers(settings) and has_numbers


def adapt_one(
    trained: TrainedHead, dataset: PreparedDataset, store: FeatureStore, user: str
) -> Tensor | None:
    """Return the vector of one unseen user from all the user's adaptation pairs, (R,).

    None where the dataset has no such pairs.
    """
    pairs = readable(drop_without_feature(dataset.pairs("train", "unseen"), store), trained.head)
    pairs = pairs.filter(pl.col("user_id") == user).sort("pair_id")
    if pairs.is_empty():
        return None
    answers = prepare_answers(trained, pairs, store, [user])
    prior = choose_prior(trained, new_users(trained, dataset, store, "val"), len(pairs))
    adapted = adapt_users(AdaptConfig(), trained, answers, answers, prior, 0)
    return adapted.vectors[0].detach()


def ask(trained: TrainedHead, validation: NewUsers | None, users: NewUsers, most: int) -> Tensor:
    """Return what to ask each user in turn, (most, U) rows of the pool; raises EvaluationError for
    other heads."""
    head = trained.head
    if head.is_amortised or not head.users.logits.shape[1]:
        raise EvaluationError(
            f"head {trained.metadata.train.head} has no uncertain user weights to ask about; "
            f"adapt it without --active"
        )
    return ask_in_turn(head, users.pool, choose_prior(trained, validation, min(most, 5)), most)
