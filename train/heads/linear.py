"""Linear baselines on standardised features, solved and not stepped (evaluation.md 3.2, 3.5, 3.6,
3.8).

x = item_scale(first) - item_scale(second); margin = <x, theta_u>. ``pal.train.solve.linear`` finds
the parameters. Shapes: B rows, D features, K directions, R numbers of a user's vector.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from pal.train.heads.drawn import drawn
from pal.train.heads.head import Head, Prepared
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import NoUsers, UserTable, UserVectors, UserWeights, Weights


class LinearHead(Head):
    """r_u(e) = <item_scale(e), theta(vector)>."""

    is_solved: ClassVar[bool] = True
    is_linear: ClassVar[bool] = True

    def __init__(self, dim: int, table: UserTable) -> None:
        super().__init__()
        self.item_scale = Standardiser(dim)
        self.users = table

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        return (self.item_scale(item_BD) * self.theta(vector_BR)).sum(dim=1)

    @abstractmethod
    def basis(self) -> Tensor | None:
        """Return the directions that vectors mix, (D, R); None for vectors that are directions
        themselves."""

    def offset(self) -> Tensor | float:
        """Return the direction that every user's is added to, (D,)."""
        return 0.0

    def theta(self, vector_BR: Tensor) -> Tensor:
        """Return each row's direction, (B, D)."""
        basis = self.basis()
        return self.offset() + (vector_BR if basis is None else vector_BR @ basis.T)

    def prepare(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> Prepared:
        """Reduce pairs to what vectors are multiplied with, (B, R), and what all users have in
        common, (B,)."""
        x = self.item_scale(first_BD) - self.item_scale(second_BD)
        basis = self.basis()
        return x if basis is None else x @ basis, (x * self.offset()).sum(dim=1)

    def prepared_margin(self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor) -> Tensor:
        return self.margin_and_slope(prepared, vector_UR, user_B)[0]

    def margin_and_slope(
        self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        slope_BR, common_B = prepared
        assert slope_BR is not None
        assert common_B is not None
        return common_B + (slope_BR * vector_UR[user_B]).sum(dim=1), slope_BR


class BradleyTerry(LinearHead):
    """``bt-linear``: one direction for everybody; convex, so its numbers do not depend on a
    seed."""

    name: ClassVar[str] = "bt-linear"

    def __init__(self, dim: int, users: int) -> None:
        super().__init__(dim, NoUsers(users))
        self.theta_D = nn.Parameter(torch.zeros(dim))

    def basis(self) -> Tensor:
        return self.theta_D.new_zeros(len(self.theta_D), 0)

    def offset(self) -> Tensor:
        return self.theta_D


class LowRank(LinearHead):
    """``lore``: r_u(e) = e^T V w_u with w_u on the simplex (Bose et al. 2025, re-derived)."""

    name: ClassVar[str] = "lore"

    def __init__(self, dim: int, users: int, *, k: int = 2, weights: Weights = "mixture") -> None:
        super().__init__(dim, UserWeights(users, k, weights))
        self.basis_DK = nn.Parameter(drawn(dim, k))

    def basis(self) -> Tensor:
        return self.basis_DK


class PerUser(LinearHead):
    """``per-user``: each user's own direction, shrunk towards the population's (sum loss: the prior
    fades)."""

    name: ClassVar[str] = "per-user"

    def __init__(self, dim: int, users: int) -> None:
        super().__init__(dim, UserVectors(users, dim, spread=0.0))
        self.theta_D = nn.Parameter(torch.zeros(dim))

    def basis(self) -> None:
        return None

    def offset(self) -> Tensor:
        return self.theta_D


class Directions(LinearHead):
    """``drm``: K principal directions of the differences, mixed freely per user (Luo et al. 2025,
    re-derived)."""

    name: ClassVar[str] = "drm"

    def __init__(self, dim: int, users: int, *, k: int = 2) -> None:
        super().__init__(dim, UserVectors(users, min(k, dim), spread=0.0))
        self.basis_DK = nn.Parameter(torch.zeros(dim, min(k, dim)))

    def basis(self) -> Tensor:
        return self.basis_DK
