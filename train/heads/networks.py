"""Baselines with a network: one reward for everybody, and one with a vector per user (evaluation.md
3.3, 3.9)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pal.train.heads.arithmetic import Linear
from pal.train.heads.head import Head, Mapped, MappingHead, Prepared
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import NoUsers, UserVectors

USER_VECTOR = 16


class BradleyTerryNetwork(MappingHead):
    """r(e) = v^T gelu(W LN(e) + b): the row that a personalised head must beat. No output bias: it
    cancels."""

    name: ClassVar[str] = "bt-mlp"
    has_residuals: ClassVar[bool] = True
    can_be_rounded: ClassVar[bool] = True

    def __init__(self, dim: int, users: int, *, latent_dim: int | None = None) -> None:
        super().__init__()
        hidden = latent_dim or dim
        self.item_scale = Standardiser(dim)
        self.users = NoUsers(users)
        self.net = nn.Sequential(
            nn.LayerNorm(dim),
            Linear(dim, hidden),
            nn.GELU(),
            nn.Linear(hidden, 1, bias=False),
        )

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        return self.common(item_BD)

    def common(self, item_TD: Tensor) -> Tensor:
        """Return what everybody has in common, (T,)."""
        value: Tensor = self.net(self.item_scale(item_TD)).squeeze(1)
        return value

    def of_items(self, item_TD: Tensor) -> Mapped:
        return (self.common(item_TD),)

    def prepare_mapped(self, prompt: Mapped | None, first: Mapped, second: Mapped) -> Prepared:
        return (first[0] - second[0],)

    def prepared_margin(self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor) -> Tensor:
        (common_B,) = prepared
        assert common_B is not None
        return common_B

    def moderate(self, size: float) -> None:
        shrink_last(self.net, size)


class UserEmbedding(Head):
    """r_u(e) = v^T gelu(W [e; u_0 + o_u] + b): an unknown user has the mean vector."""

    name: ClassVar[str] = "user-embedding"
    has_residuals: ClassVar[bool] = True
    can_be_rounded: ClassVar[bool] = True

    def __init__(self, dim: int, users: int, *, latent_dim: int | None = None) -> None:
        super().__init__()
        hidden = latent_dim or dim
        self.item_scale = Standardiser(dim)
        self.users = UserVectors(users, USER_VECTOR)
        self.net = nn.Sequential(
            Linear(dim + USER_VECTOR, hidden),
            nn.GELU(),
            Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 1, bias=False),
        )

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
