"""Whose reward? From names, mixtures of prototypes and nothing at all to the codes that a head
reads."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pal.errors import PalWarning, RewardError
from pal.reward.folder import Contents
from pal.train.heads.head import Head
from pal.train.heads.users import UserVectors, UserWeights

User = str | Mapping[str, float] | Mapping[int, float] | None
"""a user's id; a mixture, prototype number -> weight; None: whoever the model was exported for"""


def code_of(head: Head, name: str, weights: Sequence[float]) -> Tensor:
    """Return the code that explicit weights of the prototypes make, (R,); raises RewardError where
    they make none."""
    size = head.users.logits.shape[1]
    if not isinstance(head.users, UserWeights) and name != "drm":
        raise RewardError(f"head {name} has no prototypes to mix; choose a user or the population")
    if len(weights) != size:
        raise RewardError(
            f"{len(weights)} weights were given, but the head has {size} prototypes; give one for "
            "each"
        )
    code = torch.tensor(list(weights), dtype=torch.float32)
    if not bool(torch.isfinite(code).all()):
        raise RewardError(f"weights must be finite numbers, not {list(weights)}")
    if isinstance(head.users, UserVectors):
        return code
    if bool((code < 0).any()) or not abs(float(code.sum()) - 1.0) < 1e-3:
        raise RewardError(
            f"weights {list(weights)} must be zero or more and sum to one; divide them by their sum"
        )
    return code


def prototype_code(head: Head, name: str, k: int) -> Tensor:
    """Return the code of the k-th prototype alone, counted from 0, (R,)."""
    size = head.users.logits.shape[1]
    if isinstance(head.users, UserWeights) and not 0 <= k < size:
        raise RewardError(
            f"prototype {k} does not exist; the head has {size}, numbered from 0 to {size - 1}"
        )
    return code_of(head, name, [float(place == k) for place in range(size)])


def id_of(user: Any) -> Any:
    """Return a user of a file or a request, a number as text: ids are text here, and columns may
    hold numbers."""
    return str(user) if isinstance(user, int) and not isinstance(user, bool) else user


NAMES_KEPT = 1000
"""strangers named in warnings; a service asked about endless ones must not keep them all"""


class Users:
    """The codes of everyone a model knows: the table it was trained with, and users adapted
    since."""

    def __init__(self, contents: Contents, device: str) -> None:
        self.contents = contents
        self.device = device
        self.number = {name: row for row, name in enumerate(contents.users)}
        self.added: dict[str, Tensor] = {}
        self.default = contents.code.to(device)
        head = contents.head
        self.population = self.default if contents.is_fixed else head.users.population().detach()
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def __contains__(self, user: object) -> bool:
        return (
            user in self.number
            or user in self.added
            or (user is not None and user == self.contents.facts["user"])
        )

    def add(self, user: str, code: Tensor) -> None:
        """Know one more user, or a known one better."""
        with self._lock:
            self.added[user] = code.to(self.device)

    def forget(self, user: str) -> None:
        """Know an adapted user no longer."""
        with self._lock:
            self.added.pop(user, None)

    def codes(self, users: Sequence[User]) -> Tensor:
        """Return one code per row, (n, R). Strangers have the population's, and are named once in a
        warning."""
        found: dict[str | None, Tensor] = {}
        rows = []
        for user in users:
            if isinstance(user, Mapping):
                rows.append(self.mixture(user))
                continue
            if not isinstance(user, str | None):
                raise RewardError(
                    f"a user is an id in text, a mixture or nothing, not {str(user)[:80]!r}"
                )
            if user not in found:
                found[user] = self.code(user)
            rows.append(found[user])
        return torch.stack(rows) if rows else self.default.new_zeros(0, len(self.default))

    def code(self, user: str | None) -> Tensor:
        """Return the code of one user, (R,)."""
        if user is None:
            return self.default
        if user in self.added:
            return self.added[user]
        if user in self.number:
            row = torch.tensor([self.number[user]], device=self.device)
            return self.contents.head.users(row)[0].detach()
        if self.contents.is_fixed:
            known = self.contents.facts["user"]
            if user == known:
                return self.default
            whom = f"user {known!r}" if known is not None else "one fixed reward"
            raise RewardError(
                f"user {user!r} was asked for, but this export holds {whom} only; leave the user "
                "out, or export the "
                f"population with pal export --population"
            )
        with self._lock:
            is_new = user not in self._warned and len(self._warned) < NAMES_KEPT
            if is_new:
                self._warned.add(user)
        if is_new:
            warnings.warn(
                f"user {user!r} is not known; scored as the population", PalWarning, stacklevel=2
            )
        return self.population

    def mixture(self, weights: Mapping[str, float] | Mapping[int, float]) -> Tensor:
        """Return the code of prototypes mixed by number; those left out have no weight."""
        head, name = self.contents.head, self.contents.facts["train"]["head"]
        numbers = [0.0] * head.users.logits.shape[1]
        for prototype, weight in weights.items():
            try:
                place = int(prototype)
                numbers[place if place >= 0 else len(numbers)] = float(weight)
            except (ValueError, TypeError, IndexError) as error:
                raise RewardError(
                    f"{prototype!r}: {weight!r} is no prototype with a weight; number them 0 to "
                    f"{len(numbers) - 1}"
                ) from error
        return code_of(head, name, numbers).to(self.device)
