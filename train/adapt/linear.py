"""The numbers of users that are best if margins were linear in their vectors: what each turn of
adaptation solves.

    argmin sum_j CE(m_j + s_j (v(omega) - v), y_j) + (1/2)(omega - mu)^T Lambda (omega - mu)

for each user alone, by damped Gauss-Newton steps. Answers are read as products of a block of users:
their margins S v, the pull S^T (p - y) and the curvature S^T D S, D = p (1 - p). What lies between
vectors and raw numbers touches R numbers of a user, and answers only where they are fewer. Shapes:
U users of a block, M answers of one at most, B answers of all, R numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pal.train.adapt.answers import Answers
from pal.train.adapt.curvature import Curvature, Step
from pal.train.adapt.prior import Prior
from pal.train.heads.users import UserTable, blocks_alike, by_user
from pal.train.loss import logistic

STEPS, SMALLEST_STEP = 12, 1e-4
NUMBERS_AT_ONCE, NUMBERS_ON_GPU = 1 << 18, 1 << 24
"""of the slopes of a block: what stays in a processor's cache, and what keeps a GPU at work"""
ROUNDING = 1e-6
"""share by which float32 may be wrong about an objective. A last step is shorter than what it can
measure, and it is the step that makes the solution exact: to refuse it would be a matter of luck"""


def is_better(new_loss: Tensor, loss: Tensor) -> Tensor:
    """Say of whom a step made the objective better, as far as rounding lets one tell."""
    return new_loss < loss + ROUNDING * (1.0 + loss.abs())


def next_size(size: Tensor, better: Tensor) -> Tensor:
    """Return the share of the next step that each goes: a whole one soon after one that helped."""
    return torch.where(better, (2.0 * size).clamp(max=1.0), size / 4.0)


def distance_from(prior: Prior, mean_UR: Tensor, raw_UR: Tensor) -> Tensor:
    """Return the negative log density of the prior round each mean, but for a constant, (U,)."""
    away_UR = raw_UR - mean_UR
    return 0.5 * ((away_UR @ prior.precision) * away_UR).sum(dim=1)


def solve_linear(
    users: UserTable,
    answers: Answers,
    prior: Prior,
    curvature: Curvature,
    start_UR: Tensor,
    margin_B: Tensor,
    slope_BR: Tensor,
) -> Tensor:
    """Return the best raw numbers of all users, (U, R); ``margin_B`` and their derivatives by the
    vectors, ``slope_BR``, are those of ``start_UR``. ``prior.mean`` is each user's own, (U, R)."""
    found_UR = torch.empty_like(start_UR)
    width = start_UR.shape[1]
    numbers = NUMBERS_AT_ONCE if start_UR.device.type == "cpu" else NUMBERS_ON_GPU
    for some, rows, own_B in blocks_alike(answers.user, answers.users, width, numbers):
        slope_UMR, real_UM = by_user(slope_BR[rows], own_B, len(some))
        both_B2 = torch.stack([margin_B[rows], answers.label[rows]], dim=1)
        margin_UM, label_UM = by_user(both_B2, own_B, len(some))[0].unbind(dim=2)
        steps = curvature.steps(users, slope_UMR)
        block = _Block(users, prior, prior.mean[some], steps, label_UM, slope_UMR, real_UM)
        found_UR[some] = block.solve(start_UR[some], margin_UM)
    return found_UR


@dataclass(frozen=True)
class _Block:
    """Some users and their answers."""

    users: UserTable
    prior: Prior
    mean_UR: Tensor
    steps: Step
    label_UM: Tensor
    slope_UMR: Tensor
    """0 where there is no answer"""
    real_UM: Tensor

    def solve(self, here: Tensor, margin_UM: Tensor) -> Tensor:
        """Return the best raw numbers; a user who has arrived stays."""
        vector = self.users.soft(here)
        fixed_UM = margin_UM - self._along(vector)
        value, loss = margin_UM, self._objective(here, margin_UM)
        size = torch.ones_like(loss)
        arrived = torch.zeros_like(loss, dtype=torch.bool)
        for _ in range(STEPS):
            step = self._step(here, vector, value)
            tried = here - size.unsqueeze(1) * step
            new_vector = self.users.soft(tried)
            new_value = fixed_UM + self._along(new_vector)
            new_loss = self._objective(tried, new_value)
            better = is_better(new_loss, loss) & ~arrived
            arrived |= better & (step.abs().amax(dim=1) < SMALLEST_STEP)
            own = better.unsqueeze(1)
            here, vector = torch.where(own, tried, here), torch.where(own, new_vector, vector)
            value, loss = torch.where(own, new_value, value), torch.where(better, new_loss, loss)
            if bool(arrived.all()):
                break
            size = next_size(size, better)
        return here

    def _along(self, vector_UR: Tensor) -> Tensor:
        """Return S v, (U, M)."""
        return (self.slope_UMR @ vector_UR.unsqueeze(2)).squeeze(2)

    def _objective(self, raw_UR: Tensor, value_UM: Tensor) -> Tensor:
        misfit_UM = logistic(value_UM, self.label_UM) * self.real_UM
        return misfit_UM.sum(dim=1) + distance_from(self.prior, self.mean_UR, raw_UR)

    def _step(self, raw_UR: Tensor, vector_UR: Tensor, value_UM: Tensor) -> Tensor:
        """Return H^-1 times the gradient, (U, R)."""
        p_UM = torch.sigmoid(value_UM)
        pull_UR = ((p_UM - self.label_UM).unsqueeze(1) @ self.slope_UMR).squeeze(1)
        gradient_UR = self.users.pull_back(vector_UR, pull_UR)
        gradient_UR = gradient_UR + (raw_UR - self.mean_UR) @ self.prior.precision
        return self.steps(vector_UR, p_UM * (1.0 - p_UM), gradient_UR)
