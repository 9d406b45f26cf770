"""What people answered, laid out for the tests of an audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pal.evaluate.crossed import Crossing
from pal.train.sharing import Array, Numbers

SAME_FROM = 10
"""answers from which on two users who gave exactly the same ones are taken for one"""


@dataclass(frozen=True)
class Answers:
    """n answers, each pair of things in one orientation whichever side it was shown on."""

    first: Numbers
    """(n,) thing that was judged, or the lesser of the two"""
    second: Numbers | None
    """(n,) the greater; None where each answer judges one thing (votes)"""
    user: Numbers
    """(n,) from 0; every user has an answer"""
    label: Array
    """(n,) P(agrees), or P(first preferred)"""
    place: Array
    """(n,) 1, or -1 where the second was shown first; always 1 for votes"""
    group: Numbers
    """(n,) prompt group: what two folds never share"""
    other: Numbers
    """(n,) where items are divided, the second item's group; else the same"""
    things: int
    part: Numbers | None = None
    """(n,) where an answer comes from, a number into ``parts``"""
    parts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def users(self) -> int:
        return int(self.user.max()) + 1

    @cached_property
    def crossing(self) -> Crossing:
        return Crossing.of_names(self.user, self.group, self.other)

    @cached_property
    def rows(self) -> tuple[Numbers, Numbers]:
        """The answers that are the first about their pair of things, (R,), and which of those pairs
        each answer is about, (n,)."""
        key = self.first if self.second is None else self.first * self.things + self.second
        _, place, row = np.unique(key, return_index=True, return_inverse=True)
        return place, row

    @property
    def groups(self) -> int:
        return len(np.unique(np.concatenate([self.group, self.other])))

    def with_labels(self, label: Array) -> Answers:
        return replace(self, label=label)

    def only(self, chosen: NDArray[np.bool_]) -> Answers:
        """Return some of the answers, their users numbered anew."""
        second = None if self.second is None else self.second[chosen]
        user = np.unique(self.user[chosen], return_inverse=True)[1]
        part = None if self.part is None else self.part[chosen]
        return Answers(
            self.first[chosen], second, user, self.label[chosen], self.place[chosen],
            self.group[chosen], self.other[chosen], self.things, part, self.parts,
        )  # fmt: skip

    def decided(self) -> Answers:
        """Return the answers that are no ties; all where there are no others. A tie says nothing
        about a taste, but pulls margins to zero, so that draws are noisier than people."""
        is_decided = self.label != 0.5
        return self.only(is_decided) if is_decided.any() and not is_decided.all() else self

    def copies(self) -> Numbers:
        """Return the users who are somebody else again, (c,): their answers, ten or more, are those
        of an earlier user to the same pairs."""
        row = self.rows[1]
        order = np.lexsort((self.label, row, self.user))
        ends = np.searchsorted(self.user[order], np.arange(self.users + 1))
        seen: set[bytes] = set()
        found = []
        for user, (start, end) in enumerate(pairwise(ends)):
            if end - start < SAME_FROM:
                continue
            mine = order[start:end]
            told = row[mine].tobytes() + self.label[mine].tobytes()
            if told in seen:
                found.append(user)
            seen.add(told)
        return np.array(found, np.int64)


def oriented(
    first: Numbers,
    second: Numbers | None,
    user: Numbers,
    label: Array,
    group: Numbers,
    other: Numbers,
    things: int,
    part: Sequence[str] | None = None,
) -> Answers:
    """Return answers with the lesser of two things first; the arguments are as they were given."""
    place = np.ones(len(label))
    if second is not None:
        turned = first > second
        first, second = np.minimum(first, second), np.maximum(first, second)
        label = np.where(turned, 1.0 - label, label)
        place = np.where(turned, -1.0, 1.0)
    names, number = np.unique([] if part is None else part, return_inverse=True)
    numbered = np.unique(user, return_inverse=True)[1]
    one, two = np.unique(np.concatenate([group, other]), return_inverse=True)[1].reshape(2, -1)
    return Answers(
        first, second, numbered, label, place, one, two, things,
        None if part is None else number, tuple(map(str, names)),
    )  # fmt: skip
