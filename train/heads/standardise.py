"""Features on one scale, by statistics of the training items that travel with the head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pal.cache.mapped import Features

ROWS_AT_ONCE = 1024


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

    def fit(self, features_ND: Features, rows: Tensor) -> None:
        """Take the statistics from some rows of a table of features: one pass, a block at a time.

        Sums are of differences from the first block's mean, in float32 within a block and float64
        across blocks. The statistics stay on the device that the module is on.
        """
        centre: Tensor | None = None
        total, square, largest = (
            torch.zeros(self.mean.shape, dtype=torch.float64) for _ in range(3)
        )
        for block in rows.split(ROWS_AT_ONCE):
            x = features_ND[block].float()
            centre = x.mean(dim=0) if centre is None else centre
            largest = torch.maximum(largest, x.abs().amax(dim=0).double().cpu())
            x -= centre
            total += x.sum(dim=0).double().cpu()
            square += x.square().sum(dim=0).double().cpu()
        assert centre is not None, "no rows to take statistics from"
        away = total / len(rows)
        std = (square / len(rows) - away.square()).clamp(min=0.0).sqrt()
        varies = std > 1e-6 * largest.clamp(min=1e-30)
        scale = torch.where(varies, 1.0 / (std.clamp(min=1e-30) * math.sqrt(len(std))), 0.0)
        self.mean.copy_(centre.double().cpu() + away)
        self.scale.copy_(scale)

    def forward(self, x_BD: Tensor) -> Tensor:
        return (x_BD.to(self.mean.dtype) - self.mean).mul_(self.scale)
