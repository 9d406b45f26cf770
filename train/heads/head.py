"""What every head offers, and the heads by name.

A head computes r_u(prompt, item), a scalar per row, from features and the user's *code*; its user
table turns the numbers of users it was trained on into codes. A user outside the table brings a
code of its own. Shapes: B rows, D features, R numbers of a code (K prototypes for PAL), N users, H
latent dimension.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pal.config import TrainConfig
from pal.errors import ConfigError
from pal.train.heads.users import UserTable

if TYPE_CHECKING:
    from pal.train.fit import TrainingData

Prepared = tuple[Tensor | None, ...]


class Head(nn.Module, ABC):
    """A reward on features. ``users`` is its user table."""

    uses_prompt = False
    """whether it reads the prompt's feature"""
    is_solved = False
    """whether ``solve`` finds its parameters, instead of gradient steps"""
    is_amortised = False
    """whether ``infer`` adapts it, instead of an optimisation over the raw numbers"""
    users: UserTable

    @abstractmethod
    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, code_BR: Tensor) -> Tensor:
        """Return r_u(prompt, item), (B,)."""

    @abstractmethod
    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Return every parameter once, under ``maps``, ``prototypes``, ``users`` or ``scale``."""

    def margin(
        self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor, code_BR: Tensor
    ) -> Tensor:
        """Return r_u(first) - r_u(second), (B,); positive means that the first is preferred."""
        return self.reward(prompt_BD, first_BD, code_BR) - self.reward(
            prompt_BD, second_BD, code_BR
        )

    def forward(
        self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor, user_B: Tensor
    ) -> Tensor:
        """Return the margins of users of the table, (B,)."""
        return self.margin(prompt_BD, first_BD, second_BD, self.users(user_B))

    def prepare(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> Prepared:
        """Compute all that margins need of pairs whoever the user is, each with B rows: once per
        adaptation."""
        return prompt_BD, first_BD, second_BD

    def prepared_margin(self, prepared: Prepared, code_UR: Tensor, user_B: Tensor) -> Tensor:
        """Return the margins of prepared pairs for U users' codes, (B,); ``user_B`` says whose each
        pair is."""
        prompt, first, second = prepared
        assert first is not None
        assert second is not None
        return self.margin(prompt, first, second, code_UR[user_B])

    def margins_of_each(self, prepared: Prepared, code_CR: Tensor) -> Tensor:
        """Return the margins of all prepared pairs under each of C codes, (B, C)."""
        rows = next(len(value) for value in prepared if value is not None)
        columns = []
        for c in range(len(code_CR)):
            user_B = torch.full((rows,), c, dtype=torch.long, device=code_CR.device)
            columns.append(self.prepared_margin(prepared, code_CR, user_B))
        return torch.stack(columns, dim=1)

    def margin_and_slope(
        self, prepared: Prepared, code_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``prepared_margin`` and its derivatives by the own user's code, (B,) and (B, R).

        Rows are sorted by user. A pair depends on its own user alone, so one backward pass through
        a code for each row gives all derivatives. Heads with a closed form override this.
        """
        with torch.enable_grad():
            own_BR = code_UR[user_B].detach().requires_grad_()
            margin = self.prepared_margin(
                prepared, own_BR, torch.arange(len(user_B), device=user_B.device)
            )
            if not own_BR.shape[1]:
                return margin.detach(), own_BR.detach()
            (slope_BR,) = torch.autograd.grad(margin.sum(), own_BR)
        return margin.detach(), slope_BR

    def infer(self, prepared: Prepared, label: Tensor, user_B: Tensor, users: int) -> Tensor:
        """Return new users' codes by one pass over their answers, (U, R); only for heads that say
        ``is_amortised``."""
        raise NotImplementedError

    def upper_limits(self) -> dict[str, float]:
        """Return the parameters that must be brought back after a step, by name, with their largest
        value."""
        return {}

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring parameters back into their range after a step."""
        parameters = dict(self.named_parameters())
        for name, limit in self.upper_limits().items():
            parameters[name].clamp_(max=limit)

    def solve(self, data: TrainingData, settings: TrainConfig) -> None:
        """Find the parameters from all training pairs at once; only for heads that say
        ``is_solved``."""
        raise NotImplementedError


def heads() -> dict[str, tuple[type[Head], dict[str, Any]]]:
    """Return each head's class and its own defaults for settings that are null."""
    from pal.train.heads.linear import BradleyTerry, Directions, LowRank, PerUser
    from pal.train.heads.networks import BradleyTerryNetwork, UserEmbedding
    from pal.train.heads.pal_a import PalA
    from pal.train.heads.pal_b import PalB
    from pal.train.heads.variational import Variational

    return {
        "pal-a": (
            PalA,
            {"mlp": "mlp2-relu-dropout0-residual", "score": "squared", "learner": "f(Pw)"},
        ),
        "pal-b": (PalB, {"mlp": "mlp2-gelu-dropout0", "score": "angle"}),
        "bt-linear": (BradleyTerry, {}),
        "bt-mlp": (BradleyTerryNetwork, {}),
        "lore": (LowRank, {}),
        "per-user": (PerUser, {}),
        "drm": (Directions, {}),
        "user-embedding": (UserEmbedding, {}),
        "vpl": (Variational, {}),
    }


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill in the chosen head's defaults; raises ConfigError for an unknown head or a setting it
    does not read."""
    table = heads()
    if config.head not in table:
        close = difflib.get_close_matches(config.head, table, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ";"
        raise ConfigError(f"unknown head {config.head!r}{hint} valid: {', '.join(table)}")
    own = table[config.head][1]
    for key in ("mlp", "score", "learner", "bound"):
        reads = key in own or (key == "bound" and "score" in own)
        if getattr(config, key) is not None and not reads:
            raise ConfigError(
                f"train.{key} = {getattr(config, key)!r} is not read by head {config.head}; leave "
                "it null"
            )
    own = own | {"view": "response" if table[config.head][0].uses_prompt else "prompt+response"}
    return config.model_copy(
        update={key: value for key, value in own.items() if getattr(config, key) is None}
    )


def build_head(config: TrainConfig, dim: int, users: int) -> Head:
    """Build an untrained head for features of ``dim`` dimensions and a table of ``users`` users.

    Weights are drawn from torch's global generator: seed it first.
    """
    config = resolve(config)
    return heads()[config.head][0](config, dim, users)
