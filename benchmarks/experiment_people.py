"""New people under the protocol of the experiment: docs/results/experiment_people.md.

    python benchmarks/experiment_people.py --work real --only FILE [--sets ssis] [--splits 2]

WORK and FILE are those of ``benchmarks/experiment.py``. Each split holds a quarter of the people
and a fifth of the statements back. Heads are trained on the answers of the other people to the
other statements. A new person with at least 30 votes answers 0, 1, 5 or 20 of these, in a random
order, and is judged on the statements that nobody was asked, and on the others of those that were
asked. In the small conversation 10 votes are enough, and there are 0, 1 or 5 answers. Heads are
frozen, adaptation is that of ``pal adapt``. Accuracy and NLL are means over people.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from experiment import Earned
from sections import sections_of
from torch import Tensor

from pal.cache.mapped import features_of
from pal.cache.reader import FeatureStore
from pal.config import TrainConfig
from pal.dataset import PreparedDataset
from pal.evaluate.crossed import Crossing
from pal.evaluate.report import NOTHING, as_markdown, with_interval
from pal.train.adapt.answers import Answers
from pal.train.adapt.average import predictive, zero_shot
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import DEFAULT_STRENGTH, make_prior
from pal.train.build import resolve
from pal.train.data import TrainingData
from pal.train.fit import fit_head
from pal.train.heads.head import Head
from pal.train.pairs import Pairs
from pal.train.prepared import prepared

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "experiment_people.md"
HEADS = ("one-taste", "auto")
NOT_ASKED, NOT_CHOSEN = "nobody was asked", "others were asked"
KNOWN = {
    ("ssis", NOT_ASKED): {
        0: (0.619, 0.613), 1: (0.624, 0.616), 5: (0.635, 0.616), 20: (0.625, 0.578),
    },
    ("ssis", NOT_CHOSEN): {
        0: (0.491, 0.493), 1: (0.494, 0.494), 5: (0.494, 0.463), 20: (0.481, 0.384),
    },
    ("bowling-green", NOT_ASKED): {
        0: (0.535, 0.535), 1: (0.511, 0.511), 5: (0.498, 0.497), 20: (0.471, 0.468),
    },
    ("bowling-green", NOT_CHOSEN): {
        0: (0.493, 0.493), 1: (0.479, 0.481), 5: (0.467, 0.460), 20: (0.444, 0.418),
    },
}  # fmt: skip
"""the experiment's NLL of one taste and of K = 8, two splits"""


class Asked(NamedTuple):
    """What is asked of new people."""

    least: int
    """votes of a new person"""
    shots: tuple[int, ...]


MANY, FEW = Asked(30, (0, 1, 5, 20)), Asked(10, (0, 1, 5))
SETS = {"ssis": MANY, "bowling-green": MANY, "15-per-hour-seattle": FEW}


@dataclass(frozen=True)
class Split:
    """Whose answers train, and what new people answer and are judged on."""

    data: TrainingData
    pool: Pairs
    """in the order in which a person is asked, people numbered from 0"""
    place: Tensor
    """(B,) which of its person's answers each row of the pool is, from 0"""
    unseen: Pairs
    who: Tensor
    """(people,) the new people, by a number that is the same in all splits"""

    @property
    def people(self) -> int:
        return len(self.who)


def splits_of(work: Path, name: str, only: Sequence[str] | None, count: int) -> Iterator[Split]:
    """Yield splits of a conversation, of all its people or of some."""
    dataset = PreparedDataset.open(work / "data" / name)
    store = FeatureStore.open(work / "cache" / name / "minilm")
    features, frame = features_of(store), dataset.pairs()
    users = sorted(set(frame["user_id"]) if only is None else {*only} & {*frame["user_id"]})
    pairs = Pairs.join(frame, store, users, True, "cpu")
    pairs = pairs.take(pairs.user >= 0)
    assert pairs.prompt is not None
    statements, statement = pairs.prompt.unique(return_inverse=True)
    votes = torch.bincount(pairs.user, minlength=len(users))
    for number in range(count):
        rng = np.random.default_rng(number)
        is_new = drawn(rng, len(users), 4)
        is_unseen = drawn(rng, len(statements), 5)[statement]
        taught = pairs.take(~is_new[pairs.user] & ~is_unseen)
        taught.user = taught.user.unique(return_inverse=True)[1]
        seen = [f"{place}" for place in range(int(taught.user.max()) + 1)]
        # these heads read no validation pairs; one that chose an epoch would need some
        data = TrainingData(dataset, store, seen, features, taught, taught)

        order = torch.from_numpy(rng.permutation(len(pairs)))
        order = order[pairs.user[order].argsort(stable=True)]
        new = pairs.take(order)
        size = torch.bincount(new.user[~is_unseen[order]], minlength=len(users))
        stays = is_new & (votes >= SETS[name].least) & (size > max(SETS[name].shots))
        anew = torch.where(stays, stays.cumsum(0) - 1, -1)
        stays_B = stays[new.user]
        new.user = anew[new.user]
        pool = new.take(stays_B & ~is_unseen[order])
        own = torch.bincount(pool.user)
        place = torch.arange(len(pool)) - (own.cumsum(0) - own)[pool.user]
        unseen = new.take(stays_B & is_unseen[order])
        yield Split(data, pool, place, unseen, stays.nonzero().squeeze(1))


