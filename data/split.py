"""Which split a prompt is in, and the digest that says how a dataset was split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from pal.chance import bucket
from pal.dataset import Split
from pal.files import canonical_json

TRAIN_BELOW, VAL_BELOW = 0.8, 0.9


def split_of(salt: str, group: str) -> Split:
    """Return the split of a prompt group: 80 % train, 10 % val, 10 % test."""
    place = bucket("prompt", salt, group)
    return "train" if place < TRAIN_BELOW else "val" if place < VAL_BELOW else "test"


def split_digest(rules: dict[str, object], rows: Iterable[tuple[str, ...]]) -> str:
    """Return BLAKE2b-256 over the rules of a split and its rows (pair, user, split, population),
    sorted by pair."""
    state = hashlib.blake2b(canonical_json(rules).encode(), digest_size=32)
    for row in rows:
        state.update("\x1f".join(row).encode() + b"\n")
    return state.hexdigest()
