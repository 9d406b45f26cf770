"""How sharply answers tell the numbers of their users: the curvature of each one's posterior.

    H_u = Lambda + A_u^T A_u,    A_u = the rows sqrt(p (1 - p)) g of the user's answers

with Lambda the prior's precision, which all users share, and g the derivatives of the margins by
the raw numbers. Where a user has fewer answers than numbers, H_u is never made: with P = Lambda^-1

    H_u^-1 = P - F_u^T F_u,    F_u = L^-1 A_u P,    L L^T = I + A_u P A_u^T

(the identity of Woodbury), M x R numbers and M^2 R products in place of R x R and R^3. Shapes: U
users, B rows sorted by user, M rows of a user at most, R raw numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pal.train.heads.users import UserTable, blocks_of_users, by_user

Step = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Covariance:
    """H_u^-1 of U users: ``base`` (U, R, R) where ``told`` is None; else ``base``, (R, R) of all,
    less F_u^T F_u, ``told`` (U, M, R) being F_u and ``gain`` (U,) log |I + A_u P A_u^T|."""

    base: Tensor
    told: Tensor | None = None
    gain: Tensor | None = None

    def variance(self, slope_BR: Tensor, user_B: Tensor) -> Tensor:
        """Return g^T H_u^-1 g of each row g, (B,); rows are sorted by their users."""
        found = [slope_BR.new_zeros(0)]
        users = len(self.base if self.told is None else self.told)
        for some, rows in blocks_of_users(user_B, users):
            slope = slope_BR[rows]
            if not len(slope):
                continue
            table_UBR, real_UB = by_user(slope, user_B[rows] - some.start, some.stop - some.start)
            if self.told is None:
                variance_UB = ((table_UBR @ self.base[some]) * table_UBR).sum(dim=2)
                found.append(variance_UB[real_UB])
            else:
                away_UB = (table_UBR @ self.told[some].mT).square().sum(dim=2)
                found.append(((slope @ self.base) * slope).sum(dim=1) - away_UB[real_UB])
        return torch.cat(found).clamp(min=0.0)

    def logdet(self) -> Tensor:
        """Return log |H_u^-1|, (U,)."""
        volume = torch.logdet(self.base)
        return volume if self.gain is None else volume - self.gain

    def whole(self) -> Tensor:
        """Return the matrices themselves, (U, R, R)."""
        return self.base if self.told is None else self.base - self.told.mT @ self.told

    def to(self, device: str | torch.device) -> Covariance:
        told, gain = (None if own is None else own.to(device) for own in (self.told, self.gain))
        return Covariance(self.base.to(device), told, gain)


class Curvature:
    """H_u of all users at one place; ``covariance_RR`` is the inverse of ``precision_RR``."""

    def __init__(self, precision_RR: Tensor, covariance_RR: Tensor) -> None:
        self.precision, self.prior = precision_RR, covariance_RR

    def steps(self, users: UserTable, slope_UMR: Tensor) -> Step:
        """Return what turns vectors (U, R), p (1 - p), (U, M), and gradients g, (U, R), into H_u^-1
        g, (U, R), where the margins' slopes by the vector are ``slope_UMR``, 0 where there is no
        answer."""
        if slope_UMR.shape[1] >= slope_UMR.shape[2]:
            return partial(self._step_of_many, users, slope_UMR)
        if not users.are_vectors_raw:
            return partial(self._step_of_few, users, slope_UMR)
        spread_UMR = slope_UMR @ self.prior
        return partial(self._step_of_fixed, spread_UMR, spread_UMR @ slope_UMR.mT)

    def _step_of_many(
        self, users: UserTable, slope_UMR: Tensor, vector_UR: Tensor, bend_UM: Tensor, g_UR: Tensor
    ) -> Tensor:
        """H_u itself, from S^T D S."""
        vector_U1R = vector_UR.unsqueeze(1)
        bent_URR = (bend_UM.unsqueeze(2) * slope_UMR).mT @ slope_UMR
        half_URR = users.pull_back(vector_U1R, bent_URR)
        whole_URR = self.precision + users.pull_back(vector_U1R, half_URR.mT)
        return torch.linalg.solve(whole_URR, g_UR.unsqueeze(2)).squeeze(2)

    def _step_of_few(
        self, users: UserTable, slope_UMR: Tensor, vector_UR: Tensor, bend_UM: Tensor, g_UR: Tensor
    ) -> Tensor:
        """By Woodbury's identity."""
        bent_UMR = bend_UM.sqrt().unsqueeze(2) * slope_UMR
        told_UMR, _ = self._told(users.pull_back(vector_UR.unsqueeze(1), bent_UMR))
        from_answers = told_UMR.mT @ (told_UMR @ g_UR.unsqueeze(2))
        return g_UR @ self.prior - from_answers.squeeze(2)

    def _step_of_fixed(
        self, spread_UMR: Tensor, gram_UMM: Tensor, _: Tensor, bend_UM: Tensor, g_UR: Tensor
    ) -> Tensor:
        """The same where slopes are the same at every vector, from S P and S P S^T."""
        root_UM1 = bend_UM.sqrt().unsqueeze(2)
        lower_UMM = torch.linalg.cholesky(_with_one(root_UM1 * gram_UMM * root_UM1.mT))
        seen_UM1 = root_UM1 * (spread_UMR @ g_UR.unsqueeze(2))
        weight_UM1 = root_UM1 * torch.cholesky_solve(seen_UM1, lower_UMM)
        return g_UR @ self.prior - (spread_UMR.mT @ weight_UM1).squeeze(2)

    def covariance(self, rows_BR: Tensor, user_B: Tensor, users: int) -> Covariance:
        """Return H_u^-1 of all users."""
        short = self._short(rows_BR, user_B, users)
        if short is not None:
            return short
        return Covariance(torch.linalg.inv(self._whole(rows_BR, user_B, users)))

    def _short(self, rows_BR: Tensor, user_B: Tensor, users: int) -> Covariance | None:
        """Return H_u^-1 in its short form; None where a user has as many answers as numbers."""
        size = rows_BR.shape[1]
        most = int(torch.bincount(user_B).max()) if len(user_B) else 0
        if most and most >= size:
            return None
        told, gain = rows_BR.new_zeros(users, most, size), rows_BR.new_zeros(users)
        for some, rows in blocks_of_users(user_B, users) if most else ():
            own = user_B[rows] - some.start
            table_UMR, _ = by_user(rows_BR[rows], own, some.stop - some.start, most)
            told[some], gain[some] = self._told(table_UMR)
        return Covariance(self.prior, told, gain)

    def _told(self, rows_UMR: Tensor) -> tuple[Tensor, Tensor]:
        """Return F_u, (U, M, R), and log |I + A_u P A_u^T|, (U,), of the rows of A_u."""
        spread_UMR = rows_UMR @ self.prior
        lower_UMM = torch.linalg.cholesky(_with_one(spread_UMR @ rows_UMR.mT))
        told_UMR = torch.linalg.solve_triangular(lower_UMM, spread_UMR, upper=False)
        return told_UMR, 2.0 * lower_UMM.diagonal(dim1=1, dim2=2).log().sum(dim=1)

    def _whole(self, rows_BR: Tensor, user_B: Tensor, users: int) -> Tensor:
        curvature = self.precision.repeat(users, 1, 1)
        for some, rows in blocks_of_users(user_B, users):
            own = user_B[rows] - some.start
            table_UMR, _ = by_user(rows_BR[rows], own, some.stop - some.start)
            curvature[some] += table_UMR.mT @ table_UMR
        return curvature


def _with_one(square_UMM: Tensor) -> Tensor:
    """Return I + A."""
    size = square_UMM.shape[1]
    return torch.eye(size, dtype=square_UMM.dtype, device=square_UMM.device) + square_UMM
