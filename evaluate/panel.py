"""How well unseen users are served after 0, 1, 2, ... answers: one set of judged pairs for all
numbers of answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pal.cache.mapped import features_of
from pal.config import AdaptConfig, EvaluateConfig
from pal.evaluate.crossed import Array, Crossing
from pal.evaluate.few_shot import (
    USUAL_SHOTS,
    NewUsers,
    Trial,
    adapt_users,
    ask,
    averages,
    averages_strangers,
    balanced,
    choose_prior,
    new_users,
    shots_that_fit,
)
from pal.evaluate.metrics import negative_log_likelihoods, summarize
from pal.evaluate.predict import counted_of, pairs_of, predict
from pal.evaluate.records import Cell
from pal.evaluate.ties import TieRule, of_folds
from pal.train.adapt.answers import Answers
from pal.train.adapt.average import predictive, zero_shot
from pal.train.adapt.map import Adapted
from pal.train.heads.head import Head
from pal.train.run_record import TrainedHead

ROUNDING = 1e-9
"""by which means of the same credits may differ"""


class Scores(NamedTuple):
    """What each judged answer earned, (B,), averaged over draws of the shots."""

    right: Array
    loss: Array
    """nats"""


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
    scores: dict[str, Scores]
    """by the number of answers, of the same judged answers for every head of one dataset"""
    answers: Crossing
    """whose they are, and to what"""


def few_shot(settings: AdaptConfig, evaluate: EvaluateConfig, trials: Sequence[Trial]) -> FewShot:
    """Adapt unseen users to every number of shots of the settings, or to those that fit, and judge
    them.

    All cells judge the same pairs of the same users: those with as many answers as the largest
    number of shots, in every trial that judges them; ``n_users_left_out`` counts the others. Each
    cell averages ``adapt.repeats`` draws within a user before anything else. Raises EvaluationError
    where there is no such user.
    """
    asked = settings.shots or shots_that_fit(trials, USUAL_SHOTS)
    most = max(asked)
    names, left_out = balanced(trials, most)
    judges = [_Judge.of(settings, trial, names, most) for trial in trials]
    panel = _Panel.of(evaluate, trials, judges)
    cells: dict[str, Cell] = {}
    scores: dict[str, Scores] = {}
    seconds, at_zero = 0.0, None
    for count in sorted({0, *asked}):
        priors = [choose_prior(j.trained, j.validation, count) for j in judges]
        margins = []
        for repeat in range(settings.repeats if count and not settings.active else 1):
            parts = []
            for judge, prior in zip(judges, priors, strict=True):
                users = judge.users
                shots = users.shots(count, repeat)
                began = time.perf_counter()
                adapted = adapt_users(settings, judge.trained, shots, users.judged, prior, repeat)
                seconds += time.perf_counter() - began
                parts.append(judge.margins(settings, shots, adapted))
            margins.append(np.concatenate(parts)[panel.counted])
        cell, per_user = panel.cell(margins)
        scores[str(count)] = panel.scores(margins)
        at_zero = per_user if at_zero is None else at_zero
        if count in asked:
            harmed = share_harmed(per_user, at_zero)
            cells[str(count)] = cell.model_copy(update={"harmed_vs_0": harmed})
    method = _method(settings, trials[0].trained.head)
    return FewShot(cells, round(seconds, 4), len(names), left_out, method, scores, panel.answers)


def share_harmed(now_U: Array, before_U: Array) -> float:
    """Return the share of users whose accuracy is below the earlier one, by more than rounding."""
    return float((now_U < before_U - ROUNDING).mean())


@dataclass
class _Judge:
    """One head and the users it is judged by."""

    trained: TrainedHead
    users: NewUsers
    validation: NewUsers | None

    @classmethod
    def of(cls, settings: AdaptConfig, trial: Trial, names: list[str], most: int) -> _Judge:
        users, validation = new_users(*trial, "test", names), new_users(*trial, "val")
        assert users is not None, "there are names"
        if settings.active:
            users.asked = ask(trial.trained, validation, users, most)
        return cls(trial.trained, users, validation)

    @torch.no_grad()
    def margins(self, settings: AdaptConfig, shots: Answers, adapted: Adapted) -> Array:
        """Return the margins of all judged pairs after one draw of the shots."""
        head, judged = self.trained.head, self.users.judged
        if not len(shots.label) and averages_strangers(settings):
            margin = zero_shot(head, judged.prepared, judged.content)
        elif averages(settings, head):
            margin = predictive(head, shots, judged, adapted)
        else:
            margin = head.prepared_margin(judged.prepared, adapted.vectors, judged.user)
        found: Array = margin.double().numpy()
        return found


@dataclass
class _Panel:
    """What all cells have in common: the judged pairs of all users, and the rule for ties."""

    evaluate: EvaluateConfig
    labels: Array
    """(B,) of all pairs"""
    counted: NDArray[np.bool_]
    """(B,) which of them count"""
    answers: Crossing
    """of those that count"""
    ties: TieRule
    fold: NDArray[np.int64]
    """(counted,) which trial judges"""

    @classmethod
    def of(
        cls, evaluate: EvaluateConfig, trials: Sequence[Trial], judges: Sequence[_Judge]
    ) -> _Panel:
        predicted = []
        for trained, dataset, store in trials:
            frame = pairs_of(dataset, store, trained.users, "val", "seen")
            predicted.append(predict(trained, frame, store, features_of(store)))
        ties = TieRule.choose(evaluate.ties, of_folds(predicted))
        judged = [judge.users.judged for judge in judges]
        labels = torch.cat([answers.label for answers in judged]).double().numpy()
        counted = counted_of(ties, labels)
        user = torch.cat([answers.user for answers in judged]).numpy()
        fold = np.repeat(np.arange(len(judged)), [len(answers.label) for answers in judged])
        groups = np.concatenate([judge.users.prompt_groups for judge in judges], axis=1)
        crossing = Crossing.of_names(user[counted], *groups[:, counted])
        return cls(evaluate, labels, counted, crossing, ties, fold[counted])

    def cell(self, margins: Sequence[Array]) -> tuple[Cell, Array]:
        """Return the cell of some draws, and each user's accuracy over all of them, (U,)."""
        repeats = len(margins)
        margin = np.concatenate(margins)
        label = np.tile(self.labels[self.counted], repeats)
        crossing = self.answers.repeated(repeats)
        right = self.ties.credit(margin, label, np.tile(self.fold, repeats))
        cell = summarize(margin, label, crossing, self.evaluate.ece_bins, right)
        told = {"n_pairs": int(self.counted.sum()), "repeats": repeats}
        cell = cell.model_copy(update=told)
        return self.ties.told_in(cell, self.labels), crossing.user_means(right)

    def scores(self, margins: Sequence[Array]) -> Scores:
        """Return what each answer earned in the mean over some draws."""
        label = self.labels[self.counted]
        right = [self.ties.credit(margin, label, self.fold) for margin in margins]
        loss = [negative_log_likelihoods(margin, label) for margin in margins]
        return Scores(np.mean(right, axis=0), np.mean(loss, axis=0))


def _method(settings: AdaptConfig, head: Head) -> str:
    if head.is_amortised:
        return "inferred"
    if settings.protocol == "released":
        return "sgd, epoch chosen on the test pairs"
    return settings.method + (", active" if settings.active else "")
