"""Prompt groups: what no split may divide, because it shares a prompt or an item.

Pairs under one prompt are one group, and so are prompts that share an item: whoever has read an
item under one prompt knows something of it under another. Two things forbid to go by that alone:

- *Shared answers* (Agree, Disagree, Yes, No) answer everything and would join everything. An item
  under more than twenty prompts, or more than a fifth of them, says little about any one of them,
  and a group of a fifth of all prompts fits into no test: it joins nothing.
- One question with a thousand answers is one group. There the *items* are divided: a pair belongs
  to a split if both of its items do, and the other pairs are left out and counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from pal.config import Grouping
from pal.dataset import FEWEST, Divided, ids_of
from pal.items import ID_BYTES

MOST_PROMPTS = 20
"""prompts of an item that is no shared answer, at most"""
LARGEST_SHARE = 0.2
"""the same as a share of all prompts; also the share of pairs that makes an item a shared answer
where items are divided"""
FEWEST_DIVIDED = 3 * FEWEST
"""groups that are enough for three splits"""
ITEMS_PER_GROUP = 20
"""items for each prompt group from which on few prompts are divided by their items"""


@dataclass(frozen=True)
class Units:
    """What n pairs are divided by: a split holds a pair if it holds both of its units."""

    divided: Divided
    first: pl.Series
    """(n,) name of a unit: of the prompt group, or of the more often compared item"""
    second: pl.Series
    """(n,) the same, or the other item"""
    shared: int
    """shared answers"""
    why: str


def units_of(pairs: pl.DataFrame, grouping: Grouping) -> Units:
    """Return what pairs are divided by; ``auto`` takes the items where the prompts cannot be
    divided."""
    rows = _Rows.of(pairs)
    shared = rows.shared_answers()
    groups = rows.groups(grouping != "prompt", shared)
    if grouping == "prompt":
        return Units("prompt", groups, groups, 0, "as data.<dataset>.grouping says")
    told = "as data.<dataset>.grouping says"
    divided: Divided = "items" if grouping == "items" else "prompt+items"
    if grouping == "auto":
        divided, told = _decided(groups, rows, shared)
    if divided == "prompt+items":
        return Units(divided, groups, groups, len(shared), told)
    everywhere = np.union1d(shared, rows.compared_everywhere())
    return Units(divided, *rows.item_units(everywhere), len(everywhere), told)


def prompt_groups(pairs: pl.DataFrame, grouping: Grouping) -> pl.Series:
    """Return the prompt group of each row, named by the least of its members' names.

    Rows with one prompt are one group; with ``grouping`` prompt+items, so are rows that share an
    item. Rows without a prompt always go by their items.
    """
    rows = _Rows.of(pairs)
    return rows.groups(grouping != "prompt", rows.shared_answers())


def _decided(groups: pl.Series, rows: _Rows, shared: np.ndarray) -> tuple[Divided, str]:
    """Say whether prompt groups or items are divided, and why."""
    sizes = groups.value_counts()["count"]
    count, largest = len(sizes), int(sizes.max() or 0)  # type: ignore[arg-type]
    items = len(np.setdiff1d(rows.items, shared))
    is_one = largest > len(groups) / 2
    told = f"{count:,} prompt groups, the largest of {largest:,} of {len(groups):,} pairs"
    if count >= FEWEST_DIVIDED and not is_one:
        return "prompt+items", "enough for three splits"
    if items >= FEWEST_DIVIDED and (is_one or items >= ITEMS_PER_GROUP * count):
        return "items", f"{told}, cannot be divided well"
    return "prompt+items", f"few groups, but {items:,} items are few too"


@dataclass(frozen=True)
class _Rows:
    """The ids of n pairs, all (n,) S16."""

    first: np.ndarray
    second: np.ndarray
    prompt: np.ndarray
    """normalised; empty where there is none"""

    @classmethod
    def of(cls, pairs: pl.DataFrame) -> _Rows:
        return cls(*(ids_of(pairs[name]) for name in ("first_id", "second_id", "prompt_key")))

    @property
    def items(self) -> np.ndarray:
        """All items, sorted."""
        return np.unique(np.concatenate([self.first, self.second]))

    @property
    def keys(self) -> np.ndarray:
        """(n,) the prompt; where there is none, the lesser item."""
        lesser = np.where(self.first < self.second, self.first, self.second)
        return np.where(self.prompt == b"", lesser, self.prompt)

    def shared_answers(self) -> np.ndarray:
        """Return the items under so many prompts that they say little about any."""
        asked = self.prompt != b""
        prompts, prompt = np.unique(self.prompt[asked], return_inverse=True)
        sides = np.concatenate([self.first[asked], self.second[asked]])
        items, item = np.unique(sides, return_inverse=True)
        under = np.unique(item * max(len(prompts), 1) + np.tile(prompt, 2)) // max(len(prompts), 1)
        most = min(MOST_PROMPTS, max(2.0, LARGEST_SHARE * len(prompts)))
        return items[np.bincount(under, minlength=len(items)) > most]

    def compared_everywhere(self) -> np.ndarray:
        """Return the items that more than a fifth of all pairs compare with another."""
        items, counts = np.unique(np.concatenate([self.first, self.second]), return_counts=True)
        return items[counts > LARGEST_SHARE * len(self.first)]

    def groups(self, by_items: bool, shared: np.ndarray) -> pl.Series:
        """Return the prompt group of each pair, joined by items that are no shared answers."""
        names, prompt = np.unique(self.keys, return_inverse=True)
        has_none = self.prompt == b""
        joins = has_none | np.full(len(prompt), by_items)
        edges = []
        for side in (self.first, self.second):
            chosen = joins & (has_none | ~np.isin(side, shared))
            edges.append((prompt[chosen], side[chosen]))
        ends, sides = (np.concatenate(parts) for parts in zip(*edges, strict=True))
        least = least_joined(len(names), ends, np.unique(sides, return_inverse=True)[1])
        return series_of(names[least[prompt]])

    def item_units(self, shared: np.ndarray) -> tuple[pl.Series, pl.Series]:
        """Return the two items of each pair, the more often compared one first.

        A shared answer counts for nothing: its pair goes by the other item, or by the prompt where
        both are shared.
        """
        is_shared = [np.isin(side, shared) for side in (self.first, self.second)]
        first = np.where(is_shared[0], self.second, self.first)
        second = np.where(is_shared[1], self.first, self.second)
        both = is_shared[0] & is_shared[1]
        first, second = (np.where(both, self.keys, side) for side in (first, second))
        sides, counts = np.unique(np.concatenate([first, second]), return_counts=True)
        of_first, of_second = (counts[np.searchsorted(sides, side)] for side in (first, second))
        swap = (of_second > of_first) | ((of_second == of_first) & (second < first))
        return series_of(np.where(swap, second, first)), series_of(np.where(swap, first, second))


def series_of(ids: np.ndarray) -> pl.Series:
    """Return ids, (n,) S16, as a column of bytes."""
    raw = pa.py_buffer(np.ascontiguousarray(ids, f"S{ID_BYTES}").tobytes())
    fixed = pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), len(ids), [None, raw])
    return pl.Series(values=pl.from_arrow(fixed.cast(pa.binary())), dtype=pl.Binary)


def least_joined(prompts: int, prompt: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Return for each of so many prompts the least one that it is joined to by shared items.

    Edge e joins ``prompt[e]`` and ``item[e]``.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes = prompts + int(item.max(initial=-1)) + 1
    edges = coo_array((np.ones(len(item)), (prompt, prompts + item)), (nodes, nodes))
    component = connected_components(edges, directed=False)[1][:prompts]
    _, least, own = np.unique(component, return_index=True, return_inverse=True)
    return least[own]
