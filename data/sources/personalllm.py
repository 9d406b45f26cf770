"""PersonalLLM: eight responses per prompt under ten reward models, answered by simulated users.

A user prefers the response with the larger w . z, w from Dirichlet(alpha, .., alpha) and z the
rewards, each column brought to mean 0 and deviation 1 over the source. So users are synthetic, and
convex in reward space.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from pal.chance import draw, normals, uniforms
from pal.config import ComparisonsConfig
from pal.data.comparisons import Comparison, Reject, preferred
from pal.data.rows import number_of
from pal.data.sources.rated import Rated, RatedAdapter
from pal.items import Text, question
from pal.rows import Row

MODELS = (
    "gemma_2b",
    "gemma_7b",
    "mistral_raft",
    "mistral_ray",
    "mistral_weqweasdas",
    "llama3_sfairx",
    "oasst_deberta_v3",
    "beaver_7b",
    "oasst_pythia_7b",
    "oasst_pythia_1b",
)
RESPONSES = range(1, 9)
PAIRS = tuple(combinations(range(len(RESPONSES)), 2))
TRIES = 64
"""candidates of a gamma variate; each is accepted with a probability above 0.95"""


class PersonalLlmConfig(ComparisonsConfig):
    """PersonalLLM: simulated users who mix the rewards of ten reward models."""

    users: PositiveInt = 100
    """Simulated users of all populations together."""
    alpha: PositiveFloat = 0.1
    """Concentration of the Dirichlet weights: small is one reward model per user, large is
    everybody alike."""
    pairs_per_user: PositiveInt = 200
    """Prompts drawn per user from the training rows, one pair of responses each."""
    test_pairs_per_user: PositiveInt = 50
    """The same from the test rows."""


class PersonalLlm(RatedAdapter):
    """Every user is asked about prompts of the own draw, one pair of responses each."""

    name = "personalllm"
    Settings = PersonalLlmConfig
    hub = "namkoong-lab/PersonalLLM"
    patterns = ("*.parquet", "*.csv", "*.jsonl")
    licence = "CC BY 4.0"
    config: PersonalLlmConfig

    def rated(self, row: Row, place: str, file: Path) -> Rated | Reject:
        prompt = row.get("prompt")
        responses = tuple(row.get(f"response_{number}") for number in RESPONSES)
        if not isinstance(prompt, str) or not prompt.strip():
            return Reject(place, "no-prompt", "the row has no prompt")
        if not all(isinstance(response, str) and response.strip() for response in responses):
            return Reject(place, "no-response", "the row lacks one of its eight responses")
        rewards = [
            [number_of(row.get(f"response_{n}_{model}")) for model in MODELS] for n in RESPONSES
        ]
        if any(reward is None for one in rewards for reward in one):
            return Reject(place, "no-rewards", "a reward is missing or no number")
        part = self.name_of(file).rpartition("/")[2]
        split = "test" if part.startswith("test") else "train" if part.startswith("train") else None
        return Rated(place, question(prompt), responses, tuple(map(tuple, rewards)), split)  # type: ignore[arg-type]

    def users(self) -> list[str]:
        return [f"mixture-{number:05d}" for number in range(self.config.users)]

    def weights(self, user: str) -> np.ndarray:
        return dirichlet(self.config.salt, user, self.config.alpha, len(MODELS))

    def truth(self) -> dict[str, np.ndarray]:
        """``users`` (names), ``weights`` (users, reward models), ``reward_models`` (names)."""
        users = self.users()
        weights = np.stack([self.weights(user) for user in users])
        return {"users": np.array(users), "weights": weights, "reward_models": np.array(MODELS)}

    def ask(self, rows: Sequence[Rated]) -> Iterable[Comparison | Reject]:
        if not rows:
            return
        rewards = standardised(np.array([row.ratings for row in rows]))
        numbers = np.arange(len(rows))
        test = np.array([row.split == "test" for row in rows])
        for user in self.users():
            scores = rewards @ self.weights(user)
            for kind, own, size in (
                ("ask", numbers[~test], self.config.pairs_per_user),
                ("ask-test", numbers[test], self.config.test_pairs_per_user),
            ):
                yield from self._asked(user, kind, own, size, rows, scores)

    def _asked(
        self,
        user: str,
        kind: str,
        own: np.ndarray,
        size: int,
        rows: Sequence[Rated],
        scores: np.ndarray,
    ) -> Iterator[Comparison | Reject]:
        salt = self.config.salt
        asked = own[draw(kind, salt, user, len(own), size)]
        which = (uniforms(f"{kind}-pair", salt, user, len(asked)) * len(PAIRS)).astype(int)
        for number, pair in zip(asked.tolist(), which.tolist(), strict=True):
            row, (one, other) = rows[number], PAIRS[pair]
            if scores[number, one] < scores[number, other]:
                one, other = other, one
            items = Text(row.responses[one]), Text(row.responses[other])
            yield preferred(row.place, user, row.prompt, *items, salt, split=row.split)


def standardised(rewards: np.ndarray) -> np.ndarray:
    """Bring each reward model to mean 0 and deviation 1; exact sums, so that the order of rows does
    not matter."""
    columns = rewards.reshape(-1, rewards.shape[-1]).T
    means = np.array([math.fsum(column) / len(column) for column in columns])
    spread = [
        math.sqrt(math.fsum((column - mean) ** 2) / len(column))
        for column, mean in zip(columns, means, strict=True)
    ]
    scaled: np.ndarray = (rewards - means) / np.array([value or 1.0 for value in spread])
    return scaled


def dirichlet(salt: str, key: str, alpha: float, size: int) -> np.ndarray:
    """Return the draw of Dirichlet(alpha, .., alpha) that belongs to a key.

    Gamma variates of shape alpha + 1 by Marsaglia and Tsang, brought down to alpha as logarithms: a
    small alpha would underflow otherwise.
    """
    d = alpha + 1.0 - 1.0 / 3.0
    x = normals("gamma-normal", salt, key, size * TRIES).reshape(size, TRIES)
    u = 1.0 - uniforms("gamma-uniform", salt, key, size * TRIES).reshape(size, TRIES)
    v = np.maximum(1.0 + x / np.sqrt(9.0 * d), 0.0) ** 3
    with np.errstate(divide="ignore"):
        accepted = (v > 0) & (np.log(u) < 0.5 * x**2 + d - d * v + d * np.log(v))
    first = accepted.argmax(axis=1)
    small = 1.0 - uniforms("gamma-power", salt, key, size)
    logs = np.log(d * v[np.arange(size), first]) + np.log(small) / alpha
    weights: np.ndarray = np.exp(logs - logs.max())
    return weights / weights.sum()
