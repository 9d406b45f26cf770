"""Prompt groups: rows that no split may divide, because they share a prompt or an item."""

from __future__ import annotations

import numpy as np
import polars as pl

from pal.dataset import ids_of
from pal.items import ID_BYTES


def prompt_groups(pairs: pl.DataFrame, grouping: str) -> list[bytes]:
    """Return the prompt group of each row, named by the least of its members' names.

    Rows with one prompt are one group; with ``grouping`` prompt+items, so are rows that share an
    item. Rows without a prompt always go by their items.
    """
    first, second, keys = (ids_of(pairs[name]) for name in ("first_id", "second_id", "prompt_key"))
    keys = np.where(keys == b"", np.where(first < second, first, second), keys)
    names, prompt = np.unique(keys, return_inverse=True)
    by_items = (
        np.full(len(pairs), True)
        if grouping == "prompt+items"
        else pairs["prompt_key"].is_null().to_numpy()
    )
    items = np.unique(np.concatenate([first[by_items], second[by_items]]), return_inverse=True)[1]
    least = least_joined(len(names), np.tile(prompt[by_items], 2), items)
    return [bytes(name).ljust(ID_BYTES, b"\0") for name in names[least[prompt]]]


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
