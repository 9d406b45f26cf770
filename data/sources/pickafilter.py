"""Pick-a-Filter: Pick-a-Pic whose users like, by halves, cool or warm tones (method.md 3.5)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pal.chance import bucket
from pal.config import Fraction
from pal.data.comparisons import Comparison, Reject
from pal.data.filters import filter_name
from pal.data.sources.pickapic import PickAPic, PickapicConfig
from pal.dataset import Split
from pal.rows import Row

GROUPS = {True: "cool", False: "warm"}
"""the tone that a user likes, by whether a hash falls into the lower half"""


class PickafilterConfig(PickapicConfig):
    """Pick-a-Filter: Pick-a-Pic with a colour filter that one half of the users likes (method.md
    3.5)."""

    beta: Fraction = 1.0
    """Share of the pairs in which one image is filtered."""
    strength: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Gain of the favoured colour channel, loss of the opposite one; the published strength is not
    known to us."""


class PickAFilter(PickAPic):
    """Picks a share beta of the pairs and lets one image of each carry a filter.

    In one half of those the winner carries the filter that its user likes, in the other the loser
    carries the one that its user dislikes, so that being filtered says nothing by itself.
    """

    name = "pickafilter"
    Settings = PickafilterConfig
    config: PickafilterConfig

    def comparison(
        self, row: Row, place: tuple[int, int], file: Path, split: Split | None
    ) -> Comparison | Reject:
        found = super().comparison(row, place, file, split)
        if isinstance(found, Reject) or found.user_id is None:
            return found
        if found.label not in (0.0, 1.0):
            return Reject(found.source_row, "tie", "no image won, so none can be filtered for it")
        return self.filtered(found)

    def filtered(self, pair: Comparison) -> Comparison:
        """Return the comparison with the filter that hash, user and answer give it, and its group
        as a column."""
        config = self.config
        likes = GROUPS[bucket("filter-group", config.salt, str(pair.user_id)) < 0.5]
        ids = sorted((pair.first.id, pair.second.id))
        name = f"{pair.user_id}\x1f{pair.columns.get('ranking_id')}\x1f{ids[0].hex()}{ids[1].hex()}"
        images: list[Any] = [pair.first, pair.second]
        if bucket("filter-pick", config.salt, name) < config.beta:
            winner = 0 if pair.label == 1.0 else 1
            on_winner = bucket("filter-side", config.salt, name) < 0.5
            tone = likes if on_winner else GROUPS[likes == "warm"]
            side = winner if on_winner else 1 - winner
            place = replace(images[side].place, filter=filter_name(tone, config.strength))
            images[side] = replace(images[side], place=place)
        columns = pair.columns | {"group": likes}
        return replace(pair, first=images[0], second=images[1], columns=columns)
