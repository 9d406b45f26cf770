"""Planted prototypes and users in feature space: the generator of method.md 3.1.

x ~ N(0, I/d),  p_k ~ N(0, I/d),  M with entries N(0, 1/d)
margin* = |M(x_2 - a)|^2 - |M(x_1 - a)|^2,   a = sum_k w_k p_k
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl
from pydantic import Field, PositiveInt

from pal.chance import dirichlet, normals, uniforms
from pal.config import PlantedGroupsConfig
from pal.data.adapter import Adapter, Part
from pal.data.comparisons import Chunk, in_blocks
from pal.dataset import Population, Split
from pal.items import Feature

MLP_WIDTH = 4


class SimulatedConfig(PlantedGroupsConfig):
    """Planted prototypes and users in feature space (method.md 3.1); every pair is of fresh
    items."""

    needs_source: ClassVar[bool] = False

    dim: PositiveInt = 16
    """Feature dimension d."""
    groups: PositiveInt = 3
    """K*, the number of planted prototypes."""
    regime: Literal["partition", "mixture"] = "partition"
    """True user weights: one prototype each, or Dirichlet(1, .., 1)."""
    map: Literal["identity", "linear", "mlp"] = "linear"
    """True map from feature space to preference space."""
    noise: Annotated[float, Field(ge=0.0)] = 0.0
    """Temperature of the answers: P(first) = sigmoid(margin / noise); 0 answers by the sign."""


class Simulated(Adapter):
    """Every user compares fresh items of its own; items bring their features, there are no
    prompts."""

    name = "simulated"
    Settings = SimulatedConfig
    config: SimulatedConfig
    licence = "generated"
    origin = "generated"
    keeps_unused_items = True

    def __init__(self, config: SimulatedConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        d, salt = config.dim, config.salt
        self.prototypes_KD = normals("prototypes", salt, str(d), config.groups * d).reshape(
            -1, d
        ) / np.sqrt(d)
        self.map_DD = normals("map", salt, str(d), d * d).reshape(d, d) / np.sqrt(d)
        hidden = MLP_WIDTH * d
        self.inner_DH = normals("map-inner", salt, str(d), d * hidden).reshape(d, hidden)
        self.outer_HD = normals("map-outer", salt, str(d), hidden * d).reshape(hidden, d) / np.sqrt(
            hidden
        )
        self.users: list[tuple[str, str, np.ndarray]] = []
        for role, count in (
            ("seen", config.users),
            ("val", config.validation_users),
            ("test", config.unseen_users),
        ):
            for number in range(count):
                name = f"{'seen' if role == 'seen' else f'unseen-{role}'}-{number:05d}"
                self.users.append((name, role, self._weights(name, number)))

    def _weights(self, user: str, number: int) -> np.ndarray:
        if self.config.regime == "partition":
            return np.eye(self.config.groups)[number % self.config.groups]
        return dirichlet("weights", self.config.salt, user, self.config.groups)

    def to_preference_space(self, x: np.ndarray) -> np.ndarray:
        """Apply the true map to rows of features."""
        if self.config.map == "identity":
            return x
        if self.config.map == "linear":
            mapped: np.ndarray = x @ self.map_DD.T
            return mapped
        activated: np.ndarray = np.maximum(x @ self.inner_DH, 0.0) @ self.outer_HD
        return activated

    def inputs(self) -> dict[str, str]:
        return {}

    def parts(self) -> Sequence[Part]:
        return [lambda: in_blocks(self.chunks())]

    def chunks(self) -> Iterator[Chunk]:
        c = self.config
        for user, role, weights in self.users:
            population: Population = "seen" if role == "seen" else "unseen"
            yield self._compare(user, weights, population, "train", c.pairs_per_user)
            if role != "test":
                yield self._compare(user, weights, population, "val", c.validation_pairs_per_user)
            if role != "val":
                yield self._compare(user, weights, population, "test", c.test_pairs_per_user)

    def truth(self) -> dict[str, np.ndarray]:
        """``prototypes`` (K*, d), ``users`` (names), ``weights`` (users, K*), ``map`` (d, d)."""
        return {
            "prototypes": self.prototypes_KD,
            "users": np.array([name for name, _, _ in self.users]),
            "weights": np.stack([weights for _, _, weights in self.users]),
            "map": self.map_DD,
        }

    def _compare(
        self, user: str, weights: np.ndarray, population: Population, split: Split, size: int
    ) -> Chunk:
        d, salt = self.config.dim, self.config.salt
        x = normals(f"items-{split}", salt, user, 2 * size * d).reshape(2 * size, d) / np.sqrt(d)
        x = x.astype(np.float32)
        distance = self.to_preference_space(x.astype(np.float64)) - self.to_preference_space(
            (weights @ self.prototypes_KD)[None]
        )
        reward = -np.square(distance).sum(axis=1)
        margin = reward[:size] - reward[size:]
        if self.config.noise:
            with np.errstate(over="ignore"):
                first_wins = uniforms(f"noise-{split}", salt, user, size) < 1.0 / (
                    1.0 + np.exp(-margin / self.config.noise)
                )
        else:
            first_wins = margin > 0
        features = [row.tobytes() for row in x]
        ids = [Feature(raw).id for raw in features]
        items = pl.DataFrame(
            {"item_id": ids, "modality": ["feature"] * len(ids), "feature": features},
            schema={"item_id": pl.Binary, "modality": pl.String, "feature": pl.Binary},
        )
        pairs = pl.DataFrame(
            {
                "user_id": [user] * size,
                "prompt_id": [None] * size,
                "first_id": ids[:size],
                "second_id": ids[size:],
                "label": first_wins.astype(np.float64),
                "split": [split] * size,
                "population": [population] * size,
            },
            schema_overrides={
                "prompt_id": pl.Binary,
                "first_id": pl.Binary,
                "second_id": pl.Binary,
            },
        )
        return Chunk(items, pairs)
