"""Similarity to landmarks: what stands for features where a map may bend (Nystroem's approximation
of a Gaussian kernel)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS_AT_ONCE = 4096


class Landmarks(nn.Module):
    """k(x, l) = exp(-|R x - R l|^2 / 2) for each of L landmarks.

    Standardised features have a squared norm of one, so the length scale is theirs. R, no metric or
    one that has been learned, says which directions count (``pal.train.solve.similar``).
    """

    points_LD: Tensor
    metric_RD: Tensor
    """without rows: R is the identity"""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("points_LD", torch.zeros(0, dim))
        self.register_buffer("metric_RD", torch.zeros(0, dim))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the similarities, (B, L)."""
        return torch.exp(-0.5 * squared_distances(self.seen(x_BD), self.seen(self.points_LD)))

    def seen(self, x_BD: Tensor) -> Tensor:
        """Return features under the metric, (B, R)."""
        return x_BD @ self.metric_RD.T if len(self.metric_RD) else x_BD


class Known(nn.Module):
    """Things of the training, recognised by their features."""

    points_TD: Tensor
    residuals_TC: Tensor
    """what is known of each thing beyond its features"""
    sure_T: Tensor
    """how well it is known, 0 to 1: by how much its answers have narrowed the prior's variance"""

    NEAR = 1e-4
    """squared distance below which two features are of one thing; those of two texts are some 1
    apart, and half precision moves a feature by less than 1e-6"""

    def __init__(self, dim: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("points_TD", torch.zeros(0, dim))
        self.register_buffer("residuals_TC", torch.zeros(0, columns))
        self.register_buffer("sure_T", torch.zeros(0))

    def forward(self, x_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the residuals, (B, C), zero for what is not known; and how well it is known, (B,)
        0 to 1."""
        if not len(self.points_TD):
            return x_BD.new_zeros(len(x_BD), self.residuals_TC.shape[1]), x_BD.new_zeros(len(x_BD))
        found, places = [], []
        for block in x_BD.split(ROWS_AT_ONCE):
            distance, place = squared_distances(block, self.points_TD).min(dim=1)
            found.append((distance < self.NEAR).to(x_BD.dtype))
            places.append(place)
        near_B = torch.cat(found) if found else x_BD.new_zeros(0)
        place_B = torch.cat(places) if places else near_B.long()
        return near_B.unsqueeze(1) * self.residuals_TC[place_B], near_B * self.sure_T[place_B]


def squared_distances(one_BD: Tensor, other_LD: Tensor) -> Tensor:
    """Return |x - y|^2 of all pairs, (B, L)."""
    inner_BL = one_BD @ other_LD.T
    squares_BL = one_BD.square().sum(dim=1, keepdim=True) + other_LD.square().sum(dim=1)
    return (squares_BL - 2.0 * inner_BL).clamp(min=0.0)
