"""The two models of an audit, for many vectors of labels at once.

    m_u(row) = place (s_0 + a_u) + b_u S(row) + sum_k w_uk D_k(row)
    S(row)   = x . s + E                   b_u = softplus(omega_u),  w_u = softmax(lambda_u)
    D_k(row) = x . v_k + eps_k

A *row* is what is answered: one thing, or two that are compared, whose x, E and eps are the first's
less the second's. The consensus model is the one with K = 0. All of s, E, a_u and omega_u
(around where b is 1) are normal with spreads that the data have; v_k ~ N(0, sigma^2), eps ~
N(0, tau^2), lambda ~ N(0, 1), as in ``pal.train.solve.mixture``. b_u, the place and the spreads are
what the audit adds, to both models.

All draws of a null have the same shapes, so a batch of them is one problem: whatever is fitted is
(..., B), the draws last, and one matrix product serves all. Shapes: B draws, n answers, R rows, T
things, F features, K prototypes, N users.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from pal.audit.descent import Function
from pal.audit.design import Cells, Design, Table
from pal.train.heads.consensus import OF_ONE
from pal.train.solve.choose import DEFAULT
from pal.train.solve.mixture import Strength

K = 8
"""prototypes of the plural model: those that nobody needs shrink to nothing"""
FULL = 0.05
"""share of the table of users and rows that is answered, from which on the table is computed"""
CURVATURE = 0.2
"""p (1 - p) of a usual answer: what the diagonal of the Hessian is guessed by"""


class Parts(NamedTuple):
    """What is fitted, draws last."""

    base: Tensor
    """(1, B)"""
    ready: Tensor
    """(N, B) a"""
    omega: Tensor
    """(N, B) from OF_ONE, where b is 1"""
    shared: Tensor
    """(F, B) s"""
    shared_residual: Tensor
    """(T, B) E"""
    deviations: Tensor
    """(F, K, B) v"""
    residuals: Tensor
    """(T, K, B) eps; (T, 0, B) where tau is 0"""
    logits: Tensor
    """(N, K, B) lambda"""

    @property
    def reliability(self) -> Tensor:
        """(N, B) b"""
        return softplus(self.omega + OF_ONE)

    @property
    def weights(self) -> Tensor:
        """(N, K, B) on the simplex"""
        return self.logits.softmax(dim=1)


class Model:
    """The negative log posterior of a design, with its slope; ``k`` 0 is the consensus model."""

    def __init__(self, design: Design, k: int, strength: Strength = DEFAULT) -> None:
        self.design, self.k, self.strength = design, k, strength
        width = design.x.shape[1]
        of_things = k if strength.tau else 0
        self.shapes = [
            (1,), (design.users,), (design.users,), (width,), (design.things,), (width, k),
            (design.things, of_things), (design.users, k),
        ]  # fmt: skip
        self.sizes = [int(torch.Size(shape).numel()) for shape in self.shapes]
        table = design.users * len(design.x)
        is_full = design.user.dim() == 1 and len(design.row) > FULL * table
        self.mixing: type[Cells] | type[Table] = Table if is_full else Cells
        self.precision = self._joined(*self._precisions())
        self.scale = 1.0 / self._joined(*self._curvatures())

    def split(self, theta: Tensor) -> Parts:
        """Return views of the parts of numbers, (P, B)."""
        pieces = theta.split(self.sizes)
        shaped = zip(pieces, self.shapes, strict=True)
        return Parts(*(piece.view(*shape, theta.shape[1]) for piece, shape in shaped))

    def zeros(self, draws: int) -> Tensor:
        return self.design.x.new_zeros(sum(self.sizes), draws)

    def _precisions(self) -> list[float]:
        sigma, tau = self.strength
        shared = [spread**-2 for spread in self.design.spreads]
        return [0.0, *shared, sigma**-2 if sigma else 1.0, tau**-2 if tau else 1.0, 1.0]

    def _curvatures(self) -> list[Tensor | float]:
        """Return a guess of the diagonal of the Hessian: priors and usual answers."""
        design = self.design
        answers = torch.bincount(design.row, minlength=len(design.x)).to(design.x.dtype)
        of_features = CURVATURE * (design.x.square() * answers.unsqueeze(1)).sum(dim=0)
        counts = design.x.new_zeros(design.things).index_add_(0, design.first, answers)
        if design.second is not None:
            counts.index_add_(0, design.second, answers)
        own = design.answers_of_user
        of_users = CURVATURE * (own if own.dim() == 1 else own.mean(dim=1))
        share, precision = 1.0 / max(self.k, 1), self._precisions()
        return [
            CURVATURE * len(design.row), precision[1] + of_users, precision[2] + 0.5 * of_users,
            precision[3] + of_features, precision[4] + CURVATURE * counts,
            (precision[5] + share * of_features).unsqueeze(1),
            (precision[6] + share * CURVATURE * counts).unsqueeze(1),
            (1.0 + 0.5 * share * of_users).unsqueeze(1),
        ]  # fmt: skip

    def _joined(self, *values: Tensor | float) -> Tensor:
        """Return a value for each fitted number, (P, 1)."""
        pieces = []
        for value, shape in zip(values, self.shapes, strict=True):
            pieces.append(torch.as_tensor(value, dtype=self.design.x.dtype).expand(shape).flatten())
        return torch.cat(pieces).unsqueeze(1)

    def rows(self, part: Parts, design: Design | None = None) -> tuple[Tensor, Tensor]:
        """Return S, (R, B), and D, (R, K, B), of the rows of a design."""
        design = design or self.design
        shared = design.x @ part.shared + design.of_rows(part.shared_residual)
        if not self.k:
            return shared, shared.new_zeros(len(design.x), 0, shared.shape[1])
        own = (design.x @ part.deviations.flatten(1)).view(len(design.x), self.k, -1)
        return shared, own + design.of_rows(part.residuals) if self.strength.tau else own

    def of_labels(self, label: Tensor) -> Function:
        """Return the negative log posterior as a function to minimise, of labels (n, B)."""
        draws = label.shape[1]

        def function(theta: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            if len(which) == draws:
                return self.value_and_slope(theta, label, self.design.user)
            user = self.design.user
            if user.dim() == 2:
                user = user[:, which]
            return self.value_and_slope(theta, label[:, which], user)

        return function

    def value_and_slope(
        self, theta: Tensor, label: Tensor, user: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the negative log posterior, (B,), and its slope, (P, B), for labels (n, B);
        ``user``: of these draws, where draws exchange users."""
        design, part = self.design, self.split(theta)
        if user is not None and user is not design.user:
            design = replace(design, user=user)
        shared, own = self.rows(part)
        shared = shared.index_select(0, design.row)
        reliability = design.of_user(part.reliability)
        margin = design.place * (part.base + design.of_user(part.ready)) + reliability * shared
        if self.k:
            weights = part.weights
            mixed = self.mixing(design, weights, own)
            margin += mixed.margin
        off = torch.sigmoid(margin) - label
        value = (softplus(margin) - label * margin).sum(dim=0)
        weighted = self.precision * theta
        value += 0.5 * (weighted * theta).sum(dim=0)

        slope = weighted
        down = self.split(slope)
        placed = design.place * off
        down.base.add_(placed.sum(dim=0))
        down.ready.add_(design.by_user(placed))
        steep = torch.sigmoid(part.omega + OF_ONE)
        down.omega.add_(steep * design.by_user(off * shared))
        of_rows = design.by_row(off * reliability)
        down.shared.add_(design.x.T @ of_rows)
        down.shared_residual.add_(design.of_things(of_rows))
        if self.k:
            along, of_rows = mixed.back(off)
            down.logits.add_(weights * (along - (weights * along).sum(dim=1, keepdim=True)))
            down.deviations.add_(
                (design.x.T @ of_rows.reshape(len(of_rows), -1)).view_as(down.deviations)
            )
            if self.strength.tau:
                down.residuals.add_(design.of_things(of_rows))
        return value, slope

    def margins(self, theta: Tensor, design: Design, dropped: Tensor) -> Tensor:
        """Return the margins, (n, B), of answers to rows of another design, moderated for the
        things whose residuals are not known, ``dropped`` (R,) of each row (0, 1 or 2)."""
        part = self.split(theta)
        shared, own = self.rows(part, design)
        reliability = design.of_user(part.reliability)
        margin = design.place * (part.base + design.of_user(part.ready))
        margin = margin + reliability * shared.index_select(0, design.row)
        variance = (design.spreads.residual * reliability).square()
        if self.k:
            weight = design.of_user(part.weights)
            margin += (weight * own.index_select(0, design.row)).sum(dim=1)
            variance = variance + self.strength.tau**2 * weight.square().sum(dim=1)
        missing = dropped.index_select(0, design.row).unsqueeze(1)
        return margin / torch.sqrt(1.0 + torch.pi * missing * variance / 8.0)
