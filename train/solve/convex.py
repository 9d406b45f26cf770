"""Exact fits of linear heads: Newton for one direction, L-BFGS for many.

Every loss is cross-entropy of margins with soft labels. Shapes: n pairs, T distinct differences, D
features, K directions, N users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pal.errors import TrainError
from pal.train.loss import logistic
from pal.train.solve.rows import Rows

RIDGES = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
SHRINKAGES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
CLEARLY_WORSE, PATIENCE = 0.01, 2
"""nats of validation loss above the best, and how many in a row, that end a path: while users who
oppose each other cancel, a path runs along ln 2 before it falls"""
SMALL_START = 0.01
"""times N(0, 1): all users nearly alike, from where the strongest directions are found first"""
NEWTON_STEPS, TOLERANCE = 50, 1e-10
Fitted = TypeVar("Fitted")


def best_of_path(
    strengths: Sequence[float], fit: Callable[[float], tuple[float, Fitted]]
) -> Fitted:
    """Return the fit with the lowest validation loss, going from strong to weak regularisation.

    ``fit`` gives the validation loss and what was fitted. Raises TrainError where no loss is
    finite.
    """
    best: tuple[float, Fitted] | None = None
    worse = 0
    for strength in strengths:
        loss, fitted = fit(strength)
        if math.isfinite(loss) and (best is None or loss < best[0]):
            best = (loss, fitted)
        clearly = best is not None and not loss < best[0] + CLEARLY_WORSE
        worse = worse + 1 if clearly else 0
        if worse == PATIENCE:
            break
    if best is None:
        raise TrainError(
            "the validation loss was never finite; look for NaN among the features with: pal cache "
            "verify"
        )
    return best[1]


def best_ridge(train: Rows, val: Rows, ridge: float | None) -> Tensor:
    """Return the direction (D,) whose ridge has the best validation likelihood; a given ridge is
    taken as it is."""
    theta = train.x.new_zeros(train.x.shape[1])

    def fit(strength: float) -> tuple[float, Tensor]:
        nonlocal theta
        theta = newton(train, strength, theta)  # convex: the start matters to the time alone
        return float(misfit(val, theta)), theta

    return best_of_path(RIDGES if ridge is None else (ridge,), fit).float()


def misfit(rows: Rows, theta: Tensor) -> Tensor:
    """Return the mean cross-entropy of a direction (D,) that all users share; what pairs of one
    difference say is a sum."""
    margin_T = rows.x @ theta
    return (rows.count * softplus(margin_T) - rows.liked * margin_T).sum() / len(rows.y)


def newton(rows: Rows, ridge: float, start: Tensor) -> Tensor:
    """Minimise mean cross-entropy + (ridge/2)|theta|^2 from a start, with step halving."""
    theta = start.clone()
    count = len(rows.y)

    def objective(value: Tensor) -> Tensor:
        return misfit(rows, value) + 0.5 * ridge * value.square().sum()

    current = objective(theta)
    for _ in range(NEWTON_STEPS):
        p = torch.sigmoid(rows.x @ theta)
        gradient = rows.x.T @ (rows.count * p - rows.liked) / count + ridge * theta
        bend_T1 = (rows.count * p * (1.0 - p) / count).unsqueeze(1)
        hessian = (rows.x * bend_T1).T @ rows.x
        hessian.diagonal().add_(ridge)
        # in float32 a weak ridge is lost in the rounding of the Hessian
        step = torch.linalg.solve(hessian.double(), gradient.double()).to(gradient)
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
        parameters, max_iter=iterations, tolerance_grad=1e-8, tolerance_change=1e-9,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimiser.step(closure)


def best_low_rank(
    basis_DK: Tensor, logits_NK: Tensor, train: Rows, val: Rows, ridge: float | None
) -> tuple[Tensor, Tensor]:
    """Return LoRe's basis (D, K) and user logits (N, K) under the ridge with the best validation
    likelihood; a given ridge is taken as it is.

    Each ridge is fitted from the given start: the fit under a strong one is near zero, a saddle
    that no descent leaves.
    """
    train, val = train.float(), val.float()  # twice as fast, and as good here

    def fit(strength: float) -> tuple[float, tuple[Tensor, Tensor]]:
        basis, logits = fit_low_rank(basis_DK, logits_NK, train, strength)
        margin = low_rank_margins(basis, logits, val)
        return float(logistic(margin, val.y).mean()), (basis, logits)

    return best_of_path(RIDGES if ridge is None else (ridge,), fit)


def low_rank_margins(basis_DK: Tensor, logits_NK: Tensor, rows: Rows) -> Tensor:
    """Return <x, V softmax(a_u)>, (n,)."""
    weights_NK = logits_NK.softmax(dim=1)
    return (rows.times(basis_DK) * weights_NK.index_select(0, rows.user)).sum(dim=1)


def fit_low_rank(
    basis_DK: Tensor, logits_NK: Tensor, rows: Rows, ridge: float, iterations: int = 300
) -> tuple[Tensor, Tensor]:
    """Minimise LoRe's loss over basis and user logits together, from the given ones."""
    basis, logits = (
        start.detach().to(rows.x).clone().requires_grad_() for start in (basis_DK, logits_NK)
    )

    def objective() -> Tensor:
        fit = logistic(low_rank_margins(basis, logits, rows), rows.y).mean()
        return fit + 0.5 * ridge * basis.square().sum() + 1e-6 * logits.square().sum()

    lbfgs([basis, logits], objective, iterations)
    return basis.detach().float(), logits.detach().float()


def fit_shrunk_users(theta_D: Tensor, train: Rows, val: Rows, users: int) -> Tensor:
    """Return offsets (N, D) that minimise sum cross-entropy + (lambda/2)|o_u|^2; lambda by
    validation."""
    theta, train, val = theta_D.float(), train.float(), val.float()
    offsets = torch.zeros(users, len(theta), device=theta.device, requires_grad=True)
    common = train.times(theta.unsqueeze(1)).squeeze(1)

    def fit(strength: float) -> tuple[float, Tensor]:
        def objective() -> Tensor:
            margin = common + train.times_own(offsets)
            return logistic(margin, train.y).sum() + 0.5 * strength * offsets.square().sum()

        lbfgs([offsets], objective, 60)
        found = offsets.detach().clone()
        return float(logistic(val.times_own(theta + found), val.y).mean()), found

    return best_of_path(SHRINKAGES, fit)
