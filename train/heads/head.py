"""What every head offers, and the heads by name.

A head computes r_u(prompt, item), a scalar per row, from features and *user weights*; its user table turns
the numbers of users it was trained on into weights. A user outside the table brings weights of its own.
Shapes: B rows, D features, K prototypes, N users, H latent dimension.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pal.config import TrainConfig
from pal.errors import ConfigError
from pal.train.heads.mlp import Architecture, MLPs
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import UserWeights

FIRST_SCALE, LARGEST_SCALE = 1.0 / 0.07, 100.0


class IdealPointHead(nn.Module, ABC):
    """A user prefers the item nearer to the ideal point: r = compare(f(item), ideal(prompt, w)).

    ``compare`` is -|z - a|^2 (squared), -|z - a| (distance) or tau <z, a> / |z||a| (angle), with tau a
    learnable scale of at most 100.
    """

    uses_prompt: bool

    def __init__(
        self, dim: int, users: int, k: int, latent_dim: int, mlp: Architecture, score: str, weights: str
    ) -> None:
        super().__init__()
        self.k = k
        self.score = score
        self.item_scale = Standardiser(dim)
        self.f = MLPs(1, dim, latent_dim, mlp)
        self.users = UserWeights(users, k, weights)
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE))) if score == "angle" else None

    @abstractmethod
    def ideal(self, prompt_BD: Tensor | None, w_BK: Tensor) -> Tensor:
        """Return the users' ideal points under the prompts, (B, H)."""

    @abstractmethod
    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Return every parameter once, under ``maps``, ``prototypes``, ``users`` or ``scale``."""

    def place(self, item_BD: Tensor) -> Tensor:
        """Return f of the standardised items, (B, H)."""
        placed: Tensor = self.f(self.item_scale(item_BD))[0]
        return placed

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, w_BK: Tensor) -> Tensor:
        """Return r_u(prompt, item), (B,)."""
        return self.compare(self.place(item_BD), self.ideal(prompt_BD, w_BK))

    def margin(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor, w_BK: Tensor) -> Tensor:
        """Return r_u(first) - r_u(second), (B,); positive means that the first is preferred."""
        ideal_BH = self.ideal(prompt_BD, w_BK)
        first_BH, second_BH = self.place(torch.cat([first_BD, second_BD])).chunk(2)
        return self.compare(first_BH, ideal_BH) - self.compare(second_BH, ideal_BH)

    def compare(self, placed_BH: Tensor, ideal_BH: Tensor) -> Tensor:
        """Return the reward of placed items for ideal points, (B,)."""
        if self.log_scale is not None:
            return self.log_scale.exp() * nn.functional.cosine_similarity(placed_BH, ideal_BH, dim=1)
        difference = placed_BH - ideal_BH
        if self.score == "squared":
            return -difference.square().sum(dim=1)
        return -torch.linalg.vector_norm(difference, dim=1)

    def forward(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor, user_B: Tensor) -> Tensor:
        """Return the margins of users of the table, (B,).

        Where no prompt enters and the users are fewer than the rows, each ideal point is computed once.
        """
        users = self.users.logits.shape[0]
        if self.uses_prompt or users >= user_B.shape[0]:
            return self.margin(prompt_BD, first_BD, second_BD, self.users(user_B))
        everyone = torch.arange(users, device=user_B.device)
        ideal_BH = self.ideal(None, self.users(everyone))[user_B]
        first_BH, second_BH = self.place(torch.cat([first_BD, second_BD])).chunk(2)
        return self.compare(first_BH, ideal_BH) - self.compare(second_BH, ideal_BH)

    def upper_limits(self) -> dict[str, float]:
        """Return the parameters that must be brought back after a step, by name, with their largest value.

        The scale is clamped itself and not in the forward pass, where it would lose its gradient for good.
        """
        return {} if self.log_scale is None else {"log_scale": math.log(LARGEST_SCALE)}

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring parameters back into their range after a step."""
        parameters = dict(self.named_parameters())
        for name, limit in self.upper_limits().items():
            parameters[name].clamp_(max=limit)


def heads() -> dict[str, tuple[Callable[..., IdealPointHead], dict[str, str]]]:
    """Return each head's class and its own defaults for settings that are null."""
    from pal.train.heads.pal_a import PalA
    from pal.train.heads.pal_b import PalB

    return {
        "pal-a": (PalA, {"mlp": "mlp2-relu-dropout0-residual", "score": "squared"}),
        "pal-b": (PalB, {"mlp": "mlp2-gelu-dropout0", "score": "angle"}),
    }


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill in the chosen head's defaults; raises ConfigError for an unknown head."""
    table = heads()
    if config.head not in table:
        close = difflib.get_close_matches(config.head, table, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ConfigError(f"unknown head {config.head!r}{hint} valid: {', '.join(table)}")
    defaults = {key: value for key, value in table[config.head][1].items() if getattr(config, key) is None}
    return config.model_copy(update=defaults)


def build_head(config: TrainConfig, dim: int, users: int) -> IdealPointHead:
    """Build an untrained head for features of ``dim`` dimensions and a table of ``users`` users.

    Weights are drawn from torch's global generator: seed it first.
    """
    config = resolve(config)
    build, _ = heads()[config.head]
    assert config.mlp is not None
    return build(
        dim=dim,
        users=users,
        k=config.k,
        latent_dim=config.latent_dim or dim,
        mlp=Architecture.parse(config.mlp),
        score=config.score,
        weights=config.weights,
    )
