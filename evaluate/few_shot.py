"""Unseen users after 0, 1, 2, ... answers: nested shots, repeated draws, one set of judged pairs
for all of them.

Everything that can be tuned is tuned on validation users; test users give their shots and are
judged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from pal.cache.reader import FeatureStore
from pal.chance import words
from pal.config import AdaptConfig, EvaluateConfig
from pal.dataset import PreparedDataset, Split, ids_of
from pal.errors import EvaluationError
from pal.evaluate.crossed import PROMPT_GROUP, Array, Crossing, with_prompt_group
from pal.evaluate.metrics import summarize
from pal.evaluate.predict import pairs_of, predict, readable
from pal.evaluate.records import Cell
from pal.evaluate.ties import TieRule
from pal.train.adapt.active import ask_in_turn
from pal.train.adapt.answers import Answers
from pal.train.adapt.descent import adapt_sgd
from pal.train.adapt.map import Adapted, adapt_map
from pal.train.adapt.prior import DEFAULT_STRENGTH, Prior, make_prior
from pal.train.adapt.tune import tune_prior
from pal.train.heads.head import Head
from pal.train.pairs import Pairs, drop_without_feature
from pal.train.run_record import TrainedHead

ROWS_AT_ONCE = 8192


@dataclass
class NewUsers:
    """Unseen users of one role: the pool their shots come from, and the pairs they are judged
    on."""

    names: list[str]
    pool: Answers
    judged: Answers
    prompt_groups: np.ndarray
    """(B,) of the judged pairs"""
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


class FewShot(NamedTuple):
    """What unseen users reach."""

    cells: dict[str, Cell]
    """by the number of answers"""
    seconds: float
    """that adaptation itself took"""
    n_users: int
    n_users_left_out: int
    method: str
    """what was done, in words that cannot be taken for another protocol"""


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
        readable(drop_without_feature(dataset.pairs(split, "unseen"), store), trained.head).sort(
            "user_id", "pair_id"
        )
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
            f"than {most} adaptation pairs; use --shots with at most {most}"
        )
    pool, judged = (frame.filter(pl.col("user_id").is_in(names)) for frame in (pool, judged))
    known, to_judge = (prepare_answers(trained, frame, store, names) for frame in (pool, judged))
    left_out = len(everybody) - len(names)
    groups = with_prompt_group(judged)[PROMPT_GROUP].to_numpy()
    return NewUsers(names, known, to_judge, groups, ids_of(pool["pair_id"]), dataset.salt, left_out)


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
        first, second = (store.gather(side[rows].numpy()) for side in (pairs.first, pairs.second))
        prompt = None if pairs.prompt is None else store.gather(pairs.prompt[rows].numpy())
        blocks.append(head.prepare(prompt, first, second))
    prepared = tuple(
        None if part[0] is None else torch.cat(part) for part in zip(*blocks, strict=True)
    )
    return Answers(prepared, pairs.label, pairs.user, len(names))


def choose_prior(trained: TrainedHead, validation: NewUsers | None, count: int) -> Prior:
    """Return the prior for so many shots, tuned on validation users where there are any."""
    head = trained.head
    has_numbers = head.users.logits.shape[1] > 0
    if validation is None or count == 0 or head.is_amortised or not has_numbers:
        return make_prior(head, DEFAULT_STRENGTH)
    return tune_prior(head, validation.shots(count, 0), validation.judged)


def adapt_users(
    settings: AdaptConfig, head: Head, shots: Answers, judged: Answers, prior: Prior, repeat: int
) -> Adapted:
    """Adapt all users at once by the method of the settings; ``judged`` is read by protocol
    ``released`` alone."""
    if head.is_amortised:
        inferred = head.infer(shots.prepared, shots.label, shots.user, shots.users)
        return Adapted(inferred, inferred)
    released = settings.protocol == "released"
    if (settings.method == "sgd" or released) and len(shots.label):
        return adapt_sgd(head, shots, seed=repeat, judged=judged if released else None)
    return adapt_map(head, shots, prior)


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
    adapted = adapt_users(AdaptConfig(), trained.head, answers, answers, prior, 0)
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


def few_shot(
    settings: AdaptConfig,
    evaluate: EvaluateConfig,
    trained: TrainedHead,
    dataset: PreparedDataset,
    store: FeatureStore,
) -> FewShot:
    """Adapt unseen users to every number of shots of the settings and judge them.

    All cells judge the same pairs of the same users: those with as many answers as the largest
    number of shots; ``n_users_left_out`` counts the others. Each cell averages ``adapt.repeats``
    draws within a user before anything else.
    """
    users = new_users(trained, dataset, store, "test", max(settings.shots, default=0))
    if users is None:
        raise EvaluationError(
            f"dataset {dataset.name} has no unseen users with test pairs; prepare it with some"
        )
    validation = new_users(trained, dataset, store, "val")
    if settings.active:
        users.asked = ask(trained, validation, users, max(settings.shots))
    panel = _Panel.of(evaluate, trained, dataset, store, users)
    cells: dict[str, Cell] = {}
    seconds, at_zero = 0.0, None
    for count in sorted({0, *settings.shots}):
        prior = choose_prior(trained, validation, count)
        margins = []
        for repeat in range(settings.repeats if count and not settings.active else 1):
            shots = users.shots(count, repeat)
            began = time.perf_counter()
            adapted = adapt_users(settings, trained.head, shots, users.judged, prior, repeat)
            seconds += time.perf_counter() - began
            margins.append(panel.margins(adapted))
        cell, per_user = panel.cell(margins)
        at_zero = per_user if at_zero is None else at_zero
        if count in settings.shots:
            harmed = float((per_user < at_zero).mean())
            cells[str(count)] = cell.model_copy(update={"harmed_vs_0": harmed})
    method = _method(settings, trained.head)
    return FewShot(cells, round(seconds, 4), len(users.names), users.left_out, method)


@dataclass
class _Panel:
    """What all cells have in common: the pairs of all users, and the rule for ties."""

    evaluate: EvaluateConfig
    head: Head
    judged: Answers
    prompt_groups: np.ndarray
    """(B,)"""
    ties: TieRule

    @classmethod
    def of(
        cls,
        evaluate: EvaluateConfig,
        trained: TrainedHead,
        dataset: PreparedDataset,
        store: FeatureStore,
        users: NewUsers,
    ) -> _Panel:
        frame = pairs_of(dataset, store, trained.users, "val", "seen")
        validation = predict(trained, frame, store, store.features())
        ties = TieRule.choose(evaluate.ties, validation)
        found = cls(evaluate, trained.head, users.judged, users.prompt_groups, ties)
        if not found.counted.any():
            raise EvaluationError(
                "all pairs to be evaluated are ties, and evaluate.ties = 'drop' leaves none; "
                "use half"
            )
        return found

    @property
    def labels(self) -> Array:
        """(B,) of all pairs, in double precision."""
        labels: Array = self.judged.label.double().numpy()
        return labels

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(B,) which pairs count."""
        return self.ties.keeps(self.labels)

    @torch.no_grad()
    def margins(self, adapted: Adapted) -> Array:
        """Return the margins of the pairs that count, after one draw of the shots."""
        prepared, user = self.judged.prepared, self.judged.user
        margin = self.head.prepared_margin(prepared, adapted.vectors, user)
        counted: Array = margin.double().numpy()[self.counted]
        return counted

    def cell(self, margins: list[Array]) -> tuple[Cell, Array]:
        """Return the cell of some draws, and each user's accuracy over all of them, (U,)."""
        repeats, counted = len(margins), self.counted
        margin = np.concatenate(margins)
        label = np.tile(self.labels[counted], repeats)
        answers = Crossing.of_names(self.judged.user.numpy()[counted], self.prompt_groups[counted])
        crossing = answers.repeated(repeats)
        right = self.ties.credit(margin, label)
        cell = summarize(margin, label, crossing, self.evaluate.ece_bins, right)
        cell = cell.model_copy(update={"n_pairs": int(counted.sum()), "repeats": repeats})
        return self.ties.told_in(cell, self.labels), crossing.user_means(right)


def _method(settings: AdaptConfig, head: Head) -> str:
    if head.is_amortised:
        return "inferred"
    if settings.protocol == "released":
        return "sgd, epoch chosen on the test pairs"
    return settings.method + (", active" if settings.active else "")
