"""Where the same two answers are given to all prompts: which item of a pair agrees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ANSWERS = 2
"""Agree and Disagree, say"""


class Apart(NamedTuple):
    """By how much the items of B pairs differ, each distinct pair of items once."""

    apart_RD: Tensor
    """first less second item, in float64"""
    count_R: Tensor
    """how many pairs are so"""
    place_B: Tensor
    """which of them each pair is"""

    @classmethod
    def of(cls, points_TD: Tensor, first_B: Tensor, second_B: Tensor) -> Apart:
        """Take pairs by their items' places in a table of points."""
        items = len(points_TD)
        distinct, place_B, count_R = (first_B * items + second_B).unique(
            return_inverse=True, return_counts=True
        )
        apart_RD = points_TD[distinct // items].double() - points_TD[distinct % items].double()
        return cls(apart_RD, count_R.double(), place_B)

    def axis(self) -> Tensor:
        """Return the direction along which most pairs differ, (D,), of such a length that along it
        they are one apart on average.

        Which end agrees it cannot say: whoever uses it gives residuals and users' readiness the
        sign that goes with it.
        """
        moment_DD = self.apart_RD.T @ (self.apart_RD * self.count_R.unsqueeze(1))
        axis_D = torch.linalg.eigh(moment_DD).eigenvectors[:, -1]
        length = (self.apart_RD @ axis_D).abs() @ self.count_R / self.count_R.sum()
        return axis_D / length

    def first_agrees(self) -> Tensor:
        """Return for each pair whether its first item is at one end of the axis, (B,) bool."""
        return (self.apart_RD @ self.axis() > 0.0)[self.place_B]
