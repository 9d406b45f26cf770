"""How often an audit errs: the table of docs/results/audit.md.

    python benchmarks/audit.py [--source FOLDER] [--kinds NAME ...] [--simulations 100] [--work DIR]

Homogeneous simulations of every kind must be called plural in at most 10 of 100, real answers whose
users were exchanged within strata too, and a taste planted at the share that an audit states as the
smallest must be found in 70 of 100. FOLDER holds ``polis/<conversation>``; without it the rows of
real sets are left out. Every audit is one line of a file under ``--work``, which is kept with the
results: killed, or with more ``--simulations``, the same command goes on, and a change of the
method begins with an empty folder. Nothing here was used to choose a number of the method: those
were chosen on simulations with other seeds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lines import add_line, lines_of
from marked import between
from scipy.special import expit

from pal.audit.answers import Answers, oriented
from pal.audit.cross_fit import CrossFit
from pal.audit.drawing import Here
from pal.audit.features import features_of
from pal.audit.ledger import Ledger
from pal.audit.measure import measured
from pal.audit.nulls import Population, exchanged, strata
from pal.audit.overlap_test import OverlapTest
from pal.audit.power import LEVEL, Instrument, p_of, smallest_share
from pal.evaluate.report import Table, as_markdown

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "audit.md"
LINES = Path(__file__).resolve().parent / "results" / "audit"
"""what is kept of the audits of the table; of another method they must be made anew"""
DIM, DRAWS = 16, 99
FIRST_SEED = 100_000
"""the method was made with seeds below"""
SMALL_USERS, SMALL_ANSWERS = 40, 1600
"""of a real set whose users are exchanged: parts of it are audited"""


@dataclass(frozen=True)
class Kind:
    """How simulated people answer by one taste."""

    told: str
    users: int = 40
    per: int = 25
    things: int = 120
    compared: bool = False
    unequal: float = 0.0
    """standard deviation of log reliability"""
    careless: float = 0.0
    """share of the users who answer at random"""
    ready: float = 1.0
    """standard deviation of the readiness to agree"""
    topics: bool = False
    """one half of the users answers about other things than the other half"""
    alone: bool = False
    """nobody judges what another judges"""
    residual: float = 0.7
    """standard deviation of what features do not tell of a thing"""
    ties: float = 0.0
    size: float = 2.0


KINDS = {
    "votes": Kind("votes, 25 a user"),
    "unequal": Kind("unequal reliability", unequal=0.8),
    "careless": Kind("three users in ten answer at random", careless=0.3),
    "ready": Kind("unequal readiness to agree", ready=2.0),
    "topics": Kind("users with different topics", unequal=0.5, topics=True),
    "topics-compared": Kind("the same, comparisons", compared=True, topics=True),
    "five": Kind("5 answers a user, 100 users", users=100, per=5, unequal=0.5),
    "two-hundred": Kind("200 answers a user, 8 users", users=8, per=200, things=300, unequal=0.5),
    "compared": Kind("comparisons, unequal reliability", compared=True, unequal=0.8),
    "alone": Kind("no overlap", users=20, per=25, things=1000, compared=True, alone=True),
    "few": Kind("10 statements", users=60, per=10, things=10),
    "residual": Kind("much that features do not tell", residual=2.0, unequal=0.5),
    "ties": Kind("comparisons, three in ten tied", compared=True, ties=0.3, unequal=0.5),
    "certain": Kind("a strong taste, hardly any noise", size=5.0, ready=0.5, residual=0.3),
}


class Simulated(NamedTuple):
    answers: Answers
    points: torch.Tensor


def simulated(kind: Kind, seed: int) -> Simulated:
    """Return answers by one taste, which is linear in 16 features but for what things have of their
    own."""
    rng = np.random.default_rng(FIRST_SEED + seed)
    points = rng.standard_normal((kind.things, DIM))
    taste = kind.size * points[:, 0] + kind.residual * rng.standard_normal(kind.things)
    reliability = np.exp(kind.unequal * rng.standard_normal(kind.users))
    reliability[rng.random(kind.users) < kind.careless] = 0.0
    ready = 0.0 if kind.compared else kind.ready
    readiness = ready * rng.standard_normal(kind.users)
    first: list[np.ndarray] = []
    second: list[np.ndarray] = []
    for number in range(kind.users):
        pool = np.arange(kind.things)
        if kind.topics:
            pool = pool[(points[:, 1] > 0) == bool(number % 2)]
        if kind.alone:
            pool = pool[number * 2 * kind.per : (number + 1) * 2 * kind.per]
            picked = rng.permutation(pool).reshape(2, -1)
        elif kind.compared:
            picked = np.stack([rng.choice(pool, 2, replace=False) for _ in range(kind.per)], axis=1)
        else:
            picked = rng.choice(pool, kind.per, replace=kind.per > len(pool))[None]
        first.append(picked[0])
        second.append(picked[-1])
    one, two = np.concatenate(first), np.concatenate(second)
    user = np.repeat(np.arange(kind.users), kind.per)
    margin = taste[one] - (taste[two] if kind.compared else 0.0)
    margin = readiness[user] + reliability[user] * margin
    label = (rng.random(len(user)) < expit(margin)).astype(float)
    label[rng.random(len(user)) < kind.ties] = 0.5
    other = two if kind.compared else None
    # items are divided where they are compared, but not in halves: nothing would be left to test
    groups = (one, two) if kind.compared and not kind.alone else (one, one)
    scaled = (points - points.mean(axis=0)) / (points.std(axis=0) * np.sqrt(DIM))
    return Simulated(
        oriented(one, other, user, label, *groups, kind.things), torch.from_numpy(scaled).float()
    )


@dataclass(frozen=True)
class Judge:
    """Both tests of some answers, as an audit does them."""

    answers: Answers
    cross_fit: CrossFit
    instrument: Instrument

    @classmethod
    def of(cls, one: Simulated, folder: Path, seed: int) -> Judge:
        answers, z = one.answers.decided(), features_of(one.points, seed).z
        population = Population.fitted(answers, z)
        cross_fit = CrossFit(answers, z, seed, population.spreads)
        ledger = Ledger(folder / "draws.parquet", f"{seed}")
        return cls(answers, cross_fit, Instrument(cross_fit, population, ledger, seed, silent))

    def features(self) -> dict[str, Any]:
        """Return p and the interval of test B."""
        null = self.instrument.null(DRAWS)[:, 0]
        gain = measured(self.cross_fit).default
        low = -1.0 if gain.ci95 is None else gain.ci95[0]
        return {"p": p_of(gain.value, null), "low": low, "gain": gain.value}

    def overlap(self) -> dict[str, Any]:
        """Return both p of test A; 1 where nobody judges what another does."""
        ledger, seed = self.instrument.ledger, self.instrument.seed
        test = OverlapTest.of(self.answers, ledger, seed, silent, Here(1))
        if test is None:
            return {"p_overlap": None}
        found = test.run(DRAWS)
        return {"p_overlap": found.p, "p_overlap_permutation": found.p_permutation}

    def planted(self, times: int) -> dict[str, Any]:
        """Return the smallest share that is stated, and how many of so many new plantings at it are
        found: with numbers of draws that the search did not use."""
        null = self.instrument.null(DRAWS)[:, 0]
        users = self.answers.users
        share = smallest_share(
            lambda share: self.instrument.detections(share, "opposite", null), users
        )
        if share is None:
            return {"share": None}
        planted = self.instrument.planted(share, "opposite")
        fresh = self.instrument.measured("fresh", times, lambda n: planted(1000 + n), True)
        found = sum(p_of(value, null) <= LEVEL and low > 0.0 for value, low in fresh)
        return {"share": share, "found": int(found), "of": times}


def silent(steps: int) -> None:
    """Report progress to nobody."""


def part_of(answers: Answers, seed: int) -> Answers:
    """Return the answers of some users of a real set, at most 1,600."""
    rng = np.random.default_rng(FIRST_SEED + seed)
    users = rng.choice(answers.users, min(SMALL_USERS, answers.users), replace=False)
    chosen = np.isin(answers.user, users)
    rows = rng.permutation(np.flatnonzero(chosen))[:SMALL_ANSWERS]
    kept = np.zeros(len(answers), bool)
    kept[rows] = True
    return answers.only(kept)


def shuffled(one: Simulated, seed: int) -> Simulated:
    """Return a part of a real set whose users were exchanged within strata: nobody has a taste."""
    some = part_of(one.answers, seed)
    stratum, _ = strata(some, features_of(one.points, 0).z, seed)
    user = exchanged(some, stratum, FIRST_SEED + seed, 0)
    second = None if some.second is None else some.second
    return Simulated(
        oriented(some.first, second, user, some.label, some.group, some.other, some.things),
        one.points,
    )


def rows_of(path: Path, wanted: int, make: Callable[[int], dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each number below ``wanted``; those that are missing are made and kept."""
    rows = lines_of(path)
    done = {row["number"] for row in rows}
    for number in range(wanted):
        if number not in done:
            began = time.perf_counter()
            row = {"number": number, **make(number)}
            row["seconds"] = round(time.perf_counter() - began, 1)
            rows.append(row)
            add_line(path, row)
            print(path.stem, row, flush=True)
    return [row for row in rows if row["number"] < wanted]


