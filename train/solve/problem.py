"""What a head is solved from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pal.cache.mapped import Features

if TYPE_CHECKING:
    from pal.train.pairs import Pairs


@dataclass(frozen=True)
class Problem:
    """All training and validation pairs of the seen users, on the device of the features."""

    features: Features
    """(rows, D), in the dtype of the cache"""
    train: Pairs
    val: Pairs
    users: int
    """N, the rows of the head's user table"""
