"""Each distinct thing once: comparisons as places in tables of distinct items and prompts.

What a head computes of an item alone, or of a prompt alone, it computes once for each distinct one
and then reads by place. Shapes: B comparisons, T distinct items, P distinct prompts, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pal.cache.mapped import Features

WORTH = 0.75
"""a table of distinct rows is made where it is at most so long: reading by place costs, too"""


class Table(NamedTuple):
    """A table of things and where in it those of each comparison are."""

    values: Tensor
    """(T, ...) what is known or computed of each"""
    place: Tensor | None
    """(B,) or, for both items of a comparison, (2 B,), first items before second ones; None: in the
    order of the table"""

    @classmethod
    def of(cls, features: Features, rows: Tensor) -> Table:
        """Look rows of a table of features up, distinct ones once where that is worth it."""
        distinct, place = rows.unique(return_inverse=True)
        if len(distinct) > WORTH * len(rows):
            return cls(features[rows], None)
        return cls(features[distinct], place)

    def each(self, values: Tensor | None = None) -> Tensor:
        """Return what was computed of the things of the table, by default what is in it, for each
        comparison."""
        values = self.values if values is None else values
        return values if self.place is None else taken(values, self.place)

    def placed(self, length: int) -> Table:
        """Return the same with places, the table filled up to a length with rows that nobody
        reads."""
        more = length - len(self.values)
        place = self.place
        if place is None:
            place = torch.arange(len(self.values), device=self.values.device)
        return Table(nn.functional.pad(self.values, (0, 0, 0, more)), place)


class Things(NamedTuple):
    """What B comparisons compare: two items each, under a prompt for heads that read it."""

    prompt: Table | None
    item: Table

    @classmethod
    def of(cls, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> Things:
        """Take comparisons row by row as they are, without a look for what is the same."""
        prompt = None if prompt_BD is None else Table(prompt_BD, None)
        return cls(prompt, Table(torch.cat([first_BD, second_BD]), None))

    def row_by_row(self) -> Things:
        """Return the same with a row for each comparison, for what is drawn anew for each."""
        prompt = None if self.prompt is None else Table(self.prompt.each(), None)
        return Things(prompt, Table(self.item.each(), None))

    def both(self, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what was computed of the items of the table, by default what is in it, for the
        first and the second item of each comparison."""
        first, second = self.item.each(values).chunk(2)
        return first, second

    def tensors(self) -> list[Tensor]:
        """Return all tensors, to be given to ``of_tensors``."""
        tables = [self.item] if self.prompt is None else [self.item, self.prompt]
        found = [(table.values, table.place) for table in tables]
        return [value for pair in found for value in pair if value is not None]

    def of_tensors(self, tensors: Sequence[Tensor]) -> Things:
        """Return things like these, but of other tensors."""
        rest = iter(tensors)

        def table(like: Table) -> Table:
            return Table(next(rest), None if like.place is None else next(rest))

        item = table(self.item)
        return Things(None if self.prompt is None else table(self.prompt), item)


def taken(values: Tensor, place: Tensor) -> Tensor:
    """Return rows of a table by place. Of the ways to do so, this one has the quickest derivative
    on a CPU, by a factor of two to three."""
    flat = values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)
    rows = nn.functional.embedding(place, flat)
    return rows.reshape(*place.shape, *values.shape[1:])


def alike(all_things: Sequence[Things]) -> list[Things]:
    """Bring things of several batches to the same shapes, so that they can be stacked."""
    tables = [[things.item for things in all_things]]
    prompts = [things.prompt for things in all_things if things.prompt is not None]
    tables += [prompts] if prompts else []
    brought = []
    for of_each in tables:
        length = max(len(table.values) for table in of_each)
        is_placed = any(table.place is not None for table in of_each)
        brought.append([table.placed(length) for table in of_each] if is_placed else of_each)
    items, *rest = brought
    return [Things(rest[0][number] if rest else None, item) for number, item in enumerate(items)]
