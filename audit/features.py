"""Things as features: their similarities to landmarks, in the directions where they vary most."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pal.train.solve.similar import Similarities

WIDTH, VARIANCE = 160, 0.99
"""directions at most, and the share of the variance that is enough"""


class Features(NamedTuple):
    """What both models read of things."""

    z: Tensor
    """(T, F) float32, with a mean of zero and a mean squared norm of about one"""
    variance: float
    """share of the variance of all similarities that they keep"""


def features_of(points: Tensor, seed: int) -> Features:
    """Return the features of things from their standardised ones, (T, X).

    They are those that ``auto`` begins with, turned to principal axes and cut: an audit fits
    thousands of models, and what is cut says next to nothing. No answer is read.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(points))
    similar = Similarities.of(points, order).features_of()
    spread, axes = np.linalg.eigh(similar.T @ similar / len(similar))
    share = np.cumsum(spread[::-1]) / max(spread.sum(), 1e-30)
    width = min(int(np.searchsorted(share, VARIANCE)) + 1, WIDTH, len(share))
    z = similar @ axes[:, ::-1][:, :width]
    return Features(torch.from_numpy(np.ascontiguousarray(z)).float(), float(share[width - 1]))
