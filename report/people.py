"""People on a page: who gains and who is harmed against one taste for all, and where each stands
among the prototypes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from pal.config import Config
from pal.evaluate.compare import compare_runs
from pal.evaluate.metrics import credit
from pal.evaluate.predict import in_test
from pal.evaluate.sentences import OF_ONE_TASTE, difference_sentence
from pal.report.charts import simplex, versus
from pal.report.dataset import cut
from pal.report.evaluated import Evaluated, read_runs
from pal.report.page import Block, Code, Picture, Table, Text
from pal.report.subjects import all_of

MOST_HARMED, MOST_DRAWN = 15, 400
ALIKE = 0.05
"""weight below which nobody differs from the mean person"""


def baseline_of(config: Config, run: Evaluated) -> Evaluated | None:
    """Return the run with one taste that a run is best compared with; None where there is none.

    Of the same answers and splits: the same head at K = 1, else a head whose people are all alike
    but for the reliability, else any with K = 1; the same encoder and seed before others.
    """
    here, _ = read_runs(all_of(config.paths, "run"))
    record = run.record
    same = (record.split_digest, record.pairs_digest)
    found = [
        one
        for one in here
        if (one.record.split_digest, one.record.pairs_digest) == same
        and one.name != run.name
        and one.has_one_taste
    ]

    def rank(one: Evaluated) -> tuple[int, ...]:
        other = one.record
        return (
            other.train.head != record.train.head,
            OF_ONE_TASTE.index(other.train.head) if other.train.head in OF_ONE_TASTE else 9,
            other.encoder != record.encoder,
            other.seed != record.seed,
        )

    return None if run.has_one_taste else min(found, key=rank, default=None)


def person_blocks(config: Config, run: Evaluated, baseline: Evaluated | None) -> list[Block]:
    """Return each person's accuracy under a run and under one taste, and who is worse off."""
    if run.has_one_taste:
        return []
    if baseline is None:
        record = run.record
        head = "one-taste" if record.train.head == "auto" else f"{record.train.head} --k 1"
        return [
            Text("There is no run with one taste on the same answers to compare with; train one:"),
            Code(
                [f"pal train --dataset {record.dataset} --encoder {record.encoder} --head {head}"]
            ),
        ]
    users, before, now, counts = _by_person(run, baseline)
    if not users:
        return [Text(f"{run.name} and {baseline.name} predict no answer of the same person.")]
    blocks: list[Block] = []
    found = [
        one
        for one in compare_runs(
            config.evaluate,
            (baseline.name, baseline.predictions()),
            [(run.name, run.predictions())],
        )
        if one.cell == "test_seen"
    ]
    blocks += [Text(difference_sentence(one)) for one in found]
    caption = (
        f"Each person's accuracy under {run.name}, and under {baseline.name}, which has one taste "
        "for all."
    )
    blocks.append(
        versus(caption, users, before, now, f"under {baseline.name}", f"under {run.name}")
    )
    order: list[int] = np.argsort(now - before, kind="stable").tolist()
    loses = [n for n in order if now[n] < before[n]]
    if loses:
        rows = [
            [users[n], f"{counts[n]:,}", f"{before[n]:.3f}", f"{now[n]:.3f}",
             f"{now[n] - before[n]:+.3f}"]
            for n in loses[:MOST_HARMED]
        ]  # fmt: skip
        header = ["person", "test answers", "one taste", "this run", "difference"]
        told = f"Who is worse off: {len(loses)} of {len(users)} people"
        more = f", the {MOST_HARMED} by most" if len(loses) > MOST_HARMED else ""
        blocks.append(Table.of(f"{told}{more}.", header, rows))
    return blocks


def _by_person(
    run: Evaluated, baseline: Evaluated
) -> tuple[list[str], np.ndarray, np.ndarray, list[int]]:
    frames = [in_test(one.predictions(), "seen") for one in (baseline, run)]
    other = frames[1].select("pair_id", other="margin")
    both = frames[0].join(other, on="pair_id", how="inner")
    label = both["label"].to_numpy()
    earned = both.select("user_id").with_columns(
        before=pl.Series(credit(both["margin"].to_numpy(), label)),
        now=pl.Series(credit(both["other"].to_numpy(), label)),
    )
    by_user = earned.group_by("user_id").agg(
        pl.mean("before"), pl.mean("now"), pl.len().alias("count")
    )
    by_user = by_user.sort("user_id")
    return (
        by_user["user_id"].to_list(),
        by_user["before"].to_numpy(),
        by_user["now"].to_numpy(),
        by_user["count"].to_list(),
    )


def simplex_blocks(users: Sequence[str], weights: np.ndarray) -> list[Block]:
    """Return the users among the prototypes by their weights, (N, K), and whether they differ."""
    spread = float(np.abs(weights - weights.mean(axis=0)).max())
    if spread >= ALIKE:
        return [_simplex(users, weights)]
    told = f"All people are nearly the same mixture (no weight is {spread:.2f} off the mean)"
    return [Text(f"{told}: this head sees one taste here."), _simplex(users, weights)]


def _simplex(users: Sequence[str], weights: np.ndarray) -> Picture:
    count = weights.shape[1]
    told = "A person stands nearer to the prototypes that weigh more in the own taste; "
    told += "point at one for the name." if count > 2 else "up and down means nothing."
    if len(users) > MOST_DRAWN:
        chosen = np.linspace(0, len(users) - 1, MOST_DRAWN).astype(int).tolist()
        told += f" {MOST_DRAWN} of {len(users):,} people, evenly from all."
        users, weights = [users[n] for n in chosen], weights[chosen]
    return simplex(told, [cut(user, 80) for user in users], weights)
