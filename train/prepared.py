"""Pairs prepared for a head, whoever the user is, with each distinct item and prompt mapped once.

Items are mapped first, and kept. Where they are so many that this would take much memory, pairs go
through in parts, by prompt or by first item, and an item that stands in several parts is mapped in
each. What a head computes of a prompt may be K times as large, so fewer prompts are mapped at a
time, and the pairs under them go through in smaller blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pal.train.heads.head import Head, Mapped, Prepared
from pal.train.heads.things import taken
from pal.train.pairs import Pairs

Gather = Callable[[Tensor], Tensor]
"""from rows of the feature table to their features"""
ROWS_AT_ONCE, PROMPTS_AT_ONCE, ITEMS_AT_ONCE = 1024, 512, 32768


def prepared(head: Head, pairs: Pairs, gather: Gather) -> Prepared:
    """Return all pairs prepared, in their order."""
    whole: Prepared | None = None
    for rows, block in prepared_blocks(head, pairs, gather):
        if whole is None:
            whole = tuple(
                None if own is None else own.new_empty(len(pairs), *own.shape[1:]) for own in block
            )
        for column, own in zip(whole, block, strict=True):
            if column is not None and own is not None:
                column.index_copy_(0, rows, own)
    assert whole is not None, "there is one block at least"
    return whole


def prepared_blocks(head: Head, pairs: Pairs, gather: Gather) -> Iterator[tuple[Tensor, Prepared]]:
    """Yield which pairs are next, and these prepared; of no pairs, one block without rows."""
    distinct, place = torch.cat([pairs.first, pairs.second]).unique(return_inverse=True)
    if len(distinct) > ITEMS_AT_ONCE:
        order = (pairs.first if pairs.prompt is None else pairs.prompt).argsort(stable=True)
        for part in order.split(ITEMS_AT_ONCE // 2):  # of two items each
            for rows, block in prepared_blocks(head, pairs.take(part), gather):
                yield part[rows], block
        return
    first_N, second_N = place.chunk(2)
    items = _mapped(head.of_items, gather, distinct)
    for rows, prompt in _blocks(head, pairs, gather):
        first, second = (_rows(items, side[rows]) for side in (first_N, second_N))
        yield rows, head.prepare_mapped(prompt, first, second)


def _blocks(head: Head, pairs: Pairs, gather: Gather) -> Iterator[tuple[Tensor, Mapped | None]]:
    """Yield some pairs at a time, with what is computed of their prompts, by prompt where there
    are any."""
    everything = torch.arange(len(pairs), device=pairs.label.device)
    if pairs.prompt is None:
        for rows in everything.split(ROWS_AT_ONCE):
            yield rows, None
        return
    distinct, place, count = pairs.prompt.unique(return_inverse=True, return_counts=True)
    order, stops = place.argsort(stable=True), [0, *count.cumsum(0).tolist()]
    for start in range(0, max(len(distinct), 1), PROMPTS_AT_ONCE):
        some = distinct[start : start + PROMPTS_AT_ONCE]
        mapped = head.of_prompts(gather(some))
        for rows in order[stops[start] : stops[start + len(some)]].split(ROWS_AT_ONCE):
            yield rows, _rows(mapped, place[rows] - start)


def _mapped(of_things: Callable[[Tensor], Mapped], gather: Gather, rows: Tensor) -> Mapped:
    """Return what is computed of things alone, some of them at a time."""
    blocks = [of_things(gather(some)) for some in rows.split(ROWS_AT_ONCE)]
    return tuple(torch.cat(column) for column in zip(*blocks, strict=True))


def _rows(mapped: Mapped, place: Tensor) -> Mapped:
    return tuple(taken(value, place) for value in mapped)
