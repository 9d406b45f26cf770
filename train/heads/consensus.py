"""``consensus``: one taste for everybody, and how reliably each user follows it.

r_u(e) = b_u h(e),  b_u = softplus(omega_u) >= 0,  h as in ``bt-mlp``: a user with b_u = 0 answers
at random, and nobody prefers the opposite. What this head reaches is no plurality of tastes. A row
of the user table holds omega_u, which starts where b_u = 1.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pal.train.heads.head import Prepared
from pal.train.heads.networks import BradleyTerryNetwork
from pal.train.heads.users import UserVectors

OF_ONE = math.log(math.e - 1.0)
"""softplus of it is 1"""


class Consensus(BradleyTerryNetwork):
    """The network of ``bt-mlp`` times a number for each user."""

    name: ClassVar[str] = "consensus"

    def __init__(self, dim: int, users: int, *, latent_dim: int | None = None) -> None:
        super().__init__(dim, users, latent_dim=latent_dim)
        self.users = UserVectors(users, 1, spread=0.0)
        self.users.logits.data.fill_(OF_ONE)

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        return softplus(vector_BR[:, 0]) * self.common(item_BD)

    def mean_reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_NR: Tensor) -> Tensor:
        return softplus(vector_NR[:, 0]).mean() * self.common(item_BD)

    def prepared_margin(self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor) -> Tensor:
        return softplus(vector_UR[user_B, 0]) * super().prepared_margin(prepared, vector_UR, user_B)

    def margin_and_slope(
        self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        (common_B,) = prepared
        assert common_B is not None
        slope_B = torch.sigmoid(vector_UR[user_B, 0]) * common_B
        return self.prepared_margin(prepared, vector_UR, user_B), slope_B.unsqueeze(1)
