"""Whose reward? From names, mixtures of prototypes and nothing at all to the vectors a head reads.

Shapes: n rows, R numbers of a user's vector (K weights for PAL).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pal.errors import PalError, PalWarning, RewardError
from pal.reward.export_record import Contents
from pal.train.heads.head import Head
from pal.train.heads.users import UserVectors, UserWeights
from pal.users import user_name

User = str | int | Mapping[str, float] | Mapping[int, float] | None
"""a user's id (pal.users); a mixture, prototype number -> weight; None: whoever the model is for"""
NAMES_KEPT, LONGEST_SHOWN = 1000, 100
"""strangers named in warnings; a service asked about endless ones must not keep them all, nor whole
ones of any length"""


def vector_of_weights(head: Head, weights: Sequence[float]) -> Tensor:
    """Return the user vector that explicit weights of the prototypes make, (R,).

    Raises RewardError where they make none.
    """
    size = head.users.logits.shape[1]
    if not isinstance(head.users, UserWeights) and head.name != "drm":
        raise RewardError(
            f"head {head.name} has no prototypes to mix; choose a user or the population"
        )
    if len(weights) != size:
        raise RewardError(
            f"{len(weights)} weights were given, but the head has {size} prototypes; give one for "
            "each"
        )
    vector = torch.tensor(list(weights), dtype=torch.float32)
    if not bool(torch.isfinite(vector).all()):
        raise RewardError(f"weights must be finite numbers, not {list(weights)}")
    if isinstance(head.users, UserVectors):
        return vector
    if bool((vector < 0).any()) or not abs(float(vector.sum()) - 1.0) < 1e-3:
        raise RewardError(
            f"weights {list(weights)} must be zero or more and sum to one; divide them by their sum"
        )
    return vector


def prototype_vector(head: Head, k: int) -> Tensor:
    """Return the user vector of the k-th prototype alone, counted from 0, (R,)."""
    size = head.users.logits.shape[1]
    if isinstance(head.users, UserWeights) and not 0 <= k < size:
        raise RewardError(
            f"prototype {k} does not exist; the head has {size}, numbered from 0 to {size - 1}"
        )
    return vector_of_weights(head, [float(place == k) for place in range(size)])


class Users:
    """The vectors of everyone a model knows: the head's own table, and users adapted since."""

    def __init__(self, contents: Contents, device: str) -> None:
        self.metadata = contents.metadata
        self.head = contents.head
        self.device = device
        self.number = {name: row for row, name in enumerate(self.metadata.users)}
        self.added: dict[str, Tensor] = {}
        self.default = contents.user_vector.to(device)
        is_fixed = self.metadata.fixed
        self.population = self.default if is_fixed else self.head.users.population().detach()
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def __contains__(self, user: object) -> bool:
        """Say whether a user is known, by whichever spelling of the id; a mixture is nobody."""
        name = None if isinstance(user, Mapping) else user_name(user)
        return name is not None and (
            name in self.number or name in self.added or name == self.metadata.user
        )

    def is_stranger(self, user: object) -> bool:
        """Say whether somebody is named of whom nothing is known."""
        if isinstance(user, Mapping) or user_name(user) is None:
            return False
        return user not in self

    def add(self, user: str | int, vector: Tensor) -> None:
        """Add a user, or replace what is known of one."""
        name = user_name(user)
        if name is None:
            raise RewardError("a user who is added needs an id")
        if vector.shape != self.default.shape:
            raise RewardError(
                f"a vector of shape {tuple(vector.shape)} was given for user {name!r}, but the "
                f"head's users have {len(self.default)} numbers each"
            )
        with self._lock:
            self.added[name] = vector.to(self.device)

    def forget(self, user: str | int) -> None:
        """Remove an adapted user."""
        name = user_name(user)
        with self._lock:
            if name is not None:
                self.added.pop(name, None)

    def vectors(self, users: Sequence[Any]) -> Tensor:
        """Return one vector per row, (n, R); strangers have the population's, and a warning."""
        found: dict[str | None, Tensor] = {}
        rows = []
        for number, user in enumerate(users):
            try:
                if isinstance(user, Mapping):
                    rows.append(self.mixture(user))
                    continue
                name = user_name(user)
                if name not in found:
                    found[name] = self.vector(name)
            except PalError as error:
                raise RewardError(f"row {number}: {error}") from error
            rows.append(found[name])
        return torch.stack(rows) if rows else self.default.new_zeros(0, len(self.default))

    def vector(self, name: str | None) -> Tensor:
        """Return the vector of one user by name, (R,)."""
        if name is None:
            return self.default
        added = self.added.get(name)
        if added is not None:
            return added
        if name in self.number:
            row = torch.tensor([self.number[name]], device=self.device)
            return self.head.users(row)[0].detach()
        if self.metadata.fixed:
            known = self.metadata.user
            if name == known:
                return self.default
            whom = f"user {known!r}" if known is not None else "one fixed reward"
            raise RewardError(
                f"user {_shown(name)!r} was asked for, but this export holds {whom} only; leave "
                "the user out, or export the population with pal export --population"
            )
        self._warn_of_stranger(name)
        return self.population

    def mixture(self, weights: Mapping[str, float] | Mapping[int, float]) -> Tensor:
        """Return the vector of prototypes mixed by number; those left out have no weight."""
        numbers = [0.0] * self.head.users.logits.shape[1]
        for prototype, weight in weights.items():
            try:
                place = int(prototype)
                numbers[place if place >= 0 else len(numbers)] = float(weight)
            except (ValueError, TypeError, IndexError, OverflowError) as error:
                raise RewardError(
                    f"{prototype!r}: {weight!r} is no prototype with a weight; number them 0 to "
                    f"{len(numbers) - 1}"
                ) from error
        return vector_of_weights(self.head, numbers).to(self.device)

    def _warn_of_stranger(self, name: str) -> None:
        shown = _shown(name)
        with self._lock:
            is_new = shown not in self._warned and len(self._warned) < NAMES_KEPT
            if is_new:
                self._warned.add(shown)
        if is_new:
            warnings.warn(
                f"user {shown!r} is not known; scored as the population", PalWarning, stacklevel=4
            )


def _shown(name: str) -> str:
    return name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."
