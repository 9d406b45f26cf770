"""Baselines with a network: one reward for everybody, and one with a vector per user (evaluation.md
3.3, 3.9).

    bt-mlp          r(e)   = v^T gelu(W LN(e) + b)
    user-embedding  r_u(e) = v^T gelu(W' gelu(W [e; x_u] + b) + b')

What W makes of an item is computed once for it, and what W makes of x_u once for a user. Shapes: B
rows, T distinct items, D features, H hidden width, U users, N seen users, R numbers of a vector, C
vectors to compare.
"""

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
    """W [e; x] + b for an item and a user, in two parts: W_e e once for an item, whoever the user
    is, and W_x x + b once for a user."""

    def __init__(self, dim: int, size: int, hidden: int) -> None:
        super().__init__(dim + size, hidden)
        self.dim = dim

    def item_part(self, item_TD: Tensor) -> Tensor:
        weight_HD = self.weight[:, : self.dim]
        return nn.functional.linear(item_TD.to(weight_HD.dtype), weight_HD).to(item_TD.dtype)

    def user_part(self, vector_UR: Tensor) -> Tensor:
        weight_HR = self.weight[:, self.dim :]
        bias_H = self.bias.to(weight_HR.dtype)
        own_UH = nn.functional.linear(vector_UR.to(weight_HR.dtype), weight_HR, bias_H)
        return own_UH.to(vector_UR.dtype)


class JoinedNetwork(MappingHead):
    """r_u(e) = net([e; x_u]), and the first layer of ``net`` is ``Joined``. Pairs are prepared to
    the parts of both items in its output."""

    item_scale: Standardiser
    net: nn.Sequential

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        joined = torch.cat([self.item_scale(item_BD), vector_BR], dim=1)
        value: Tensor = self.net(joined).squeeze(1)
        return value

    def mean_reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_NR: Tensor) -> Tensor:
        hidden_BH = self.hidden(item_BD)
        total_B = hidden_BH.new_zeros(len(item_BD))
        for own_H in self.first.user_part(vector_NR):
            total_B = total_B + self.behind(hidden_BH + own_H)
        return total_B / len(vector_NR)

    @property
    def first(self) -> Joined:
        layer = self.net[0]
        assert isinstance(layer, Joined)
        return layer

    def hidden(self, item_TD: Tensor) -> Tensor:
        """Return the part of items in the output of the first layer, (T, H)."""
        return self.first.item_part(self.item_scale(item_TD))

    def behind(self, hidden_BH: Tensor) -> Tensor:
        """Return what all layers behind the first one make of its output, (B,)."""
        for layer in list(self.net)[1:]:
            hidden_BH = layer(hidden_BH)
        return hidden_BH.squeeze(1)

    def difference(self, first_BH: Tensor, second_BH: Tensor, own_BH: Tensor) -> Tensor:
        """Return the margins, (B,), from the parts of both items and of the user."""
        first, second = self.behind(torch.cat([first_BH + own_BH, second_BH + own_BH])).chunk(2)
        return first - second

    def parts(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Return the parts of both items of prepared pairs, (B, H) each."""
        first_BH, second_BH = prepared
        assert first_BH is not None
        assert second_BH is not None
        return first_BH, second_BH

    def of_items(self, item_TD: Tensor) -> Mapped:
        return (self.hidden(item_TD),)

    def prepare_mapped(self, prompt: Mapped | None, first: Mapped, second: Mapped) -> Prepared:
        return first[0], second[0]

    def prepared_margin(self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor) -> Tensor:
        return self.difference(*self.parts(prepared), self.first.user_part(vector_UR)[user_B])

    def margins_of_each(self, prepared: Prepared, vector_CR: Tensor) -> Tensor:
        both, own_CH = self.parts(prepared), self.first.user_part(vector_CR)
        return torch.stack([self.difference(*both, own_H) for own_H in own_CH], dim=1)


class UserEmbedding(JoinedNetwork):
    """r_u(e) = v^T gelu(W' gelu(W [e; x_u] + b) + b'), a vector x_u for each user."""

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
