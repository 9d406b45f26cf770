"""Linear baselines on standardised features, solved and not stepped (evaluation.md 3.2, 3.5, 3.6,
3.8).

x = item_scale(first) - item_scale(second); margin = <x, theta_u>. Losses are mean cross-entropy
over pairs plus (lambda/2)|.|^2; lambda is chosen by the validation pairs' likelihood. Shapes: B
rows, D features, K directions, N users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pal.config import TrainConfig
from pal.train.heads.head import Head, Prepared
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import NoUsers, UserTable, UserVectors, UserWeights
from pal.train.solve.convex import Rows, best_ridge, fit_low_rank, fit_shrunk_users, rows_of

if TYPE_CHECKING:
    from pal.train.fit import TrainingData


class LinearHead(Head):
    """r_u(e) = <item_scale(e), theta(code)>."""

    is_solved = True

    def __init__(self, dim: int, users: UserTable) -> None:
        super().__init__()
        self.item_scale = Standardiser(dim)
        self.users = users

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, code_BR: Tensor) -> Tensor:
        return (self.item_scale(item_BD) * self.theta(code_BR)).sum(dim=1)

    def basis(self) -> Tensor | None:
        """Return the directions that codes mix, (D, R); None for codes that are directions
        themselves."""
        raise NotImplementedError

    def offset(self) -> Tensor | float:
        """Return the direction that every code is added to, (D,)."""
        return 0.0

    def theta(self, code_BR: Tensor) -> Tensor:
        """Return each row's direction, (B, D)."""
        basis = self.basis()
        return self.offset() + (code_BR if basis is None else code_BR @ basis.T)

    def prepare(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> Prepared:
        """Reduce pairs to what codes are multiplied with, (B, R), and what all users have in
        common, (B,)."""
        x = self.item_scale(first_BD) - self.item_scale(second_BD)
        basis = self.basis()
        return x if basis is None else x @ basis, (x * self.offset()).sum(dim=1)

    def prepared_margin(self, prepared: Prepared, code_UR: Tensor, user_B: Tensor) -> Tensor:
        return self.margin_and_slope(prepared, code_UR, user_B)[0]

    def margin_and_slope(
        self, prepared: Prepared, code_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        slope_BR, common_B = prepared
        assert slope_BR is not None
        assert common_B is not None
        return common_B + (slope_BR * code_UR[user_B]).sum(dim=1), slope_BR

    def rows(self, data: TrainingData) -> tuple[Rows, Rows]:
        """Return standardised differences, labels and users of the training and validation
        pairs."""
        return rows_of(self, data.features, data.train), rows_of(self, data.features, data.val)


class BradleyTerry(LinearHead):
    """``bt-linear``: one direction for everybody; convex, so its numbers do not depend on a
    seed."""

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__(dim, NoUsers(users))
        self.theta_D = nn.Parameter(torch.zeros(dim))

    def basis(self) -> Tensor:
        return self.theta_D.new_zeros(len(self.theta_D), 0)

    def offset(self) -> Tensor:
        return self.theta_D

    def solve(self, data: TrainingData, settings: TrainConfig) -> None:
        train, val = self.rows(data)
        self.theta_D.data, _ = best_ridge(train, val, settings.ridge)

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {"maps": [self.theta_D], "users": list(self.users.parameters())}


class LowRank(LinearHead):
    """``lore``: r_u(e) = e^T V w_u with w_u on the simplex (Bose et al. 2025, re-derived)."""

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__(dim, UserWeights(users, config.k, config.weights))
        self.basis_DK = nn.Parameter(torch.randn(dim, config.k))

    def basis(self) -> Tensor:
        return self.basis_DK

    def solve(self, data: TrainingData, settings: TrainConfig) -> None:
        train, val = self.rows(data)
        start, ridge = best_ridge(train, val, settings.ridge)
        # random directions apart from each other and from the common one, or all K would stay equal
        noise = self.basis_DK.detach() * start.norm() / self.basis_DK.detach().norm(dim=0)
        self.basis_DK.data = (
            start.unsqueeze(1) + (0.0 if self.basis_DK.shape[1] == 1 else 1.0) * noise
        )
        fit_low_rank(self.basis_DK, self.users.logits, train, ridge)

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {"maps": [self.basis_DK], "users": list(self.users.parameters())}


class PerUser(LinearHead):
    """``per-user``: each user's own direction, shrunk towards the population's (sum loss: the prior
    fades)."""

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__(dim, UserVectors(users, dim, spread=0.0))
        self.theta_D = nn.Parameter(torch.zeros(dim))

    def basis(self) -> None:
        return None

    def offset(self) -> Tensor:
        return self.theta_D

    def solve(self, data: TrainingData, settings: TrainConfig) -> None:
        train, val = self.rows(data)
        self.theta_D.data, _ = best_ridge(train, val, settings.ridge)
        self.users.logits.data = fit_shrunk_users(self.theta_D.data, train, val, len(data.users))

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {"maps": [self.theta_D], "users": list(self.users.parameters())}


class Directions(LinearHead):
    """``drm``: K principal directions of the differences, mixed freely per user (Luo et al. 2025,
    re-derived)."""

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__(dim, UserVectors(users, min(config.k, dim), spread=0.0))
        self.basis_DK = nn.Parameter(torch.zeros(dim, min(config.k, dim)))

    def basis(self) -> Tensor:
        return self.basis_DK

    def solve(self, data: TrainingData, settings: TrainConfig) -> None:
        train, val = self.rows(data)
        moment = train.x.T @ train.x / len(train.x)  # uncentred: unchanged when a pair is swapped
        basis = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, : self.basis_DK.shape[1]]
        projected = (train.x @ basis).std(dim=0).clamp(min=1e-12)
        basis = basis / projected  # unit spread, so that one prior strength fits all directions
        self.basis_DK.data = basis.float()
        common, _ = best_ridge(train.project(basis), val.project(basis), settings.ridge)
        offsets = fit_shrunk_users(
            common, train.project(basis), val.project(basis), len(data.users)
        )
        self.users.logits.data = common + offsets

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {"maps": [self.basis_DK], "users": list(self.users.parameters())}
