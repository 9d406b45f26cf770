"""How often the crossed 95 % intervals of evaluation hold the truth.

    python benchmarks/coverage.py [--simulations 2000]      -> docs/results/coverage.md

U users answer P prompts, all of them or a random 30 %. A head's answers are right with probability
Phi(m + a_u + b_p), a_u and b_p normal: the truth, over new users and new prompts, is then
Phi(m / sqrt(1 + var a + var b)). Another head, with effects of its own, is compared with it. Four
cases: both effects, one of them, none. Beside the crossed intervals stands the one over users
alone, Student's t of the users' means.

A fifth case are comparisons of two items, where items and not prompts are divided: each user
answers 20 pairs drawn at random of P items, and is right with probability Phi(m + a_u + b_i + b_j).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from pal.evaluate.crossed import Crossing, quantile

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "coverage.md"
USERS, PROMPTS, SHARES = (5, 15, 50, 150), (5, 20, 100, 500), (1.0, 0.3)
EFFECTS = {"both": (0.5, 0.5), "users": (0.5, 0.0), "prompts": (0.0, 0.5), "none": (0.0, 0.0)}
"""standard deviations of a_u and b_p"""
MEANS = (0.7, 0.3)
"""m of a head, and of the one it is compared with"""
OF_TWO = "comparisons of two items"
EACH, OF_AN_ITEM = 20, 0.35
"""answers of a user, and the standard deviation of b_i where two items are compared"""
A_DESIGN = 20
"""simulations for which the same answers are there; who answers what is drawn anew after them"""
LEAST, MOST = 0.93, 0.97
"""what coverage should be; an interval that holds more often than that is wide, not wrong"""


WIDE = """What holds too often is too wide. There, some thirty answers or fewer are all there are:
V is never less than its larger part, which of few clusters is often too large by chance, and an
interval of a share leans to 1/2 (Wilson)."""


class Coverage(NamedTuple):
    """How often intervals hold the truth."""

    accuracy: float
    difference: float
    """between two heads"""
    users_alone: float
    """of the accuracy, by an interval over users alone"""

    def __str__(self) -> str:
        return " ".join(f"{100 * share:.1f}" for share in self[:2]) + f" ({100 * self[2]:.1f})"


def design(generator: np.random.Generator, users: int, prompts: int, share: float) -> Crossing:
    """Return who answers what: a share of all, at random, and at least two by each user; a share of
    0 is of comparisons of two items."""
    if not share:
        user = np.repeat(np.arange(users), EACH)
        first = generator.integers(prompts, size=len(user))
        second = (first + generator.integers(1, prompts, size=len(user))) % prompts
        return Crossing.of_names(user, first, second)
    user, prompt = np.divmod(np.arange(users * prompts), prompts)
    if share == 1.0:
        return Crossing.of_names(user, prompt)
    chance = generator.random((users, prompts))
    least = np.sort(chance, axis=1)[:, 1:2]
    kept = (chance <= np.maximum(share, least)).ravel()
    return Crossing.of_names(user[kept], prompt[kept])


def simulate(
    generator: np.random.Generator,
    crossing: Crossing,
    mean: float,
    spread: tuple[float, float],
    times: int,
) -> np.ndarray:
    """Return answers of new users to new prompts, right or wrong, (times, n)."""
    sizes = (crossing.n_users, crossing.n_prompts)
    own, shared = (
        size * generator.standard_normal((times, n)) for size, n in zip(spread, sizes, strict=True)
    )
    logit = mean + own[:, crossing.users] + shared[:, crossing.prompts]
    if crossing.others is not None:
        logit += shared[:, crossing.others]
    right: np.ndarray = generator.random(logit.shape) < ndtr(logit)
    return right.astype(np.float64)


def coverage(users: int, prompts: int, share: float, effects: str, simulations: int) -> Coverage:
    """Return how often the intervals of one cell hold the truth."""
    spread, things = EFFECTS[effects], 1
    if not share:
        spread, things = (spread[0], OF_AN_ITEM), 2
    variance = 1.0 + spread[0] ** 2 + things * spread[1] ** 2
    truth, other = (float(ndtr(m / np.sqrt(variance))) for m in MEANS)
    place = [users, prompts, int(100 * share), list(EFFECTS).index(effects)]
    generator = np.random.default_rng(place)
    held = np.zeros(3)
    for start in range(0, simulations, A_DESIGN):
        crossing = design(generator, users, prompts, share)
        times = min(A_DESIGN, simulations - start)
        heads = [simulate(generator, crossing, mean, spread, times) for mean in MEANS]
        for right, of_other in zip(*heads, strict=True):
            found = crossing.macro(right).ci95_of_share
            apart = crossing.macro(right - of_other).ci95
            assert found is not None
            assert apart is not None
            means = crossing.user_means(right)
            half = quantile(users - 1) * means.std(ddof=1) / np.sqrt(users)
            held += (
                found[0] <= truth <= found[1],
                apart[0] <= truth - other <= apart[1],
                abs(means.mean() - truth) <= half,
            )
    return Coverage(*(held / simulations).tolist())


def section(share: float, effects: str, simulations: int) -> tuple[list[str], list[str]]:
    """Return the table of one case, and what misses the aim in it."""
    who = "every user answers every prompt" if share == 1.0 else f"{share:.0%} of the answers"
    who = who if share else OF_TWO
    thing = "prompts" if share else "items"
    head = ["users", *(f"{prompts} {thing}" for prompts in PROMPTS)]
    lines = [f"## Effects: {effects}; {who}", "", f"| {' | '.join(head)} |", "|---" * 5 + "|"]
    missed = []
    for users in USERS:
        cells = []
        for prompts in PROMPTS:
            found = coverage(users, prompts, share, effects, simulations)
            cells.append(str(found))
            for kind, value in zip(("accuracy", "difference"), found[:2], strict=True):
                if value < LEAST or (effects == "both" and value > MOST):
                    place = f"{users} users x {prompts} {thing}"
                    missed.append(f"{kind} {100 * value:.1f}, {place}, effects {effects}, {who}")
        lines.append(f"| {users} | {' | '.join(cells)} |")
        print(share, effects, lines[-1], flush=True)
    return lines, missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    tables: list[str] = []
    missed: list[str] = []
    cases = [(share, effects) for share in SHARES for effects in EFFECTS]
    for share, effects in [*cases, (0.0, "both")]:
        lines, outside = section(share, effects, options.simulations)
        tables += ["", *lines]
        missed += outside
    error = 100 * np.sqrt(0.95 * 0.05 / options.simulations)
    text = [
        "# Coverage of the crossed intervals",
        "",
        f"Made by `python benchmarks/coverage.py --simulations {options.simulations}` on "
        f"{datetime.now(UTC):%Y-%m-%d}, in {time.perf_counter() - began:.0f} s on one core.",
        "Percent of the simulations whose nominal 95 % interval holds the truth, users and prompts "
        "new:",
        "of an accuracy, of a difference between two heads, and in brackets of the accuracy by an",
        "interval over users alone. The script says how the answers are made. Each figure has a",
        f"standard error of {error:.1f}.",
        "",
        f"Aim: {100 * LEAST:.0f} to {100 * MOST:.0f} where both effects exist, at least "
        f"{100 * LEAST:.0f} elsewhere. Outside of it" + (":" if missed else ": nothing."),
        "",
        *(f"- {line}" for line in missed),
        *(["", WIDE] if missed else []),
    ]
    TABLE.write_text("\n".join([*text, *tables]).replace("\n\n\n", "\n\n") + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
