"""Exact fits of linear heads: Newton for one direction, L-BFGS for many.

Every loss is cross-entropy of margins with soft labels; shapes: n pairs, D features, K directions,
N users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pal.train.heads.standardise import Standardiser
from pal.train.loss import logistic

if TYPE_CHECKING:
    from pal.train.pairs import Pairs

RIDGES = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4)
SHRINKAGES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
NEWTON_STEPS, TOLERANCE = 50, 1e-10
DOUBLE_BELOW = 1e8
"""numbers in a design matrix above which float32 is used: it would not fit twice"""
ROWS_AT_ONCE = 65_536


@dataclass
class Rows:
    """``x`` (n, D) differences of items, ``y`` (n,) P(first), ``user`` (n,)."""

    x: Tensor
    y: Tensor
    user: Tensor

    def project(self, basis_DK: Tensor) -> Rows:
        return Rows(self.x @ basis_DK.to(self.x), self.y, self.user)


def differences(scale: Standardiser, features: Tensor, pairs: Pairs) -> Rows:
    """Return the standardised differences of pairs, in float64 where that fits."""
    kind = torch.float64 if len(pairs) * features.shape[1] < DOUBLE_BELOW else torch.float32
    blocks = zip(pairs.first.split(ROWS_AT_ONCE), pairs.second.split(ROWS_AT_ONCE), strict=True)
    x = [(scale(features[first]) - scale(features[second])).to(kind) for first, second in blocks]
    return Rows(torch.cat(x), pairs.label.to(kind), pairs.user)


def best_ridge(train: Rows, val: Rows, ridge: float | None) -> tuple[Tensor, float]:
    """Return the direction (D,) and the ridge with the best validation likelihood; a given ridge is
    taken as it is."""
    theta = train.x.new_zeros(train.x.shape[1])
    best: tuple[float, Tensor, float] | None = None
    for strength in RIDGES if ridge is None else (ridge,):
        theta = newton(train, strength, theta)
        loss = float(logistic(val.x @ theta, val.y).mean())
        if best is None or loss < best[0]:
            best = (loss, theta, strength)
    assert best is not None
    return best[1].float(), best[2]


def newton(rows: Rows, ridge: float, start: Tensor) -> Tensor:
    """Minimise mean cross-entropy + (ridge/2)|theta|^2 from a start, with step halving."""
    theta = start.clone()
    count = len(rows.y)

    def objective(value: Tensor) -> Tensor:
        return logistic(rows.x @ value, rows.y).mean() + 0.5 * ridge * value.square().sum()

    current = objective(theta)
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(rows.x @ theta)
        gradient = rows.x.T @ (p - rows.y) / count + ridge * theta
        hessian = (rows.x * (p * (1.0 - p) / count).unsqueeze(1)).T @ rows.x
        hessian.diagonal().add_(ridge)
        step = torch.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and objective(theta - size * step) > current:
            size /= 2.0
        theta = theta - size * step
        following = objective(theta)
        if float(current - following) < TOLERANCE:
            break
        current = following
    return theta


def lbfgs(parameters: list[Tensor], objective: Callable[[], Tensor], iterations: int) -> None:
    """Minimise a function of some leaf tensors in place."""
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=iterations, tolerance_grad=1e-8, tolerance_change=1e-12,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimiser.step(closure)


def fit_low_rank(
    basis_DK: Tensor, logits_NK: Tensor, rows: Rows, ridge: float, iterations: int = 300
) -> None:
    """Minimise LoRe's loss over basis and user logits together; both are changed in place."""
    basis = basis_DK.detach().to(rows.x).requires_grad_()
    logits = logits_NK.detach().to(rows.x).requires_grad_()

    def objective() -> Tensor:
        margin = ((rows.x @ basis) * logits.softmax(dim=1)[rows.user]).sum(dim=1)
        fit = logistic(margin, rows.y).mean() + 0.5 * ridge * basis.square().sum()
        return fit + 1e-6 * logits.square().sum()

    lbfgs([basis, logits], objective, iterations)
    basis_DK.data.copy_(basis.detach())
    logits_NK.data.copy_(logits.detach())


def fit_shrunk_users(theta_D: Tensor, train: Rows, val: Rows, users: int) -> Tensor:
    """Return offsets (N, D) that minimise sum cross-entropy + (lambda/2)|o_u|^2; lambda by
    validation."""
    theta = theta_D.to(train.x)
    offsets = train.x.new_zeros(users, len(theta)).requires_grad_()
    common, best = train.x @ theta, (float("inf"), offsets.detach().clone())
    for strength in SHRINKAGES:

        def objective(strength: float = strength) -> Tensor:
            margin = common + (train.x * offsets[train.user]).sum(dim=1)
            return logistic(margin, train.y).sum() + 0.5 * strength * offsets.square().sum()

        lbfgs([offsets], objective, 60)
        margin = (val.x * (theta + offsets.detach()[val.user])).sum(dim=1)
        loss = float(logistic(margin, val.y).mean())
        if loss < best[0]:
            best = (loss, offsets.detach().clone())
    return best[1].float()
