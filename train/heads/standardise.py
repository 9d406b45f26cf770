"""Features on one scale, by statistics of the training items that travel with the head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 8192


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

    def fit(self, features_ND: Tensor, rows: Tensor) -> None:
        """Take the statistics from some rows of a table of features, in float64, a block at a time."""
        blocks = rows.split(ROWS_AT_ONCE)
        mean, largest, square = (torch.zeros(self.mean.shape, dtype=torch.float64) for _ in range(3))
        for block in blocks:
            x = features_ND[block].double().cpu()
            mean += x.sum(dim=0) / len(rows)
            largest = torch.maximum(largest, x.abs().amax(dim=0))
        for block in blocks:
            square += (features_ND[block].double().cpu() - mean).square().sum(dim=0) / len(rows)
        std = square.sqrt()
        varies = std > 1e-6 * largest.clamp(min=1e-30)
        self.mean = mean.float()
        self.scale = torch.where(varies, 1.0 / (std.clamp(min=1e-30) * math.sqrt(len(std))), 0.0).float()

    def forward(self, x_BD: Tensor) -> Tensor:
        return (x_BD.to(self.mean.dtype) - self.mean) * self.scale
