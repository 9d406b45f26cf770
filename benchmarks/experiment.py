"""What ``auto`` fits under the protocol of an experiment with known numbers.

    python benchmarks/experiment.py --work real [--seeds 3]       -> docs/results/experiment.md

WORK is a folder where ``benchmarks/real.py`` has prepared and encoded the conversations. Five folds
over all statements, moderated ones too; all others train, none validates; everybody who gave enough
answers is in; accuracy and NLL are means over users, intervals crossed. Beside the choice that
``auto`` makes stand fixed priors. ``--only FILE`` is a JSON file of users, by conversation.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import torch

from pal.cache.reader import FeatureStore
from pal.dataset import PreparedDataset, ids_of
from pal.evaluate.crossed import Crossing
from pal.evaluate.report import as_markdown
from pal.train.data import statistics_of
from pal.train.solve.auto import ITERATIONS
from pal.train.solve.choose import DEFAULT, NONE, WEAKER, choose
from pal.train.solve.mixture import Array, Judgements, Strength, fit, predicted
from pal.train.solve.similar import Similarities

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "experiment.md"
SETS = ("ssis", "canadian-electoral-reform", "15-per-hour-seattle", "bowling-green")
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


Margins = Callable[[Fold], Array]


def chosen(fold: Fold, path: Sequence[Strength], starts: int = 1) -> Array:
    """Return what the choice of ``auto`` predicts."""
    choice = choose(fold.similar, fold.train, len(fold.points), K, fold.seed, path)
    scales = choice.of_shared, choice.of_own
    return fixed(fold, choice.strength, scales, starts, choice.rounds)


def fixed(
    fold: Fold,
    strength: Strength,
    scales: tuple[float, float] = (1.0, 1.0),
    starts: int = 1,
    rounds: int = 0,
) -> Array:
    """Return what a fit of one strength predicts, averaged over starts."""
    margins = []
    for start in range(starts):
        similar = fold.similar(np.unique(fold.train.first))
        for number in range(rounds + 1):
            rng = np.random.default_rng([fold.seed, start])
            found = fit(similar.features, fold.train, K, strength, rng, ITERATIONS)
            if number < rounds:
                similar = similar.sharpened(found)
        part = predicted(found, similar.features, fold.test)
        margins.append(part.ready + scales[0] * part.shared + scales[1] * part.own)
    return np.mean(margins, axis=0)


METHODS: dict[str, Margins] = {
    "user mean": lambda fold: user_mean(fold),
    "one taste, residuals": lambda fold: chosen(fold, NONE),
    "K = 8, (1, 1)": lambda fold: fixed(fold, DEFAULT),
    "K = 8, (2, 2)": lambda fold: fixed(fold, WEAKER[0]),
    "K = 8, (1, 1), scaled": lambda fold: chosen(fold, (DEFAULT,)),
    "auto's choice": lambda fold: chosen(fold, (DEFAULT, *WEAKER)),
    "auto's choice, three starts": lambda fold: chosen(fold, (DEFAULT, *WEAKER), 3),
}


def user_mean(fold: Fold) -> Array:
    """Return the log odds of each user's share of agreement, which one answer of all users'
    smooths."""
    overall = fold.train.label.mean()
    count = np.bincount(fold.train.user, minlength=fold.train.users)
    agreed = np.bincount(fold.train.user, fold.train.label, fold.train.users)
    share = ((agreed + overall) / (count + 1.0))[fold.test.user]
    return np.log(share / (1.0 - share))


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


def row_of(votes: Votes, name: str, seeds: int) -> list[str]:
    """Return the accuracy and the NLL of one method, and how long a fit took."""
    right, loss, every = [], [], []
    began = time.perf_counter()
    for seed in range(seeds):
        for fold in folds_of(votes, seed):
            margin, label = METHODS[name](fold), fold.test.label
            right.append(np.where(margin == 0, 0.5, (margin > 0) == (label > 0.5)))
            loss.append(np.logaddexp(0.0, margin) - label * margin)
            every.append(fold.test)
    spent = (time.perf_counter() - began) / (seeds * FOLDS)
    users = np.concatenate([test.user for test in every])
    crossing = Crossing.of_names(users, np.concatenate([test.first for test in every]))
    cells = []
    for values in (right, loss):
        found = crossing.macro(np.concatenate(values).astype(np.float64))
        low, high = found.ci95 or (np.nan, np.nan)
        cells.append(f"{found.value:.3f} [{low:.3f}, {high:.3f}]")
    return [name, *cells, f"{spent:.1f}"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--only", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    only = {} if options.only is None else json.loads(options.only.read_text("utf-8"))
    text = [
        "# `auto` under the protocol of the experiment",
        "",
        f"Made by `python benchmarks/experiment.py --work real` on {datetime.now(UTC):%Y-%m-%d}: "
        f"{FOLDS} folds over all statements, {options.seeds} seeds of folds,",
        "accuracy and NLL over users, intervals crossed; s: seconds of a fold on one core.",
    ]
    for name in options.sets:
        votes = Votes.of(options.work, name, only.get(name))
        table = [["method", "accuracy", "NLL", "s"]]
        for method in options.methods:
            table.append(row_of(votes, method, options.seeds))
            print(name, *table[-1], flush=True)
        people = f"{votes.rows.users:,} people, {len(votes.features):,} statements"
        text += ["", f"## {name}: {people}, {len(votes.rows):,} votes", "", as_markdown(table)]
        options.out.write_text("\n".join(text) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
