"""How often the crossed 95 % intervals of evaluation hold the truth.

    python benchmarks/coverage.py [--simulations 2000]      -> docs/results/coverage.md

U users answer P prompts, all of them or a random 30 %. Answers are right with probability
Phi(m + a_u + b_p), a_u and b_p normal: the truth, over new users and new prompts, is then
Phi(m / sqrt(1 + var a + var b)). Four cases: both effects, one of them, none. Beside the crossed
interval stands the one over users alone, Student's t of the users' means.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

from pal.evaluate.crossed import Crossing

TABLE = Path(__file__).resolve().parents[1] / "docs" / "results" / "coverage.md"
USERS, PROMPTS, SHARES = (5, 15, 50, 150), (5, 20, 100, 500), (1.0, 0.3)
EFFECTS = {"both": (0.5, 0.5), "users": (0.5, 0.0), "prompts": (0.0, 0.5), "none": (0.0, 0.0)}
"""standard deviations of a_u and b_p"""
MEAN = 0.7


def simulate(
    generator: np.random.Generator,
    users: int,
    prompts: int,
    share: float,
    spread: tuple[float, float],
) -> tuple[np.ndarray, Crossing]:
    """Return answers, right or wrong, (n,), and who gave them; at least two by each user."""
    user, prompt = np.divmod(np.arange(users * prompts), prompts)
    own, shared = (
        size * generator.standard_normal(n)
        for size, n in zip(spread, (users, prompts), strict=True)
    )
    if share < 1.0:
        chance = generator.random((users, prompts))
        least = np.sort(chance, axis=1)[:, 1:2]
        kept = (chance <= np.maximum(share, least)).ravel()
        user, prompt = user[kept], prompt[kept]
    right = generator.random(len(user)) < norm.cdf(MEAN + own[user] + shared[prompt])
    return right.astype(np.float64), Crossing.of_names(user, prompt)


def coverage(
    users: int, prompts: int, share: float, effects: str, simulations: int
) -> tuple[float, float, float]:
    """Return how often the crossed interval holds the truth, its mean width, and how often the
    interval over users alone does."""
    spread = EFFECTS[effects]
    truth = float(norm.cdf(MEAN / np.sqrt(1.0 + spread[0] ** 2 + spread[1] ** 2)))
    place = [users, prompts, int(100 * share), list(EFFECTS).index(effects)]
    generator = np.random.default_rng(place)
    held, width, alone = 0, 0.0, 0
    for _ in range(simulations):
        right, crossing = simulate(generator, users, prompts, share, spread)
        found = crossing.macro(right).ci95
        assert found is not None
        held += found[0] <= truth <= found[1]
        width += found[1] - found[0]
        means = crossing.user_means(right)
        half = student.ppf(0.975, users - 1) * means.std(ddof=1) / np.sqrt(users)
        alone += abs(means.mean() - truth) <= half
    return held / simulations, width / simulations, alone / simulations


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000)
    options = parser.parse_args(arguments)
    lines = [
        "# Coverage of the crossed intervals",
        "",
        f"Made by `python benchmarks/coverage.py --simulations {options.simulations}` on "
        f"{datetime.now(UTC):%Y-%m-%d}. Percent of the",
        "simulations whose nominal 95 % interval holds the truth, users and prompts new; in",
        "brackets that of the interval over users alone. The script says how the answers are made.",
    ]
    for share in SHARES:
        who = (
            "every user answers every prompt"
            if share == 1.0
            else f"{share:.0%} of the answers, at random"
        )
        for effects in EFFECTS:
            lines += ["", f"## Effects: {effects}; {who}", ""]
            lines += [
                f"| users | {' | '.join(f'{p} prompts' for p in PROMPTS)} |",
                "|---|" + "---|" * len(PROMPTS),
            ]
            for users in USERS:
                cells = []
                for prompts in PROMPTS:
                    held, _, alone = coverage(users, prompts, share, effects, options.simulations)
                    cells.append(f"{100 * held:.1f} ({100 * alone:.1f})")
                lines.append(f"| {users} | {' | '.join(cells)} |")
                print(share, effects, lines[-1], flush=True)
    TABLE.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
