"""What a head knows of each user: a table of raw numbers, and how they become the user's *code*.

The code is what rewards are computed from: for PAL and LoRe a point on the K-simplex (method.md 1.6), for
other heads a free vector, for homogeneous ones nothing. Shapes: N users, R raw numbers each, B rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class UserTable(nn.Module, ABC):
    """One row of raw numbers per user the head was trained on; a new user gets a row by adaptation."""

    logits: nn.Parameter
    """(N, R)"""

    @abstractmethod
    def of_logits(self, logits_BR: Tensor) -> Tensor:
        """Turn raw numbers into codes, row by row; also those of users who are not in the table."""

    def forward(self, user_B: Tensor) -> Tensor:
        """Return the codes of users given by row number."""
        return self.of_logits(self.logits[user_B])

    def population(self) -> Tensor:
        """Return the mean code of the table's users: that of a user nothing is known of."""
        return self.of_logits(self.logits).mean(dim=0)


class UserWeights(UserTable):
    """w_i = softmax(Omega_i / T), on the simplex.

    ``partition`` trains on the softmax and evaluates with all weight on its maximum; ``gumbel`` adds Gumbel
    noise to the logits in training and evaluates as the mixture does.
    """

    def __init__(self, users: int, k: int, mode: str = "mixture") -> None:
        super().__init__()
        self.mode = mode
        self.logits = nn.Parameter(torch.randn(users, k))

    def of_logits(self, logits_BR: Tensor) -> Tensor:
        if self.mode == "partition" and not self.training:
            return nn.functional.one_hot(logits_BR.argmax(dim=1), logits_BR.shape[1]).to(logits_BR.dtype)
        if self.mode == "gumbel" and self.training:
            return nn.functional.gumbel_softmax(logits_BR, dim=1)
        return logits_BR.softmax(dim=1)


class UserVectors(UserTable):
    """A free vector per user, drawn small at first."""

    def __init__(self, users: int, size: int, spread: float = 0.1) -> None:
        super().__init__()
        self.logits = nn.Parameter(spread * torch.randn(users, size))

    def of_logits(self, logits_BR: Tensor) -> Tensor:
        return logits_BR


class NoUsers(UserTable):
    """All users are the same: the code is empty."""

    def __init__(self, users: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(users, 0))

    def of_logits(self, logits_BR: Tensor) -> Tensor:
        return logits_BR
