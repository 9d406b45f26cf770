"""Features that other caches of the same encoder hold: nothing is encoded twice.

A feature depends on an item's content, which its id names, and on the encoder's block of the
specification; for which dataset it was made is all the same. So whatever another cache has of the
items that are wanted is taken from there, complete or not: shards that have a receipt and the bytes
that it states.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from pal.cache.records import Receipt, SpecRecord
from pal.cache.shard import Shard
from pal.cache.spec import Spec, encoder_of, fingerprint
from pal.cache.verified import marks_of, seen_undamaged
from pal.errors import CacheError
from pal.items import ID_BYTES

OWN_TO_A_DATASET = "identity"
"""the kind of encoder whose features are those of the dataset, and not made of an item's content"""


class Rows(NamedTuple):
    """Some rows of shards."""

    n_tokens: np.ndarray
    """(n,) int32"""
    truncated: np.ndarray
    """(n,) bool"""
    features: np.ndarray
    """(n, width) uint8"""


class _Donor(NamedTuple):
    """A shard of another cache, and all of it that is read by name: whoever removes the file later
    takes nothing from us."""

    shard: Shard
    ids: np.ndarray
    """(n,) S16"""
    n_tokens: np.ndarray
    truncated: np.ndarray

    @classmethod
    def read(cls, path: Path) -> _Donor:
        shard = Shard(path)
        told = pq.read_table(path, columns=["n_tokens", "truncated"])
        columns = (told.column(name).to_numpy() for name in told.column_names)
        return cls(shard, shard.item_ids(), *columns)


@dataclass
class _Part:
    """The wanted rows of one shard of another cache."""

    shard: Shard
    rows: np.ndarray
    n_tokens: np.ndarray
    truncated: np.ndarray


class Known:
    """The features of some items, as far as other caches have them."""

    def __init__(self, item_ids: np.ndarray, parts: Sequence[_Part], owner: np.ndarray) -> None:
        """``owner``: (n, 2) the part of each item, -1 for none, and the place in it; item ids are
        sorted."""
        self.item_ids = item_ids
        self.parts = list(parts)
        self.owner = owner

    @classmethod
    def of(cls, folder: Path, spec: Spec, wanted: np.ndarray) -> Known:
        """Look for items, (n,) S16, in the caches beside ``folder`` and in those of other datasets
        that lie as it does, in ``<root>/<dataset>/<encoder>-<fingerprint>``."""
        names = np.unique(wanted.astype(f"S{ID_BYTES}"))
        owner = np.full((len(names), 2), -1)
        parts: list[_Part] = []
        width: int | None = None
        for shard, ids, n_tokens, truncated in _shards_like(folder, spec):
            if not (owner[:, 0] < 0).any():
                break
            if width not in (None, shard.width):
                continue
            place = np.minimum(np.searchsorted(names, ids), max(len(names) - 1, 0))
            is_wanted = (names[place] == ids) & (owner[place, 0] < 0) if len(names) else []
            rows = np.flatnonzero(is_wanted)
            if not len(rows):
                continue
            width = shard.width
            owner[place[rows], 0] = len(parts)
            owner[place[rows], 1] = np.arange(len(rows))
            parts.append(_Part(shard, rows, n_tokens[rows], truncated[rows]))
        return cls(names, parts, owner)

    def has(self, item_ids: np.ndarray) -> np.ndarray:
        """Return which items are known, (n,) bool."""
        return self._owner_of(item_ids)[:, 0] >= 0

    def __len__(self) -> int:
        return int((self.owner[:, 0] >= 0).sum())

    @property
    def width(self) -> int:
        """Bytes of a feature; some are known."""
        return self.parts[0].shard.width

    def rows(self, item_ids: np.ndarray) -> Rows:
        """Return what is stored of items, all of them known."""
        owner = self._owner_of(item_ids)
        found = Rows(
            np.zeros(len(owner), np.int32),
            np.zeros(len(owner), bool),
            np.empty((len(owner), self.width), np.uint8),
        )
        for number in np.unique(owner[:, 0]):
            part, here = self.parts[number], np.flatnonzero(owner[:, 0] == number)
            place = owner[here, 1]
            found.n_tokens[here] = part.n_tokens[place]
            found.truncated[here] = part.truncated[place]
            found.features[here] = part.shard.gather(part.rows[place])
        return found

    def _owner_of(self, item_ids: np.ndarray) -> np.ndarray:
        wanted = item_ids.astype(f"S{ID_BYTES}")
        if not len(self.item_ids):
            return np.full((len(wanted), 2), -1)
        place = np.minimum(np.searchsorted(self.item_ids, wanted), len(self.item_ids) - 1)
        is_there = self.item_ids[place] == wanted
        return np.where(is_there[:, None], self.owner[place], -1)


def _shards_like(folder: Path, spec: Spec) -> Iterator[_Donor]:
    """Yield the sound shards of all other caches with the same encoder's block."""
    if encoder_of(spec).get("kind") == OWN_TO_A_DATASET:
        return
    for other in sorted(folder.parent.parent.glob(f"*/*/{SpecRecord.file}")):
        place = other.parent
        if place.is_symlink() or place.absolute() == folder.absolute():
            continue
        found = _spec_in(place)
        if found is None or not _is_alike(found, spec):
            continue
        marks, owner = marks_of(place), fingerprint(found)
        for path in sorted((place / "shards").glob("part-*.json")):
            with suppress(CacheError, OSError, ValueError):
                receipt = Receipt.read_file(path)
                is_ours = receipt.fingerprint == owner and receipt.rows
                if is_ours and seen_undamaged(place, receipt.entry, marks):
                    yield _Donor.read(place / receipt.path)


def _spec_in(folder: Path) -> Spec | None:
    try:
        return SpecRecord.read(folder).spec
    except CacheError:
        return None


def _is_alike(one: Spec, other: Spec) -> bool:
    same = one.get("layout_version") == other.get("layout_version")
    return same and one.get("encoder") == other.get("encoder")
