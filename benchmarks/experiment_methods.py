"""The protocol of ``benchmarks/experiment.py``: votes, folds over statements, and what predicts
them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from pal.cache.reader import FeatureStore
from pal.dataset import PreparedDataset, ids_of
from pal.train.data import statistics_of
from pal.train.solve.auto import ITERATIONS
from pal.train.solve.choose import DEFAULT, NONE, WEAKER, choose
from pal.train.solve.mixture import STANDARD, Array, Judgements, Priors, Strength, predicted
from pal.train.solve.posterior import fit
from pal.train.solve.similar import Similarities

FOLDS, K = 5, 8
AGREE = "Agree"


@dataclass(frozen=True)
class Votes:
    """Who agreed with what, and features of the statements, (T, D)."""

    rows: Judgements
    features: torch.Tensor

    @classmethod
    def of(cls, work: Path, name: str, only: Sequence[str] | None) -> Votes:
        dataset = PreparedDataset.open(work / "data" / name)
        store = FeatureStore.open(work / "cache" / name / "minilm")
        agree = pl.DataFrame(pl.from_arrow(dataset.items())).filter(pl.col("text") == AGREE)
        pairs = dataset.pairs()
        if only is not None:
            pairs = pairs.filter(pl.col("user_id").is_in(list(only)))
        is_first = pairs["first_id"].is_in(agree["item_id"].to_list()).to_numpy()
        said = pairs["label"].to_numpy().astype(np.float64)
        said = np.where(is_first, said, 1.0 - said)
        things, thing = np.unique(store.index(ids_of(pairs["prompt_id"])), return_inverse=True)
        names, user = np.unique(pairs["user_id"].to_numpy(), return_inverse=True)
        rows = Judgements(thing, None, user, said, len(names))
        return cls(rows, store.gather(things).float())


@dataclass(frozen=True)
class Fold:
    """What is known in a fold, and what is to be told."""

    points: torch.Tensor
    train: Judgements
    test: Judgements
    seed: int

    def similar(self, things: Array) -> Similarities:
        rng = np.random.default_rng([self.seed, 7])
        order = rng.permutation(len(self.points))
        return Similarities.of(self.points, order[np.isin(order, things)])


def folds_of(votes: Votes, seed: int) -> list[Fold]:
    rng = np.random.default_rng(seed)
    dealt = np.empty(len(votes.features), np.int64)
    dealt[rng.permutation(len(dealt))] = np.arange(len(dealt)) % FOLDS
    found = []
    for number in range(FOLDS):
        is_test = dealt[votes.rows.first] == number
        known = torch.from_numpy(np.flatnonzero(dealt != number))
        scale = statistics_of(votes.features, known, "every statement is the same")
        points = scale(votes.features)
        train, test = votes.rows.only(~is_test), votes.rows.only(is_test)
        found.append(Fold(points, train, test, 100 * seed + number))
    return found


Margins = Callable[[Fold], Array]


@dataclass(frozen=True)
class Method:
    """A way to predict: the model's parts, and what of it is chosen by inner cross-fitting."""

    path: Sequence[Strength] = (DEFAULT, *WEAKER)
    """strengths to choose from; a single one is not chosen"""
    priors: Priors = STANDARD
    scaled: bool = True
    """whether the scales of the text are chosen"""
    starts: int = 1

    def __call__(self, fold: Fold) -> Array:
        """Return what is predicted, averaged over starts."""
        if not self.scaled and len(self.path) == 1:
            return self._fitted(fold, self.path[0], (1.0, 1.0), 0)
        points = len(fold.points)
        choice = choose(fold.similar, fold.train, points, K, fold.seed, self.path, self.priors)
        scales = (choice.of_shared, choice.of_own) if self.scaled else (1.0, 1.0)
        return self._fitted(fold, choice.strength, scales, choice.rounds)

    def without(self, **priors: float | bool) -> Method:
        """Return the method under other variances."""
        return replace(self, priors=replace(self.priors, **priors))

    def _fitted(
        self, fold: Fold, strength: Strength, scales: tuple[float, float], rounds: int
    ) -> Array:
        margins = []
        for start in range(self.starts):
            similar = fold.similar(np.unique(fold.train.first))
            for number in range(rounds + 1):
                rng = np.random.default_rng([fold.seed, start])
                features = similar.features_of()
                found = fit(features, fold.train, K, strength, rng, ITERATIONS, self.priors)
                if number < rounds:
                    similar = similar.sharpened(found)
            part = predicted(found, features, fold.test)
            margins.append(part.ready + scales[0] * part.shared + scales[1] * part.own)
        return np.mean(margins, axis=0)


def user_mean(fold: Fold) -> Array:
    """Return the log odds of each user's share of agreement, which one answer of all users'
    smooths."""
    overall = fold.train.label.mean()
    count = np.bincount(fold.train.user, minlength=fold.train.users)
    agreed = np.bincount(fold.train.user, fold.train.label, fold.train.users)
    share = ((agreed + overall) / (count + 1.0))[fold.test.user]
    return np.log(share / (1.0 - share))


def fixed(strength: Strength, priors: Priors = STANDARD) -> Method:
    return Method((strength,), priors, scaled=False)


METHODS: dict[str, Margins] = {
    "user mean": user_mean,
    "one taste, residuals": Method(NONE),
    "K = 8, (1, 1)": fixed(DEFAULT),
    "K = 8, (2, 2)": fixed(WEAKER[0]),
    "K = 8, (1, 1), scaled": Method((DEFAULT,)),
    "auto's choice": Method(),
    "auto's choice, three starts": Method(starts=3),
}
WHOLE, AUTO = "auto", Method()
BARE = Priors(maps=math.inf, logits=math.inf, ready=0.0, residuals=0.0)
BOTH = replace(BARE, maps=1.0, logits=1.0)
READY = replace(BOTH, ready=1.0)
ABLATION: dict[str, Margins] = {
    WHOLE: AUTO,
    "no prior": fixed(DEFAULT, BARE),
    "prior on the users' logits": fixed(DEFAULT, replace(BARE, logits=1.0)),
    "prior on the maps": fixed(DEFAULT, replace(BARE, maps=1.0)),
    "both": fixed(DEFAULT, BOTH),
    "both, readiness": fixed(DEFAULT, READY),
    "both, readiness, residuals": fixed(DEFAULT, Priors(moderates=False)),
    "both, readiness, residuals, moderation": fixed(DEFAULT),
    "auto without the prior on the logits": AUTO.without(logits=math.inf),
    "auto without the prior on the maps": AUTO.without(maps=math.inf),
    "auto without readiness": AUTO.without(ready=0.0),
    "auto without residuals": AUTO.without(residuals=0.0),
    "auto without moderation": AUTO.without(moderates=False),
    "auto without the choice of a strength": Method((DEFAULT,)),
    "auto without the scales": Method(scaled=False),
}
"""first built up from nothing, then taken away one by one"""
