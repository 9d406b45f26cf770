"""Linear baselines on standardised features, solved and not stepped (evaluation.md 3.2, 3.5, 3.6, 3.8).

x = item_scale(first) - item_scale(second); margin = <x, theta_u>. Losses are mean cross-entropy over pairs
plus (lambda/2)|.|^2; lambda is chosen by the validation pairs' likelihood. Shapes: B rows, D features, K
directions, N users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pal.config import TrainConfig
from pal.train.convex import Rows, best_ridge, fit_low_rank, fit_shrunk_users, rows_of
from pal.train.heads.head import Head
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import NoUsers, UserTable, UserVectors, UserWeights

if TYPE_CHECKING:
    from pal.train.run import TrainingData


class LinearHead(Head):
    """r_u(e) = <item_scale(e), theta(code)>."""

    is_solved = True

    def __init__(self, dim: int, users: UserTable) -> None:
        super().__init__()
        self.item_scale = Standardiser(dim)
        self.users = users

    def theta(self, code_BR: Tensor) -> Tensor:
        """Return each row's direction, (B, D)."""
        raise NotImplementedError

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, code_BR: Tensor) -> Tensor:
        return (self.item_scale(item_BD) * self.theta(code_BR)).sum(dim=1)

    def rows(self, data: TrainingData) -> tuple[Rows, Rows]:
        """Return standardised differences, labels and users of the training and validation pairs."""
        return rows_of(self, data.features, data.train), rows_of(self, data.features, data.val)


class BradleyTerry(LinearHead):
    """``bt-linear``: one direction for everybody; convex, so its numbers do not depend on a seed."""

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__(dim, NoUsers(users))
        self.theta_D = nn.Parameter(torch.zeros(dim))

    def theta(self, code_BR: Tensor) -> Tensor:
        return self.theta_D.expand(len(code_BR), -1)

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

    def theta(self, code_BR: Tensor) -> Tensor:
        return code_BR @ self.basis_DK.T

    def prepare(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> tuple[Tensor | None, ...]:
        return ((self.item_scale(first_BD) - self.item_scale(second_BD)) @ self.basis_DK,)

    def prepared_margin(self, prepared: tuple[Tensor | None, ...], code_UR: Tensor, user_B: Tensor) -> Tensor:
        (projected_BK,) = prepared
        assert projected_BK is not None
        return (projected_BK * code_UR[user_B]).sum(dim=1)

    def solve(self, data: TrainingData, settings: TrainConfig) -> None:
        train, val = self.rows(data)
        start, ridge = best_ridge(train, val, settings.ridge)
        # random directions apart from each other and from the common one, or all K would stay equal
        noise = self.basis_DK.detach() * start.norm() / self.basis_DK.detach().norm(dim=0)
        self.basis_DK.data = start.unsqueeze(1) + (0.0 if self.basis_DK.shape[1] == 1 else 1.0) * noise
        fit_low_rank(self.basis_DK, self.users.logits, train, ridge)

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {"maps": [self.basis_DK], "users": list(self.users.parameters())}


class PerUser(LinearHead):
    """``per-user``: each user's own direction, shrunk towards the population's (sum loss: the prior fades)."""

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__(dim, UserVectors(users, dim, spread=0.0))
        self.theta_D = nn.Parameter(torch.zeros(dim))

    def theta(self, code_BR: Tensor) -> Tensor:
        return self.theta_D + code_BR

    def solve(self, data: TrainingData, settings: TrainConfig) -> None:
        train, val = self.rows(data)
        self.theta_D.data, _ = best_ridge(train, val, settings.ridge)
        self.users.logits.data = fit_shrunk_users(self.theta_D.data, train, val, len(data.users))

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {"maps": [self.theta_D], "users": list(self.users.parameters())}


class Directions(LinearHead):
    """``drm``: K principal directions of the differences, mixed freely per user (Luo et al. 2025, re-derived)."""

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__(dim, UserVectors(users, min(config.k, dim), spread=0.0))
        self.basis_DK = nn.Parameter(torch.zeros(dim, min(config.k, dim)))

    def theta(self, code_BR: Tensor) -> Tensor:
        return code_BR @ self.basis_DK.T

    def solve(self, data: TrainingData, settings: TrainConfig) -> None:
        train, val = self.rows(data)
        moment = train.x.T @ train.x / len(train.x)  # uncentred: unchanged when a pair is swapped
        basis = torch.linalg.eigh(moment).eigenvectors.flip(1)[:, : self.basis_DK.shape[1]]
        projected = (train.x @ basis).std(dim=0).clamp(min=1e-12)
        basis = basis / projected  # unit spread, so that one prior strength fits all directions
        self.basis_DK.data = basis.float()
        common, _ = best_ridge(train.project(basis), val.project(basis), settings.ridge)
        offsets = fit_shrunk_users(common, train.project(basis), val.project(basis), len(data.users))
        self.users.logits.data = common + offsets

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {"maps": [self.basis_DK], "users": list(self.users.parameters())}
