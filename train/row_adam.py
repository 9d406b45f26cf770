"""Adam for a table of which every row is a parameter of its own, as each user's weights are in the
released code."""

from __future__ import annotations

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8


class RowAdam:
    """Adam (Kingma & Ba 2015, Alg. 1) that counts steps and keeps moments row by row.

    A row that is not present in a step stays where it is, and so do its moments: for a table as one
    parameter, momentum would go on moving it. Rows are along the last but one dimension; dimensions
    before it are those of a stack.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.first, self.second = torch.zeros_like(table), torch.zeros_like(table)
        self.steps = torch.zeros_like(table[..., :1])

    @torch.no_grad()
    def step(self, gradient: Tensor, present: Tensor, rate: Tensor | float) -> None:
        """Move the rows that are ``present``, bool with the shape of the table without its last
        dimension; ``rate`` broadcasts over the table."""
        here = present.unsqueeze(-1)
        first = self.first.lerp(gradient, 1.0 - BETAS[0])
        second = self.second.lerp(gradient.square(), 1.0 - BETAS[1])
        self.steps += here
        self.first.copy_(torch.where(here, first, self.first))
        self.second.copy_(torch.where(here, second, self.second))
        steps = self.steps.clamp(min=1.0)
        root = (self.second / (1.0 - BETAS[1] ** steps)).sqrt() + EPSILON
        away = rate * (self.first / (1.0 - BETAS[0] ** steps)) / root
        self.table.sub_(torch.where(here, away, 0.0))

    def keep(self, rows: Tensor) -> None:
        """Go on with some heads of a stack only, whose tables the caller cut."""
        self.first, self.second, self.steps = (
            value[rows] for value in (self.first, self.second, self.steps)
        )
