"""What linear heads are solved from: pairs as differences of items, each distinct difference once
where at most half of the pairs have one of their own.

A hundred thousand votes are on some hundreds of statements, so products with features are of
hundreds of rows, and what follows gathers numbers from them. Shapes: n pairs, T distinct
differences, D features, K directions, N users.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pal.cache.mapped import Features
from pal.train.heads.standardise import Standardiser

if TYPE_CHECKING:
    from pal.train.pairs import Pairs

DOUBLE_BELOW = 1e8
"""numbers in a design matrix above which float32 is used: it would not fit twice"""
ROWS_AT_ONCE = 65_536
WORTH = 0.5
"""share of the pairs that distinct differences may be for pairs to point at them"""
DENSE = 64
"""All T x N margins of differences and users are one product, and quicker than the n that are
wanted, row by row, up to T N = min(64, D / 2) n."""


@dataclass(frozen=True)
class Rows:
    """Pairs of some users."""

    x: Tensor
    """(T, D) differences of items"""
    y: Tensor
    """(n,) P(first)"""
    user: Tensor
    """(n,)"""
    thing: Tensor | None = None
    """(n,) which difference each pair has; None: the i-th pair has the i-th"""

    @classmethod
    def of(cls, scale: Standardiser, features: Features, pairs: Pairs) -> Rows:
        """Return pairs as standardised differences, in float64 where that fits."""
        first, second, thing = pairs.first, pairs.second, None
        number = first * features.shape[0] + second
        distinct, place = number.unique(return_inverse=True)
        if len(distinct) <= WORTH * len(number):
            first, second = distinct // features.shape[0], distinct % features.shape[0]
            thing = place
        kind = torch.float64 if len(first) * features.shape[1] < DOUBLE_BELOW else torch.float32
        blocks = zip(first.split(ROWS_AT_ONCE), second.split(ROWS_AT_ONCE), strict=True)
        x = [(scale(features[one]) - scale(features[two])).to(kind) for one, two in blocks]
        return cls(torch.cat(x), pairs.label.to(kind), pairs.user, thing)

    def float(self) -> Rows:
        """Return the same in float32."""
        return Rows(self.x.float(), self.y.float(), self.user, self.thing)

    def some(self, chosen: Tensor) -> Rows:
        """Return some of the pairs."""
        y, user = self.y[chosen], self.user[chosen]
        if self.thing is None:
            return Rows(self.x[chosen], y, user)
        return Rows(self.x, y, user, self.thing[chosen])

    def project(self, basis_DK: Tensor) -> Rows:
        """Return the pairs with differences along K directions alone."""
        return Rows(self.x @ basis_DK.to(self.x), self.y, self.user, self.thing)

    def times(self, basis_DK: Tensor) -> Tensor:
        """Return x V of each pair, (n, K)."""
        if self.thing is None:
            return self.x @ basis_DK
        if len(self.thing) < len(self.x):
            return self.x[self.thing] @ basis_DK
        return (self.x @ basis_DK).index_select(0, self.thing)

    def times_own(self, vector_ND: Tensor) -> Tensor:
        """Return <x, o_u> of each pair for its own user's vector, (n,)."""
        users, dim = vector_ND.shape
        worth = min(DENSE, dim // 2) * len(self.y)
        if self.thing is not None and len(self.x) * users <= worth:
            table_TN = self.x @ vector_ND.T
            return table_TN.flatten().index_select(0, self.thing * users + self.user)
        return (self._of_each * vector_ND.index_select(0, self.user)).sum(dim=1)

    @cached_property
    def _of_each(self) -> Tensor:
        return self.x if self.thing is None else self.x[self.thing]

    @cached_property
    def count(self) -> Tensor:
        """How many pairs have each difference, (T,)."""
        if self.thing is None:
            return torch.ones_like(self.y)
        return torch.bincount(self.thing, minlength=len(self.x)).to(self.y)

    @cached_property
    def liked(self) -> Tensor:
        """The sum of the labels of each difference, (T,)."""
        if self.thing is None:
            return self.y
        return self.y.new_zeros(len(self.x)).index_add(0, self.thing, self.y)
