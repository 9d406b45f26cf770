"""What the runs of grpo.py gave, and their table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel

User = Literal["gardener", "player"]
Form = Literal["callable", "module"]
USERS: dict[User, str] = {"gardener": "seen-00000", "player": "seen-00001"}
COMPLETIONS = 8
"""of a step"""
ASKED, ANSWERS = 12, 4
"""statements that nobody was trained on, and answers to each"""


class Done(BaseModel):
    """What a run gave."""

    form: Form
    user: User | None
    """None for the policy as it was"""
    seed: int
    steps: dict[User, list[float]]
    """mean reward of each step's completions"""
    asked: dict[User, list[float]]
    """mean reward of the answers to each of the statements that were asked afterwards"""
    answers: list[str]


Runs = dict[tuple[Form, User | None, int], Done]


def opposed(user: User) -> User:
    return "player" if user == "gardener" else "gardener"


def table(runs: Runs, seeds: Sequence[int]) -> list[str]:
    """Return the rewards by step, and of the answers afterwards, in Markdown."""
    parts = by_step(runs, seeds), afterwards(runs), over_seeds(runs, seeds), forms(runs, seeds[0])
    return [line for part in parts for line in (*part, "")][:-1]


def by_step(runs: Runs, seeds: Sequence[int]) -> list[str]:
    """Return the mean rewards of five steps at a time, over the seeds whose runs are both done."""
    both = [seed for seed in seeds if all(("callable", user, seed) in runs for user in USERS)]
    titles = [f"{name}'s reward, policy for the {user}" for name in USERS for user in USERS]
    lines = [
        f"Mean reward of {COMPLETIONS} completions a step, mean over seeds {both}:", "",
        f"| steps | {' | '.join(titles)} |", "|---|---|---|---|---|",
    ]  # fmt: skip
    columns = [
        np.mean([runs["callable", user, seed].steps[name] for seed in both], axis=0)
        for name in USERS for user in USERS if both
    ]  # fmt: skip
    for start in range(0, len(columns[0]) if both else 0, 5):
        cells = [f"{column[start : start + 5].mean():+.2f}" for column in columns]
        lines.append(f"| {start + 1} to {start + 5} | {' | '.join(cells)} |")
    for user in USERS if both else ():
        gains = []
        for seed in both:
            own, other = (runs["callable", name, seed] for name in (user, opposed(user)))
            gains.append(np.subtract(own.steps[user], other.steps[user])[-10:])
        told = [
            f"{mean_and_error(gain)} (seed {seed})" for seed, gain in zip(both, gains, strict=True)
        ]
        lines += [
            "",
            f"Last ten steps, same prompts: of the {user}'s reward the {user}'s policy earns "
            f"{', '.join(told)}, {mean_and_error(np.concatenate(gains))} (all) more than the other "
            "(standard error over steps).",
        ]
    return lines


def afterwards(runs: Runs) -> list[str]:
    """Return what the answers to the statements of nobody's training earn."""
    lines = [
        f"{ANSWERS} answers to each of {ASKED} statements of nobody's training, ± standard error "
        "over the statements; gain: the reward of the user it was trained for, less what the other "
        "user's policy of the same form and seed, or the untrained policy, earns of that user:", "",
        "| form | seed | policy for | gardener's reward | player's reward | begin with yes |"
        " with no | gain on the other | on the untrained |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for (form, user, seed), done in runs.items():
        found = gains_of(runs, form, user, seed)
        gains = ["" if gain is None else mean_and_error(gain) for gain in found]
        rewards = " | ".join(mean_and_error(done.asked[name]) for name in USERS)
        lines.append(
            f"| {form} | {seed} | {user or 'nobody'} | {rewards} | {share(done, 'yes')} | "
            f"{share(done, 'no')} | {' | '.join(gains)} |"
        )
    return lines


def gains_of(runs: Runs, form: Form, user: User | None, seed: int) -> list[np.ndarray | None]:
    """Return by how much a user's policy earns more, at each statement, than the other user's and
    than the untrained one."""
    done = runs.get((form, user, seed))
    if user is None or done is None:
        return [None, None]
    others = runs.get((form, opposed(user), seed)), runs.get(("callable", None, seed))
    own = np.asarray(done.asked[user])
    return [None if other is None else own - other.asked[user] for other in others]


def over_seeds(runs: Runs, seeds: Sequence[int]) -> list[str]:
    """Return the gains of the callable, each statement's mean over the seeds."""
    lines = []
    for user in USERS:
        of_seeds = zip(*(gains_of(runs, "callable", user, seed) for seed in seeds), strict=True)
        for named, gains in zip(("other", "untrained"), of_seeds, strict=True):
            found = [gain for gain in gains if gain is not None]
            if len(found) == len(seeds):
                gain = mean_and_error(np.mean(found, axis=0))
                lines.append(f"Gain of the {user}'s policy on the {named}, all seeds: {gain}.")
    return lines


def forms(runs: Runs, seed: int) -> list[str]:
    """Return how the module form's runs differ from those of the callable."""
    lines = []
    for user in USERS:
        one, other = (runs.get((form, user, seed)) for form in ("callable", "module"))
        if one is not None and other is not None:
            half = other.steps[user]
            apart = np.abs(np.subtract(one.steps[user][: len(half)], half))
            lines.append(
                f"Module form for the {user}: its mean reward differs from the callable's by "
                f"{apart[0]:.1e} in the first step, by {apart.max():.1e} at most in {len(half)}."
            )
    return lines


def mean_and_error(values: Sequence[float] | np.ndarray) -> str:
    found = np.asarray(values, dtype=float)
    return f"{found.mean():+.2f} ± {found.std(ddof=1) / np.sqrt(len(found)):.2f}"


def share(done: Done, word: str) -> str:
    """Return how many answers begin with a word."""
    return f"{np.mean([text.strip().lower().startswith(word) for text in done.answers]):.0%}"
