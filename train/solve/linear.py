"""One function for each linear head: what is fitted, in which order.

Losses are mean cross-entropy over pairs plus (lambda/2)|.|^2; lambda is chosen by the validation
pairs' likelihood.
"""

from __future__ import annotations

import torch

from pal.config import TrainConfig
from pal.train.heads.linear import BradleyTerry, Directions, LinearHead, LowRank, PerUser
from pal.train.solve.convex import (
    SMALL_START,
    best_low_rank,
    best_ridge,
    fit_shrunk_users,
)
from pal.train.solve.problem import Problem
from pal.train.solve.rows import Rows

FLAT = 1e-10
"""share of the largest mean square below which pairs do not differ along a direction"""


def solve_bradley_terry(head: BradleyTerry, problem: Problem, settings: TrainConfig) -> None:
    train, val = rows_of(head, problem)
    head.theta_D.data = best_ridge(train, val, settings.ridge)


def solve_low_rank(head: LowRank, problem: Problem, settings: TrainConfig) -> None:
    train, val = rows_of(head, problem)
    start = SMALL_START * head.basis_DK.detach()
    head.basis_DK.data, head.users.logits.data = best_low_rank(
        start, head.users.logits, train, val, settings.ridge
    )


def solve_per_user(head: PerUser, problem: Problem, settings: TrainConfig) -> None:
    train, val = rows_of(head, problem)
    head.theta_D.data = best_ridge(train, val, settings.ridge)
    head.users.logits.data = fit_shrunk_users(head.theta_D.data, train, val, problem.users)


def solve_directions(head: Directions, problem: Problem, settings: TrainConfig) -> None:
    train, val = rows_of(head, problem)
    weighted = train.x * train.count.unsqueeze(1)
    moment = train.x.T @ weighted / len(train.y)  # uncentred: unchanged when a pair is swapped
    found = torch.linalg.eigh(moment)
    k = head.basis_DK.shape[1]
    basis, square = found.eigenvectors.flip(1)[:, :k], found.eigenvalues.flip(0)[:k]
    # a mean square of one along each direction, so that one prior strength fits all; a direction
    # in which no pair differs is none
    basis = basis * torch.where(square > FLAT * square[0], square.rsqrt(), 0.0)
    head.basis_DK.data = basis.float()
    train, val = train.project(basis), val.project(basis)
    common = best_ridge(train, val, settings.ridge)
    head.users.logits.data = common + fit_shrunk_users(common, train, val, problem.users)


def rows_of(head: LinearHead, problem: Problem) -> tuple[Rows, Rows]:
    """Return standardised differences, labels and users of the training and validation pairs."""
    train = Rows.of(head.item_scale, problem.features, problem.train)
    return train, Rows.of(head.item_scale, problem.features, problem.val)
