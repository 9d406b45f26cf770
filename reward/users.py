"""Whose reward? From names, mixtures of prototypes and nothing at all to the vectors a head reads.

Shapes: n rows, R numbers of a user's vector (K weights for PAL).
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pal.errors import PalWarning, RewardError, shown
from pal.reward.audience import Audience, Newcomer, People
from pal.reward.export_record import Contents
from pal.train.adapt.average import seen_vectors
from pal.train.heads.head import Head
from pal.train.heads.users import ReadyWeights, UserVectors, UserWeights
from pal.users import user_name

User = str | int | Mapping[str, float] | Mapping[int, float] | None
"""a user's id (pal.users); a mixture, prototype number -> weight; None: whoever the model is for"""
NAMES_KEPT, LONGEST_SHOWN = 1000, 8
"""strangers named in warnings, and the letters shown of each: an id may be an address, endless, or
made to look like lines of a log"""


def vector_of_weights(head: Head, weights: Sequence[float]) -> Tensor:
    """Return the user vector that explicit weights of the prototypes make, (R,).

    Raises RewardError where they make none.
    """
    size = prototypes_of(head)
    if not isinstance(head.users, UserWeights | ReadyWeights) and head.name != "drm":
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
    if isinstance(head.users, ReadyWeights):  # of somebody who agrees as readily as most
        return torch.cat([vector.new_zeros(1), vector])
    return vector


def everybody(head: Head) -> Tensor:
    """Return what stands for all seen users in a row of vectors, (R,): the mean vector where
    rewards are linear in it, else NaN.

    Then the mean of their rewards is meant, which no vector has: the mean vector is that of
    somebody whom nobody resembles.
    """
    mean = head.users.population().detach()
    return mean if head.is_linear else torch.full_like(mean, math.nan)


def rewards_of(head: Head, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
    """Return each row's reward for its vector, and where that is everybody's the mean, (B,)."""
    anybody = vector_BR.isnan().any(dim=1)
    if not bool(anybody.any()):
        return head.reward(prompt_BD, item_BD, vector_BR)
    if bool(anybody.all()):
        return head.mean_reward(prompt_BD, item_BD, seen_vectors(head))
    found = torch.zeros(len(item_BD), device=item_BD.device)
    for rows in (anybody, ~anybody):
        some = None if prompt_BD is None else prompt_BD[rows]
        found[rows] = rewards_of(head, some, item_BD[rows], vector_BR[rows])
    return found


def prototypes_of(head: Head) -> int:
    """Return how many weights a user of the head has."""
    return head.users.logits.shape[1] - isinstance(head.users, ReadyWeights)


def prototype_vector(head: Head, k: int) -> Tensor:
    """Return the user vector of the k-th prototype alone, counted from 0, (R,)."""
    size = prototypes_of(head)
    if isinstance(head.users, UserWeights | ReadyWeights) and not 0 <= k < size:
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
        self.audiences: dict[str, Newcomer] = {}
        """who users of whom little is known may be"""
        self.default = contents.user_vector.to(device)
        self.population = self.default if self.metadata.fixed else everybody(self.head)
        self.warns_of_strangers = True
        """a server counts them instead"""
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

    def add(self, user: str | int, vector: Tensor, newcomer: Newcomer | None = None) -> None:
        """Add a user, or replace what is known of one; ``newcomer``: who the user may be, None for
        one who is just like the vector."""
        name = user_name(user)
        if name is None:
            raise RewardError("a user who is added needs an id")
        if vector.shape != self.default.shape:
            raise RewardError(
                f"a vector of shape {tuple(vector.shape)} was given for user {_shown(name)}, but "
                f"the head's users have {len(self.default)} numbers each"
            )
        with self._lock:
            self.added[name] = vector.to(self.device)
            self.audiences.pop(name, None)
            if newcomer is not None:
                self.audiences[name] = newcomer.to(self.device)

    def forget(self, user: str | int) -> None:
        """Remove an adapted user."""
        name = user_name(user)
        with self._lock:
            if name is not None:
                self.added.pop(name, None)
                self.audiences.pop(name, None)

    def vector_of(self, user: Any) -> Tensor:
        """Return the vector of an id, a mixture or nobody, (R,).

        A stranger is ``everybody``, with a warning. Raises PalError for what is none of these.
        """
        return self.mixture(user) if isinstance(user, Mapping) else self.vector(user_name(user))

    def audience_of(self, user: Any) -> Audience:
        """Return who an id, a mixture or nobody may be: one who is known is like the own vector, a
        stranger like any seen user, and so is nobody, if the model was exported for the population.

        Raises PalError for what is none of these.
        """
        if isinstance(user, Mapping):
            return People.of_one(self.mixture(user))
        name = user_name(user)
        if name is not None and name in self.audiences:
            return self.audiences[name]
        is_anybody = self.metadata.choice == "population" if name is None else name not in self
        if is_anybody and not self.metadata.fixed:
            return self.anybody
        return People.of_one(self.vector(name))

    @cached_property
    def anybody(self) -> People:
        """All seen users, each as likely as another."""
        return People.of_seen(self.head)

    @cached_property
    def table(self) -> Tensor:
        """The vectors of the head's own users, (users, R)."""
        return self.head.users(torch.arange(len(self.number), device=self.device)).detach()

    def vector(self, name: str | None) -> Tensor:
        """Return the vector of one user by name, (R,)."""
        if name is None:
            is_anybody = self.metadata.choice == "population" and not self.metadata.fixed
            return self.population if is_anybody else self.default
        added = self.added.get(name)
        if added is not None:
            return added
        if name in self.number:
            return self.table[self.number[name]]
        if self.metadata.fixed:
            known = self.metadata.user
            if name == known:
                return self.default
            whom = f"user {_shown(known)}" if known is not None else "one fixed reward"
            raise RewardError(
                f"user {_shown(name)} was asked for, but this export holds {whom} only; leave the "
                "user out, or export the population with pal export --population"
            )
        self._warn_of_stranger(name)
        return self.population

    def mixture(self, weights: Mapping[str, float] | Mapping[int, float]) -> Tensor:
        """Return the vector of prototypes mixed by number; those left out have no weight."""
        numbers = [0.0] * prototypes_of(self.head)
        for prototype, weight in weights.items():
            try:
                place = int(prototype)
                numbers[place if place >= 0 else len(numbers)] = float(weight)
            except (ValueError, TypeError, IndexError, OverflowError) as error:
                raise RewardError(
                    f"{shown(prototype, 20)}: {shown(weight, 20)} is no prototype with a weight; "
                    f"number them 0 to {len(numbers) - 1}"
                ) from error
        return vector_of_weights(self.head, numbers).to(self.device)

    def _warn_of_stranger(self, name: str) -> None:
        if not self.warns_of_strangers:
            return
        told = _shown(name)
        with self._lock:
            is_new = told not in self._warned and len(self._warned) < NAMES_KEPT
            if is_new:
                self._warned.add(told)
        if is_new:
            warnings.warn(
                f"user {told} is not known; scored as the population", PalWarning, stacklevel=4
            )


def _shown(name: str) -> str:
    beginning = shown(name, LONGEST_SHOWN)
    return beginning if len(name) <= LONGEST_SHOWN else f"{beginning}..."
