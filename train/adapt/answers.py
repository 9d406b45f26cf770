"""Answers of new users: what adaptation learns from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pal.train.heads.head import Head, Prepared
from pal.train.heads.things import WORTH

NUMBERS_KEPT = 2**24
"""of margins, for as many contents and vectors: 64 MB"""


@dataclass
class Answers:
    """Prepared pairs of new users: ``prepared`` and ``label`` have B rows, ``user`` says whose each
    is (0 .. U-1).

    Rows are put in the order of their users; each user's own keep theirs.
    """

    prepared: Prepared
    label: Tensor
    user: Tensor
    users: int
    content: Tensor | None = None
    """(B,) numbers of what is compared: rows of one number are prepared alike; None: unknown"""
    known: Known | None = None
    """what seen users think of these contents, where it is kept from one draw to the next"""

    def __post_init__(self) -> None:
        if bool((self.user.diff() < 0).any()):
            order = self.user.argsort(stable=True)
            self.prepared = rows_of(self.prepared, order)
            self.label, self.user = self.label[order], self.user[order]
            self.content = None if self.content is None else self.content[order]

    def take(self, rows: Tensor) -> Answers:
        """Return some of the pairs, users numbered as before."""
        chosen = rows_of(self.prepared, rows)
        content = None if self.content is None else self.content[rows]
        label, user = self.label[rows], self.user[rows]
        return replace(self, prepared=chosen, label=label, user=user, content=content)

    def only(self, stay_U: Tensor) -> Answers:
        """Return the answers of some users, who are numbered anew."""
        number_U = stay_U.cumsum(0) - 1
        chosen = self.take(stay_U[self.user].nonzero().squeeze(1))
        user, users = number_U[chosen.user], int(stay_U.sum())
        return replace(chosen, user=user, users=users)

    def margins_of_each(self, head: Head, vector_CR: Tensor) -> Tensor:
        """Return the margins of all pairs under each of C vectors, (B, C): what is compared several
        times is given to the head once."""
        once = distinct_rows(self.content)
        if once is None:
            return head.margins_of_each(self.prepared, vector_CR)
        first, place = once
        return head.margins_of_each(rows_of(self.prepared, first), vector_CR)[place]


@dataclass
class Known:
    """Margins of what is compared under C vectors, each computed when it is first wanted."""

    content_T: Tensor
    """sorted"""
    margin_TC: Tensor
    is_known_T: Tensor

    @classmethod
    def of(cls, content_B: Tensor, vectors: int) -> Known | None:
        """Return nothing known of the distinct contents; None where it would be too much to
        keep."""
        content_T = content_B.unique()
        if len(content_T) * vectors > NUMBERS_KEPT:
            return None
        margin_TC = torch.empty(len(content_T), vectors, device=content_T.device)
        return cls(content_T, margin_TC, torch.zeros_like(content_T, dtype=torch.bool))

    def margins(self, head: Head, answers: Answers, vector_CR: Tensor) -> Tensor:
        """Return the margins of all pairs under each of the vectors, the same ones each time,
        (B, C)."""
        assert answers.content is not None
        place_B = torch.searchsorted(self.content_T, answers.content)
        wanted = (~self.is_known_T[place_B]).nonzero().squeeze(1)
        if len(wanted):
            place, own, count = place_B[wanted].unique(return_inverse=True, return_counts=True)
            some = rows_of(answers.prepared, wanted[first_of_each(own, count)])
            self.margin_TC[place] = head.margins_of_each(some, vector_CR).to(self.margin_TC)
            self.is_known_T[place] = True
        return self.margin_TC[place_B]


def distinct_rows(content_B: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Return a row of each number in ``content_B``, and which of these stands for each row, (B,);
    None where the numbers are unknown or so many that it is not worth it."""
    if content_B is None:
        return None
    distinct, place, count = content_B.unique(return_inverse=True, return_counts=True)
    if len(distinct) > WORTH * len(place):
        return None
    return first_of_each(place, count), place


def first_of_each(place_B: Tensor, count_T: Tensor) -> Tensor:
    """Return the first row of each of T places, which have so many rows each, (T,)."""
    return place_B.argsort(stable=True)[count_T.cumsum(0) - count_T]


def rows_of(prepared: Prepared, rows: Tensor) -> Prepared:
    return tuple(None if value is None else value[rows] for value in prepared)
