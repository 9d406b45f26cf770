"""Who answered which rows, and the sums over them that both models of an audit are made of.

Shapes: B draws, n answers, R rows, T things, F features, K prototypes, N users.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Spreads(NamedTuple):
    """Standard deviations of what all share and of how users answer, by the data themselves.

    Both models have them, so that neither gains by a prior: with one that is too narrow for the
    shared taste, prototypes that are all alike widen it.
    """

    ready: float = 1.0
    omega: float = 1.0
    text: float = 1.0
    """of s"""
    residual: float = 1.0
    """of E"""


UNIT = Spreads()


@dataclass(frozen=True)
class Design:
    """Who answered which rows: what all draws share."""

    x: Tensor
    """(R, F)"""
    first: Tensor
    """(R,) thing"""
    second: Tensor | None
    """(R,) thing that it is compared with; None where rows are things"""
    row: Tensor
    """(n,)"""
    user: Tensor
    """(n,), or (n, B) where draws exchange users"""
    place: Tensor
    """(n, 1) 1, or -1 where the second was shown first"""
    things: int
    users: int
    spreads: Spreads = UNIT

    def of_rows(self, table: Tensor) -> Tensor:
        """Return rows of a table of things, (T, ..., B): the first's less the second's."""
        found = table.index_select(0, self.first)
        return found if self.second is None else found - table.index_select(0, self.second)

    def of_things(self, rows: Tensor) -> Tensor:
        """Return the sums over rows, (R, ..., B), that ``of_rows`` has as its transpose."""
        found = rows.new_zeros(self.things, *rows.shape[1:]).index_add_(0, self.first, rows)
        return found if self.second is None else found.index_add_(0, self.second, -rows)

    def by_row(self, values: Tensor) -> Tensor:
        """Return the sums of answers' values, (n, ..., B), over each row."""
        return values.new_zeros(len(self.x), *values.shape[1:]).index_add_(0, self.row, values)

    def by_user(self, values: Tensor) -> Tensor:
        """Return the sums of answers' values, (n, ..., B), over each user."""
        zeros = values.new_zeros(self.users, *values.shape[1:])
        if self.user.dim() == 1:
            return zeros.index_add_(0, self.user, values)
        return zeros.scatter_add_(0, self._spread(values), values)

    def of_user(self, table: Tensor) -> Tensor:
        """Return each answer's row of a table of users, (N, ..., B)."""
        if self.user.dim() == 1:
            return table.index_select(0, self.user)
        return table.gather(0, self._spread(table))

    def _spread(self, like: Tensor) -> Tensor:
        if like.dim() == 2:
            return self.user
        return self.user.unsqueeze(1).expand(-1, like.shape[1], -1)

    @property
    def answers_of_user(self) -> Tensor:
        """(N,) or (N, B)"""
        one = torch.ones(self.user.shape, dtype=self.x.dtype)
        return self.by_user(one)


class Cells:
    """sum_k w_uk D_k of each answer, (n, B), by the answers' own rows of both tables."""

    def __init__(self, design: Design, weights: Tensor, own: Tensor) -> None:
        """``weights`` (N, K, B), ``own`` (R, K, B)."""
        self.design = design
        self.weight, self.taste = design.of_user(weights), own.index_select(0, design.row)
        self.margin = (self.weight * self.taste).sum(dim=1)

    def back(self, off: Tensor) -> tuple[Tensor, Tensor]:
        """Return the slopes of both tables, from those of answers (n, B)."""
        off = off.unsqueeze(1)
        return self.design.by_user(off * self.taste), self.design.by_row(off * self.weight)


class Table:
    """The same by the table of all users and rows: as matrix products, faster than gathering by far
    where a twentieth of the table or more is answered."""

    def __init__(self, design: Design, weights: Tensor, own: Tensor) -> None:
        self.weights, self.own = (part.permute(2, 0, 1).contiguous() for part in (weights, own))
        self.cell = (design.user * len(design.x) + design.row).expand(weights.shape[2], -1)
        self.size = (weights.shape[2], design.users, len(design.x))
        table = torch.bmm(self.weights, self.own.transpose(1, 2))
        self.margin = table.view(len(table), -1).gather(1, self.cell).T

    def back(self, off: Tensor) -> tuple[Tensor, Tensor]:
        flat = off.new_zeros(self.size[0], self.size[1] * self.size[2])
        table = flat.scatter_add_(1, self.cell, off.T.contiguous()).view(self.size)
        of_weights = torch.bmm(table, self.own).permute(1, 2, 0)
        of_own = torch.bmm(table.transpose(1, 2), self.weights).permute(1, 2, 0)
        return of_weights, of_own