def audited(one: Simulated, number: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge.of(one, Path(folder), number)
        return {**judge.features(), **judge.overlap()}


def planting(kind: Kind, number: int, times: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return Judge.of(simulated(kind, number), Path(folder), number).planted(times)


def counted(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return how many audits there were, how many said plural by test B, how many p of test A are
    at most 0.05, and the mean p."""
    plural = sum(row["p"] <= LEVEL and row["low"] > 0 for row in rows)
    small = sum(row["p"] <= LEVEL for row in rows)
    overlap = [row["p_overlap"] for row in rows if row.get("p_overlap") is not None]
    mean = float(np.mean([row["p"] for row in rows]))
    a = f"{sum(p <= LEVEL for p in overlap)} of {len(overlap)}" if overlap else "no overlap"
    return [f"{len(rows)}", f"{plural}", f"{small}", f"{mean:.2f}", a]


def real_set(source: Path, name: str) -> Simulated:
    """Prepare and encode a conversation, and return all its answers."""
    from pal import pipeline
    from pal.audit.load import load
    from pal.config import load as settings
    from pal.evaluate.inputs import open_inputs

    place = source / "polis" / name
    options = {
        "dataset": name,
        f"data.{name}": {"kind": "polis", "min_answers": 10, "source": str(place)},
        "paths.data": "audit-calibration/data", "paths.cache": "audit-calibration/cache",
        "train.head": "auto",
    }  # fmt: skip
    config = settings(None, (), options).config
    pipeline.embed(config, tell=lambda line: None)
    loaded = load(*open_inputs(config))
    assert loaded.points is not None
    return Simulated(loaded.answers, loaded.points)


def sections(options: argparse.Namespace) -> Iterator[str]:
    """Make every table that was asked for, as far as it goes, and yield it."""
    work: Path = options.work
    head = ["data", "audits", "plural", "p of B at most 0.05", "mean p of B", "p of A at most 0.05"]
    table: Table = [head]
    for name, kind in KINDS.items():
        made = lambda number, kind=kind: audited(simulated(kind, number), number)  # noqa: E731
        wanted = options.simulations if name in options.kinds else 0
        rows = (
            rows_of(work / f"{name}.jsonl", wanted, made)
            if wanted
            else lines_of(work / f"{name}.jsonl")
        )
        if rows:
            table.append([kind.told, *counted(rows)])
    for name in options.sets:
        stem = f"shuffled-{name}"
        if options.source is not None and "shuffled" in options.kinds:
            one = real_set(options.source, name)
            made = lambda number, one=one: audited(shuffled(one, number), number)  # noqa: E731
            rows = rows_of(work / f"{stem}.jsonl", options.simulations, made)
        else:
            rows = lines_of(work / f"{stem}.jsonl")
        if rows:
            table.append([f"{name}, parts, users exchanged", *counted(rows)])
    if len(table) > 1:
        yield "One taste: at most 10 of 100 may be called plural.\n\n" + as_markdown(table)
    table = [["data", "sets", "smallest share stated, mean", "new plantings found at it"]]
    for name in ("votes", "compared"):
        stem = f"planted-{name}"
        if "planted" in options.kinds:
            made = lambda number, name=name: planting(KINDS[name], number, 20)  # noqa: E731
            rows = rows_of(work / f"{stem}.jsonl", options.plantings, made)
        else:
            rows = lines_of(work / f"{stem}.jsonl")
        stated = [row for row in rows if row["share"] is not None]
        if stated:
            share = float(np.mean([row["share"] for row in stated]))
            found = f"{sum(r['found'] for r in stated)} of {sum(r['of'] for r in stated)}"
            table.append([KINDS[name].told, f"{len(rows)}", f"{share:.0%}", found])
    if len(table) > 1:
        yield "An opposite taste at the stated share: 70 of 100 must be found.\n\n" + as_markdown(
            table
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [*KINDS, "shuffled", "planted"]
    parser.add_argument("--source", type=Path)
    parser.add_argument("--sets", nargs="+", default=["canadian-electoral-reform", "ssis"])
    parser.add_argument("--kinds", nargs="*", default=every, choices=every)
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--plantings", type=int, default=5, help="sets, 20 plantings each")
    parser.add_argument("--work", type=Path, default=LINES)
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    parts = list(sections(options))
    made = f"Made by `python benchmarks/audit.py` on {datetime.now(UTC):%Y-%m-%d}, {DRAWS} draws."
    text = options.out.read_text(encoding="utf-8") if options.out.exists() else ""
    text = between(text, "calibration", "\n\n".join([made, *parts]))
    options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
