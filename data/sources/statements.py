"""Groups of users who answer yes-or-no statements: the construction of method.md 3.2.

Group k owns the k-th interest. A user is asked statements of every interest, answers those of the
own interest as a person with that interest would, and all others the opposite way. Users may have
several interests, or shares of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from pal.chance import dirichlet, draw, uniforms
from pal.config import GroupedStatementsConfig
from pal.data.comparisons import Chunk
from pal.data.splits import split_of
from pal.dataset import SPLITS, Population, Split
from pal.errors import DataError
from pal.items import Text

ANSWERS = (" Yes", " No")


@dataclass(frozen=True)
class Statement:
    """One question, the interest it belongs to, and whether a person with that interest says
    yes."""

    question: str
    interest: int
    matches_yes: bool


def ask(statements: Sequence[Statement], config: GroupedStatementsConfig) -> Chunk:
    """Let every user answer: items for all statements, pairs for seen, validation and test users.

    Unseen users have adaptation pairs (split train) and, by their role, pairs of split val or test.
    """
    rows: list[Statement] = sorted(set(statements), key=lambda statement: statement.question)
    split = np.array(
        [SPLITS.index(split_of(config.salt, statement.question)) for statement in rows]
    )
    owner = np.array([statement.interest for statement in rows])
    matches_yes = np.array([statement.matches_yes for statement in rows])
    ids = {
        end: np.array([Text(s.question + end).id for s in rows], dtype=object)
        for end in ("", *ANSWERS)
    }
    pools = [np.flatnonzero(split == number) for number in range(len(SPLITS))]

    def answers(
        user: str, number: int, population: Population, name: Split, size: int
    ) -> pl.DataFrame:
        group, share = number % config.groups, shares_of(user, number, config)
        pool = pools[SPLITS.index(name)]
        if size > len(pool):
            raise DataError(
                f"{size} {name} pairs per user were asked for, but only {len(pool)} statements "
                "are in that "
                f"split; lower the number of pairs per user or use more statements"
            )
        asked = pool[draw(f"ask-{name}", config.salt, user, len(pool), size)]
        chance = uniforms(f"answer-{name}", config.salt, user, 2 * size)
        yes_first = chance[:size] < 0.5
        agrees = uniforms(f"agree-{name}", config.salt, user, size) < share[owner[asked]]
        says_yes = matches_yes[asked] == agrees
        says_yes ^= chance[size:] < config.noise
        return pl.DataFrame(
            {
                "user_id": [user] * size,
                "prompt_id": ids[""][asked].tolist(),
                "first_id": np.where(yes_first, ids[" Yes"][asked], ids[" No"][asked]).tolist(),
                "second_id": np.where(yes_first, ids[" No"][asked], ids[" Yes"][asked]).tolist(),
                "label": (says_yes == yes_first).astype(np.float64),
                "split": [name] * size,
                "population": [population] * size,
                "group": [group] * size,
            },
            schema_overrides={
                "prompt_id": pl.Binary,
                "first_id": pl.Binary,
                "second_id": pl.Binary,
                "group": pl.Int32,
            },
        )

    frames = []
    for user, role, number in users_of(config):
        population: Population = "seen" if role == "seen" else "unseen"
        frames.append(answers(user, number, population, "train", config.pairs_per_user))
        if role != "test":
            frames.append(
                answers(user, number, population, "val", config.validation_pairs_per_user)
            )
        if role != "val":
            frames.append(answers(user, number, population, "test", config.test_pairs_per_user))
    texts = [text for s in rows for text in (s.question, s.question + " Yes", s.question + " No")]
    items = pl.DataFrame(
        {
            "item_id": np.stack([ids[""], ids[" Yes"], ids[" No"]], axis=1).ravel().tolist(),
            "modality": ["text"] * len(texts),
            "text": texts,
        },
        schema={"item_id": pl.Binary, "modality": pl.String, "text": pl.String},
    )
    return Chunk(items, pl.concat(frames))


def users_of(config: GroupedStatementsConfig) -> Iterator[tuple[str, str, int]]:
    """Yield every user's name, role (seen, val, test) and number among those of the role."""
    for role, count in (
        ("seen", config.users),
        ("val", config.validation_users),
        ("test", config.unseen_users),
    ):
        for number in range(count):
            yield f"{'seen' if role == 'seen' else f'unseen-{role}'}-{number:05d}", role, number


def shares_of(user: str, number: int, config: GroupedStatementsConfig) -> np.ndarray:
    """Return how likely a user answers a statement of each interest as a person with it would,
    (K*,)."""
    if config.regime == "mixture":
        return dirichlet("interests", config.salt, user, config.groups)
    share = np.zeros(config.groups)
    share[(number + np.arange(min(config.interests_per_user, config.groups))) % config.groups] = 1.0
    return share


def planted(config: GroupedStatementsConfig) -> dict[str, np.ndarray]:
    """Return ``users`` (names) and their ``weights`` (users, K*), each interest's share."""
    users = list(users_of(config))
    return {
        "users": np.array([user for user, _, _ in users]),
        "weights": np.stack([shares_of(user, number, config) for user, _, number in users]),
    }
