"""User weights: each user is a point on the K-simplex (method.md 1.6)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UserWeights(nn.Module):
    """A table of logits; w_i = softmax(Omega_i). Shapes: N users, K prototypes, B rows.

    ``partition`` trains on the softmax and evaluates with all weight on its maximum.
    """

    def __init__(self, users: int, k: int, mode: str = "mixture") -> None:
        super().__init__()
        self.mode = mode
        self.logits = nn.Parameter(torch.randn(users, k))

    def forward(self, user_B: Tensor) -> Tensor:
        """Return the weights of users given by row number, (B, K)."""
        return self.of_logits(self.logits[user_B])

    def of_logits(self, logits_BK: Tensor) -> Tensor:
        """Turn logits into weights, also those of users who are not in the table."""
        if self.mode == "partition" and not self.training:
            return nn.functional.one_hot(logits_BK.argmax(dim=1), logits_BK.shape[1]).to(logits_BK.dtype)
        return logits_BK.softmax(dim=1)

    def population(self) -> Tensor:
        """Return the mean weights of the table's users, (K,): those of a user nothing is known of."""
        return self.of_logits(self.logits).mean(dim=0)
