"""Where the same two answers are given to all prompts: which item of a pair agrees."""

from __future__ import annotations

import torch
from torch import Tensor

ANSWERS = 2
"""Agree and Disagree, say"""


def axis_of(apart_BD: Tensor) -> Tensor:
    """Return the direction along which most pairs of items differ, (D,) in float64, of such a
    length that along it they are one apart on average; ``apart_BD``: first less second item.

    Which end agrees it cannot say: whoever uses it gives residuals and users' readiness the sign
    that goes with it.
    """
    apart_BD = apart_BD.double()
    axis_D = torch.linalg.eigh(apart_BD.T @ apart_BD).eigenvectors[:, -1]
    return axis_D / (apart_BD @ axis_D).abs().mean()
