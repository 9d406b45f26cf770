"""Features on one scale, by statistics of the training items that travel with the head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Standardiser(nn.Module):
    """x -> (x - mean) / (std * sqrt(D)): zero mean, and an expected squared norm of one.

    A dimension that is constant over the training items becomes zero.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def fit(self, x_ND: Tensor) -> None:
        """Take the statistics from rows of features, in float64."""
        x = x_ND.double()
        std = x.std(dim=0, correction=0)
        varies = std > 1e-6 * x.abs().amax(dim=0).clamp(min=1e-30)
        self.mean = x.mean(dim=0).float()
        self.scale = torch.where(varies, 1.0 / (std.clamp(min=1e-30) * math.sqrt(x.shape[1])), 0.0).float()

    def forward(self, x_BD: Tensor) -> Tensor:
        return (x_BD.to(self.mean.dtype) - self.mean) * self.scale