def drawn(rng: np.random.Generator, count: int, part: int) -> Tensor:
    """Return a mask of one in ``part``."""
    found = np.zeros(count, bool)
    found[rng.permutation(count)[: round(count / part)]] = True
    return torch.from_numpy(found)


@torch.no_grad()
def margins(head: Head, split: Split, shots: int, judged: Pairs) -> Tensor:
    """Return the margins of what is judged after so many answers, as ``pal adapt`` has them."""
    features = split.data.features

    def answers(pairs: Pairs) -> Answers:
        found = prepared(head, pairs, features.__getitem__)
        content = pairs.content(len(features))
        return Answers(found, pairs.label, pairs.user, split.people, content)

    to_judge = answers(judged)
    if not shots:
        return zero_shot(head, to_judge.prepared, to_judge.content)
    told = answers(split.pool.take(split.place < shots))
    prior = make_prior(head, DEFAULT_STRENGTH)
    adapted = adapt_map(head, told, prior, with_covariance=True)
    return predictive(head, told, to_judge, adapted)


def table_of(name: str, splits: Sequence[Split]) -> list[list[str]]:
    """Return a row for each kind of question and number of answers."""
    found: dict[tuple[str, str, int], list[Earned]] = {}
    all_shots = SETS[name].shots
    for number, split in enumerate(splits):
        judged = {
            NOT_ASKED: split.unseen,
            NOT_CHOSEN: split.pool.take(split.place >= max(all_shots)),
        }
        for which in HEADS:
            began = time.perf_counter()
            head = fit_head(split.data, resolve(TrainConfig(head=which)), number).head.eval()
            spent = time.perf_counter() - began
            print(name, number, which, f"{spent:.0f} s, {split.people} people", flush=True)
            for kind, pairs in judged.items():
                assert pairs.prompt is not None
                user, prompt = split.who[pairs.user].numpy(), pairs.prompt.numpy()
                label = pairs.label.double().numpy()
                for shots in all_shots:
                    margin = margins(head, split, shots, pairs).double().numpy()
                    earned = Earned.by_margins(user, prompt, margin, label, spent)
                    found.setdefault((which, kind, shots), []).append(earned)
    titles = [f"{which}, {what}" for what in ("accuracy", "NLL") for which in HEADS]
    table = [["questions that", "answers", *titles, "NLL less one taste's", "the experiment"]]
    for kind in (NOT_ASKED, NOT_CHOSEN):
        for shots in all_shots:
            one, plural = (Earned.joined(found[which, kind, shots]) for which in HEADS)
            crossing = Crossing.of_names(one.user, one.thing)
            cells = []
            for what in ("right", "loss"):
                for own in (one, plural):
                    value = crossing.macro(vars(own)[what])
                    cells.append(with_interval(value.value, value.ci95, value.side))
            value = crossing.macro(plural.loss - one.loss)
            known = KNOWN.get((name, kind), {}).get(shots)
            told = NOTHING if known is None else f"{known[0]:.3f}, {known[1]:.3f}"
            difference = with_interval(value.value, value.ci95, sign="+")
            table.append([kind, f"{shots}", *cells, difference, told])
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--splits", type=int, default=2)
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    only = json.loads(options.only.read_text("utf-8"))
    for name in options.sets:
        splits = list(splits_of(options.work, name, only.get(name), options.splits))
        table = as_markdown(table_of(name, splits))
        told = f"{datetime.now(UTC):%Y-%m-%d}, {options.splits} splits, "
        different = len(torch.cat([split.who for split in splits]).unique())
        told += f"{sum(split.people for split in splits)} new people with at least "
        told += f"{SETS[name].least} votes, {different} of them different."
        write(options.out, {**sections_of(options.out), name: f"{told}\n\n{table}"})
        print(table, flush=True)
    return 0


def write(page: Path, of_set: dict[str, str]) -> None:
    text = [
        "# New people under the protocol of the experiment",
        "Made by `python benchmarks/experiment_people.py --work real --only FILE --splits N`, N as "
        "told below: MiniLM; a quarter of the people and a fifth of\nthe statements are held back "
        "in each split; new people answer some statements that heads were trained on, and have "
        "more of those votes than they are asked\nfor. Means over people, intervals crossed over "
        "people and statements (p: most of it comes from the statements). Without an answer the\n"
        "mean probability over the seen users is predicted, later an average over who the person "
        "may be; `auto` chooses its strength. Last column: NLL of one taste\nand of K = 8 in the "
        "experiment, two splits, without intervals, a fixed strength, one vector for each person.",
        *(f"## {name}\n\n{of_set[name]}" for name in SETS if name in of_set),
    ]
    page.write_text("\n\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
