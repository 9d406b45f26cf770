"""Baselines with a network: one reward for everybody, and one with a vector per user (evaluation.md
3.3, 3.9)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pal.train.heads.head import Head
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import NoUsers, UserVectors

USER_VECTOR = 16


class BradleyTerryNetwork(Head):
    """r(e) = v^T gelu(W LN(e) + b): the row that a personalised head must beat. No output bias: it
    cancels."""

    name: ClassVar[str] = "bt-mlp"
    has_residuals: ClassVar[bool] = True

    def __init__(self, dim: int, users: int, *, latent_dim: int | None = None) -> None:
        super().__init__()
        hidden = latent_dim or dim
        self.item_scale = Standardiser(dim)
        self.users = NoUsers(users)
        self.net = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, 1, bias=False)
        )

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        value: Tensor = self.net(self.item_scale(item_BD)).squeeze(1)
        return value

    def moderate(self, size: float) -> None:
        shrink_last(self.net, size)


class UserEmbedding(Head):
    """r_u(e) = v^T gelu(W [e; u_0 + o_u] + b): an unknown user has the mean vector."""

    name: ClassVar[str] = "user-embedding"
    has_residuals: ClassVar[bool] = True

    def __init__(self, dim: int, users: int, *, latent_dim: int | None = None) -> None:
        super().__init__()
        hidden = latent_dim or dim
        self.item_scale = Standardiser(dim)
        self.users = UserVectors(users, USER_VECTOR)
        self.net = nn.Sequential(
            nn.Linear(dim + USER_VECTOR, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, 1, bias=False),
        )  # fmt: skip

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        joined = torch.cat([self.item_scale(item_BD), vector_BR], dim=1)
        value: Tensor = self.net(joined).squeeze(1)
        return value

    def moderate(self, size: float) -> None:
        shrink_last(self.net, size)


@torch.no_grad()
def shrink_last(net: nn.Sequential, size: float) -> None:
    """Divide the last layer, which has no bias, by a number."""
    last = net[-1]
    assert isinstance(last, nn.Linear)
    last.weight /= size
