"""Baselines with a network: one reward for everybody, and one with a vector per user (evaluation.md
3.3, 3.9)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pal.train.heads.arithmetic import Linear
from pal.train.heads.head import Mapped, MappingHead, Prepared
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


class Joined(Linear):
    """W [e; u] + b for an item and a user, in two parts: W_e e once for an item, whoever the user
    is, and W_u u + b once for a user."""

    def __init__(self, dim: int, size: int, hidden: int) -> None:
        super().__init__(dim + size, hidden)
        self.dim = dim

    def of_items(self, item_TD: Tensor) -> Tensor:
        weight_HD = self.weight[:, : self.dim]
        return nn.functional.linear(item_TD.to(weight_HD.dtype), weight_HD).to(item_TD.dtype)

    def of_vectors(self, vector_UR: Tensor) -> Tensor:
        weight_HR = self.weight[:, self.dim :]
        own_UH = nn.functional.linear(
            vector_UR.to(weight_HR.dtype), weight_HR, self.bias.to(weight_HR.dtype)
        )
        return own_UH.to(vector_UR.dtype)


class JoinedNetwork(MappingHead):
    """r_u(e) = net([e; u]), and the first layer of ``net`` is ``Joined``."""

    item_scale: Standardiser
    net: nn.Sequential

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        joined = torch.cat([self.item_scale(item_BD), vector_BR], dim=1)
        value: Tensor = self.net(joined).squeeze(1)
        return value

    def mean_reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_NR: Tensor) -> Tensor:
        (hidden_BH, *_) = self.of_items(item_BD)
        own_NH = self.first_layer().of_vectors(vector_NR)
        total_B = hidden_BH.new_zeros(len(item_BD))
        for own_H in own_NH:
            total_B = total_B + self.behind(hidden_BH + own_H)
        return total_B / len(vector_NR)

    def first_layer(self) -> Joined:
        first = self.net[0]
        assert isinstance(first, Joined)
        return first

    def behind(self, hidden_BH: Tensor) -> Tensor:
        """Return what all layers behind the first one make of its output, (B,)."""
        for layer in list(self.net)[1:]:
            hidden_BH = layer(hidden_BH)
        return hidden_BH.squeeze(1)

    def of_items(self, item_TD: Tensor) -> Mapped:
        return (self.first_layer().of_items(self.item_scale(item_TD)),)

    def prepare_mapped(self, prompt: Mapped | None, first: Mapped, second: Mapped) -> Prepared:
        return first[0], second[0]

    def prepared_margin(self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor) -> Tensor:
        first_BH, second_BH = prepared[:2]
        assert first_BH is not None
        assert second_BH is not None
        own_BH = self.first_layer().of_vectors(vector_UR)[user_B]
        return self.difference(first_BH, second_BH, own_BH)

    def margins_of_each(self, prepared: Prepared, vector_CR: Tensor) -> Tensor:
        first_BH, second_BH = prepared[:2]
        assert first_BH is not None
        assert second_BH is not None
        own_CH = self.first_layer().of_vectors(vector_CR)
        return torch.stack([self.difference(first_BH, second_BH, own_H) for own_H in own_CH], 1)

    def difference(self, first_BH: Tensor, second_BH: Tensor, own_BH: Tensor) -> Tensor:
        """Return the margins, (B,), of what the first layer makes of two items and of a user."""
        first, second = self.behind(torch.cat([first_BH + own_BH, second_BH + own_BH])).chunk(2)
        return first - second


class UserEmbedding(JoinedNetwork):
    """r_u(e) = v^T gelu(W' gelu(W [e; u_u] + b) + b'), a vector u_u for each user."""

    name: ClassVar[str] = "user-embedding"
    has_residuals: ClassVar[bool] = True
    can_be_rounded: ClassVar[bool] = True

    def __init__(self, dim: int, users: int, *, latent_dim: int | None = None) -> None:
        super().__init__()
        hidden = latent_dim or dim
        self.item_scale = Standardiser(dim)
        self.users = UserVectors(users, USER_VECTOR)
        self.net = nn.Sequential(
            Joined(dim, USER_VECTOR, hidden),
            nn.GELU(),
            Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 1, bias=False),
        )

    def moderate(self, size: float) -> None:
        shrink_last(self.net, size)


@torch.no_grad()
def shrink_last(net: nn.Sequential, size: float) -> None:
    """Divide the last layer, which has no bias, by a number."""
    last = net[-1]
    assert isinstance(last, nn.Linear)
    last.weight /= size
