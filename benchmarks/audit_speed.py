"""How long an audit takes: all draws at once against one by one, and test A on many votes.

    python benchmarks/audit_speed.py [--one-by-one 3] [--compared]

10,000 answers of 100 users in 384 dimensions, votes or comparisons: 99 draws of the bootstrap as
one, some of them one by one, and the same folds fitted as ``auto`` and ``one-taste`` are
(pal.train.solve.posterior), which is what an audit by separate trainings would cost. 150,000 votes:
999 draws of test A. Times are of the wall and of the processor.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import expit

from pal.audit.answers import Answers, oriented
from pal.audit.cross_fit import CrossFit
from pal.audit.features import features_of
from pal.audit.ledger import Ledger
from pal.audit.nulls import Population, bootstrap
from pal.audit.overlap_test import OverlapTest
from pal.evaluate.report import Table, as_markdown
from pal.train.solve.auto import ITERATIONS
from pal.train.solve.choose import DEFAULT, NONE
from pal.train.solve.mixture import Judgements
from pal.train.solve.posterior import fit

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "audit.md"
BEGIN, END = "<!-- speed -->", "<!-- end of speed -->"
DRAWS, OVERLAP_DRAWS = 99, 999


class Spent(NamedTuple):
    wall: float
    processor: float


def timed(work: Callable[[], object]) -> Spent:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    spent = Spent(time.perf_counter() - wall, time.process_time() - processor)
    print(f"{spent.wall:.1f} s, of the processor {spent.processor:.1f}", flush=True)
    return spent


def answers_of(compared: bool) -> tuple[Answers, torch.Tensor]:
    """Return 10,000 answers of 100 users: to fresh items each, or votes on 400 statements."""
    rng = np.random.default_rng(0)
    things = 20_000 if compared else 400
    points = rng.standard_normal((things, 384))
    taste = 2.0 * points[:, :8].sum(axis=1) / np.sqrt(8)
    user = np.repeat(np.arange(100), 100)
    if compared:
        first, second = rng.permutation(things).reshape(2, -1)
        margin = taste[first] - taste[second]
    else:
        first, second = rng.integers(things, size=10_000), None
        margin = taste[first]
    label = (rng.random(10_000) < expit(margin)).astype(float)
    scaled = (points - points.mean(axis=0)) / (points.std(axis=0) * np.sqrt(384))
    made = oriented(first, second, user, label, first, first, things)
    return made, torch.from_numpy(scaled).float()


def features_test(compared: bool, one_by_one: int) -> list[list[str]]:
    """Time the null of test B."""
    answers, points = answers_of(compared)
    z = features_of(points, 0).z
    population = Population.fitted(answers, z)
    cross_fit = CrossFit(answers, z, 0, population.spreads)
    labels = np.stack([bootstrap(answers, population, 0, n) for n in range(DRAWS)], axis=1)
    batch = torch.from_numpy(labels).float()
    together = timed(lambda: list(cross_fit.gains(batch)))
    some = range(one_by_one)
    alone = timed(lambda: [list(cross_fit.gains(batch[:, n : n + 1])) for n in some])
    known = features_of(points, 0).z.double().numpy()

    def separate(number: int) -> None:
        rng = np.random.default_rng(number)
        for fold in cross_fit.folds:
            rows, second = fold.train, answers.second
            judged = Judgements(
                answers.first[rows], None if second is None else second[rows], answers.user[rows],
                labels[rows, number], answers.users,
            )  # fmt: skip
            fit(known, judged, 1, NONE[0], rng, ITERATIONS)
            fit(known, judged, 8, DEFAULT, rng, ITERATIONS)

    def every() -> None:
        for number in some:
            separate(number)

    trained = timed(every)
    kind = "comparisons of fresh items" if compared else "votes on 400 statements"
    rows = []
    for name, spent, factor in (
        (f"{DRAWS} draws at once", together, 1.0),
        (f"one by one, from {one_by_one}", alone, DRAWS / one_by_one),
        (f"as separate trainings, from {one_by_one}", trained, DRAWS / one_by_one),
    ):
        times = [f"{factor * seconds:.0f}" for seconds in spent]
        ratio = factor * spent.processor / together.processor
        rows.append([kind, name, *times, f"{ratio:.1f}"])
    return rows


def overlap_test() -> list[str]:
    """Time both nulls of test A on 150,000 votes of 2,000 users about 900 statements."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(2000), 75)
    first = np.concatenate([rng.choice(900, 75, replace=False) for _ in range(2000)])
    margin = 2.0 * rng.standard_normal(900)[first] + rng.standard_normal(2000)[user]
    label = (rng.random(len(user)) < expit(margin)).astype(float)
    answers = oriented(first, None, user, label, first, first, 900)
    with tempfile.TemporaryDirectory() as folder:
        test = OverlapTest.of(
            answers, Ledger(Path(folder) / "draws", "speed"), 0, lambda steps: None
        )
        assert test is not None
        spent = timed(
            lambda: test.statistics("bootstrap", OVERLAP_DRAWS, lambda n: test.one.bootstrap(0, n))
        )
    times = [f"{seconds:.0f}" for seconds in spent]
    return ["150,000 votes", f"test A, {OVERLAP_DRAWS} draws", *times, ""]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one-by-one", type=int, default=3)
    parser.add_argument("--compared", action="store_true", help="comparisons of fresh items, too")
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args(arguments)
    table: Table = [["answers", "what", "seconds, wall", "seconds, processor", "times the first"]]
    for compared in (False, True) if options.compared else (False,):
        table += features_test(compared, options.one_by_one)
    table.append(overlap_test())
    load = os.getloadavg()[0]
    told = (
        f"Made by `python benchmarks/audit_speed.py` on {datetime.now(UTC):%Y-%m-%d}, "
        f"{torch.get_num_threads()} threads, load {load:.1f} on {os.cpu_count()} cores."
    )
    text = options.out.read_text(encoding="utf-8") if options.out.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    body = f"{told}\n\n{as_markdown(table)}"
    options.out.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")
    print(body)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
