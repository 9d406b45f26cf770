"""Answers of new users: what adaptation learns from."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pal.train.heads.head import Prepared


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

    def __post_init__(self) -> None:
        if bool((self.user.diff() < 0).any()):
            order = self.user.argsort(stable=True)
            self.prepared = rows_of(self.prepared, order)
            self.label, self.user = self.label[order], self.user[order]

    def take(self, rows: Tensor) -> Answers:
        """Return some of the pairs, users numbered as before."""
        chosen = rows_of(self.prepared, rows)
        return Answers(chosen, self.label[rows], self.user[rows], self.users)

    def only(self, stay_U: Tensor) -> Answers:
        """Return the answers of some users, who are numbered anew."""
        number_U = stay_U.cumsum(0) - 1
        chosen = self.take(stay_U[self.user].nonzero().squeeze(1))
        return Answers(chosen.prepared, chosen.label, number_U[chosen.user], int(stay_U.sum()))


def rows_of(prepared: Prepared, rows: Tensor) -> Prepared:
    return tuple(None if value is None else value[rows] for value in prepared)
