"""What is known of each user: a row of raw numbers, and the vector that the reward reads.

The vector is for PAL and LoRe a point on the K-simplex (method.md 1.6), for other heads the raw
numbers themselves, and empty where all users are the same. Shapes: N users, R raw numbers each, B
rows, U users at hand, M rows of a user at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from pal.train.heads.drawn import drawn

Weights = Literal["mixture", "partition", "gumbel"]
USERS_AT_ONCE = 512


class UserTable(nn.Module, ABC):
    """One row of raw numbers per user the head was trained on; a new user gets a row by
    adaptation."""

    logits: nn.Parameter
    """(N, R)"""
    has_prior: ClassVar[bool] = False
    """whether raw numbers were fitted under a prior of N(0, 1), which then is that of new users"""

    @abstractmethod
    def of_logits(self, logits_BR: Tensor) -> Tensor:
        """Turn raw numbers into vectors, row by row; also those of users who are not in the
        table."""

    def soft(self, logits_BR: Tensor) -> Tensor:
        """Return vectors that change smoothly with the raw numbers: what adaptation optimises
        over."""
        return self.of_logits(logits_BR)

    def pull_back(self, vector_BR: Tensor, slope_BR: Tensor) -> Tensor:
        """Turn derivatives by soft vectors into derivatives by raw numbers, (B, R) each, or several
        of a vector: a vector (U, 1, R) and slopes (U, M, R).

        A table that overrides ``of_logits`` or ``soft`` overrides this, too.
        """
        return slope_BR

    @property
    def are_vectors_raw(self) -> bool:
        """Whether soft vectors are the raw numbers themselves, so that their derivatives are."""
        return type(self).pull_back is UserTable.pull_back

    def forward(self, user_B: Tensor) -> Tensor:
        """Return the vectors of users given by row number."""
        return self.of_logits(self.logits[user_B])

    def population(self) -> Tensor:
        """Return the mean vector of the table's users: that of a user nothing is known of."""
        return self.of_logits(self.logits).mean(dim=0)


class UserWeights(UserTable):
    """w_i = softmax(Omega_i), on the simplex.

    ``partition`` trains on the softmax and evaluates with all weight on its maximum; ``gumbel``
    adds Gumbel noise to the logits in training and evaluates as the mixture does.
    """

    def __init__(self, users: int, k: int, mode: Weights = "mixture") -> None:
        super().__init__()
        if mode not in get_args(Weights):
            raise ValueError(f"weights = {mode!r} must be one of {', '.join(get_args(Weights))}")
        self.mode = mode
        self.logits = nn.Parameter(drawn(users, k))

    @property
    def draws(self) -> bool:
        """Whether vectors are drawn anew for each row."""
        return self.mode == "gumbel" and self.training

    def of_logits(self, logits_BR: Tensor) -> Tensor:
        if self.mode == "partition" and not self.training:
            chosen = nn.functional.one_hot(logits_BR.argmax(dim=1), logits_BR.shape[1])
            return chosen.to(logits_BR.dtype)
        if self.draws:
            return nn.functional.gumbel_softmax(logits_BR, dim=1)
        return logits_BR.softmax(dim=1)

    def soft(self, logits_BR: Tensor) -> Tensor:
        return logits_BR.softmax(dim=1)

    def pull_back(self, vector_BR: Tensor, slope_BR: Tensor) -> Tensor:
        along = (vector_BR * slope_BR).sum(dim=-1, keepdim=True)
        return vector_BR * (slope_BR - along)  # (diag(w) - w w^T) s


class ReadyWeights(UserTable):
    """A readiness to agree a_i, and K logits: the vector is [a_i, softmax(Omega_i)], (1 + K)."""

    has_prior: ClassVar[bool] = True

    def __init__(self, users: int, k: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(users, 1 + k))

    def of_logits(self, logits_BR: Tensor) -> Tensor:
        return torch.cat([logits_BR[:, :1], logits_BR[:, 1:].softmax(dim=1)], dim=1)

    def pull_back(self, vector_BR: Tensor, slope_BR: Tensor) -> Tensor:
        weight_BK, slope_BK = vector_BR[..., 1:], slope_BR[..., 1:]
        along = (weight_BK * slope_BK).sum(dim=-1, keepdim=True)
        return torch.cat([slope_BR[..., :1], weight_BK * (slope_BK - along)], dim=-1)


class UserVectors(UserTable):
    """A free vector per user, drawn small at first."""

    def __init__(self, users: int, size: int, spread: float = 0.1) -> None:
        super().__init__()
        self.logits = nn.Parameter(drawn(users, size, lambda one_UR: one_UR.mul_(spread)))

    def of_logits(self, logits_BR: Tensor) -> Tensor:
        return logits_BR


class NoUsers(UserTable):
    """All users are the same: the vector is empty."""

    def __init__(self, users: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(users, 0))

    def of_logits(self, logits_BR: Tensor) -> Tensor:
        return logits_BR


def by_user(
    rows_BH: Tensor, user_B: Tensor, users: int, most: int | None = None
) -> tuple[Tensor, Tensor]:
    """Lay rows that are sorted by user out by user, padded with zeros: (U, M, H), and which places
    are real, (U, M); M is the most rows of a user, or ``most``."""
    count_U = torch.bincount(user_B, minlength=users)
    most = max(1, int(count_U.max())) if most is None else most
    real_UM = torch.arange(most, device=user_B.device) < count_U.unsqueeze(1)
    if len(user_B) == users * most:  # all have equally many: nothing to pad
        return rows_BH.view(users, most, -1), real_UM
    table_UMH = rows_BH.new_zeros(users, most, rows_BH.shape[1])
    table_UMH[real_UM] = rows_BH
    return table_UMH, real_UM


def blocks_of_users(user_B: Tensor, users: int) -> Iterator[tuple[slice, slice]]:
    """Yield some users at a time and their rows, which are sorted by user: what then is in memory
    stays small."""
    stops = torch.bincount(user_B, minlength=users).cumsum(0)
    start = 0
    for first in range(0, users, USERS_AT_ONCE):
        last = min(first + USERS_AT_ONCE, users)
        stop = int(stops[last - 1])
        yield slice(first, last), slice(start, stop)
        start = stop


def blocks_alike(
    user_B: Tensor, users: int, width: int, numbers: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield users with similarly many rows at a time, (U,), their rows, (B,), and whose of these
    users each is, (B,): tables of M rows a user of so many numbers then hold little that is padding
    and at most ``numbers``, unless one user alone has more. ``user_B`` is sorted."""
    count_U = torch.bincount(user_B, minlength=users)
    first_U = count_U.cumsum(0) - count_U
    order_U = count_U.argsort(stable=True)
    counts = count_U[order_U].tolist()
    start = 0
    while start < users:
        begin = start

        def laid_out(stop: int, begin: int = begin) -> int:
            return (stop - begin) * max(1, counts[stop - 1]) * width

        most = bisect_right(range(begin + 1, users + 1), numbers, key=laid_out)
        start = begin + max(1, most)
        some_U = order_U[begin:start].sort().values
        own_U = count_U[some_U]
        own_B = torch.arange(len(some_U), device=user_B.device).repeat_interleave(own_U)
        place_B = torch.arange(len(own_B), device=user_B.device) - (own_U.cumsum(0) - own_U)[own_B]
        yield some_U, first_U[some_U][own_B] + place_B, own_B
