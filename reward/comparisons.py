"""Which of two items somebody prefers: P(first preferred), by one road for Python, files and the
server.

    P(first) = the average of sigma(r(first) - r(second)) over who the user may be (audience.py)

A known user is one person; a stranger any of the seen users; a user who was learned from a few
answers is predicted as ``pal evaluate`` predicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pal.errors import PalError
from pal.reward.adaptation import Answer, ItemPairs
from pal.reward.audience import Audience, People, of_known
from pal.train.adapt.answers import rows_of

if TYPE_CHECKING:
    from pal.reward.model import RewardModel

ROWS_AT_ONCE = 256
"""an even number: two for each pair"""


class Comparisons(ItemPairs):
    """Pairs of items on the way to probabilities, each for an audience of its own."""

    what: ClassVar[str] = "comparison"

    def __init__(
        self,
        model: RewardModel,
        pairs: Sequence[Answer],
        audiences: Sequence[Audience],
        failures: dict[int, str] | None = None,
    ) -> None:
        super().__init__(model, pairs, failures)
        self.audiences = list(audiences)

    @property
    def kept(self) -> list[int]:
        """The pairs that could be read."""
        failures = self.failures or {}
        return [place for place in self.places if place not in failures]

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Return P(first preferred) of each pair that could be read, (n,)."""
        kept = self.kept
        found = torch.zeros(len(kept))
        if not kept:
            return found
        prepared, head, device = self.prepared(), self.model.head, self.model.encoder.device
        vectors: dict[int, Tensor] = {}
        """of people who are known, by row: each has an audience of its own, and all go together"""
        rows_of_each: dict[int, list[int]] = {}
        for row, place in enumerate(kept):
            audience = self.audiences[place]
            if isinstance(audience, People) and len(audience.vectors) == 1:
                vectors[row] = audience.vectors
            else:
                rows_of_each.setdefault(id(audience), []).append(row)
        for rows in rows_of_each.values():
            some = rows_of(prepared, torch.tensor(rows, device=device))
            found[rows] = self.audiences[kept[rows[0]]].probability(head, some).cpu()
        if vectors:
            rows = list(vectors)
            some = rows_of(prepared, torch.tensor(rows, device=device))
            found[rows] = of_known(head, some, torch.cat(list(vectors.values()))).cpu()
        return found


def compare_each(
    model: RewardModel,
    prompts: Sequence[Any],
    first: Sequence[Any],
    second: Sequence[Any],
    users: Sequence[Any],
) -> tuple[list[float | None], dict[int, str]]:
    """Return P(first preferred) of each pair, None where one cannot be told, and the reason by
    pair; there are as many prompts, first and second items and users."""
    failures: dict[int, str] = {}
    pairs, audiences, places = [], [], []
    for place, (user, *pair) in enumerate(zip(users, prompts, first, second, strict=True)):
        try:
            audiences.append(model.users.audience_of(user))
        except PalError as error:
            failures[place] = str(error)
            continue
        pairs.append(Answer(*pair))
        places.append(place)
    unread: dict[int, str] = {}
    asked = Comparisons(model, pairs, audiences, unread)
    while asked.encoded < len(asked.rows):
        asked.encode(ROWS_AT_ONCE)
    found: list[float | None] = [None] * len(users)
    for number, p in zip(asked.kept, asked.solve().tolist(), strict=True):
        if math.isfinite(p):
            found[places[number]] = p
        else:
            unread[number] = "the head gives NaN or infinity"
    return found, {**failures, **{places[number]: why for number, why in unread.items()}}
