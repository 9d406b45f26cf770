"""The user's own comparisons, in the forms that TRL's preference datasets have, or with explicit
sides.

``prompt, chosen, rejected`` as texts or messages; ``chosen, rejected`` as whole conversations that
begin alike; or ``prompt, first, second, label``; each with a ``user_id`` where there are several
users. Items may be images.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import polars as pl

from pal.config import Component, ImageSourceConfig
from pal.data.comparisons import Comparison, Reject, preferred
from pal.data.fetch import fetched_image
from pal.data.rows import RowAdapter, number_of
from pal.data.splits import SplitPairs
from pal.dataset import Split
from pal.errors import shown
from pal.items import (
    Conversation,
    Image,
    Item,
    ItemError,
    Place,
    Text,
    conversation,
    image_content_id,
    question,
    storable,
)
from pal.rows import Row
from pal.users import user_name

EVERYONE = "everyone"
IMAGE_ENDS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
LABELS = {"first": 1.0, "second": 0.0, "tie": 0.5}
SPLITS: dict[str, Split] = {"train": "train", "val": "val", "validation": "val", "test": "test"}


class PairsColumns(Component):
    """Which column of the user's own data holds what; null: the column of that very name."""

    user_id: str | None = None
    """Who compared; a source without such a column is one user's, called everyone."""
    prompt: str | None = None
    """A text, or messages with role and content."""
    chosen: str | None = None
    """The preferred item, as TRL names it."""
    rejected: str | None = None
    """The other item, as TRL names it."""
    first: str | None = None
    """The first item, where sides are explicit."""
    second: str | None = None
    """The second item, where sides are explicit."""
    label: str | None = None
    """P(first preferred) from 0 to 1; or first, second, tie."""
    split: str | None = None
    """train, val or test, where the source has splits."""


class PairsConfig(ImageSourceConfig):
    """The user's own comparisons: JSON lines, JSON, CSV, Parquet or a dataset on the Hub."""

    views: tuple[Literal["response", "prompt+response"], ...] = ("response", "prompt+response")
    """Which items to make of a text response: by itself, or behind its prompt."""
    columns: PairsColumns = PairsColumns()
    """Which column holds what."""
    items: Literal["auto", "text", "image"] = "auto"
    """What strings among the items are; auto: paths and URLs that end like an image are images, all
    others texts."""


class Unusable(Exception):
    """A row that is no comparison: reason and message of its reject."""


class OwnPairs(RowAdapter):
    """One comparison per row."""

    name = "pairs"
    Settings = PairsConfig
    licence = "the user's own"
    config: PairsConfig

    def __init__(self, config: PairsConfig, dataset: str = "") -> None:
        super().__init__(config, dataset)
        self.user_column = config.columns.user_id or "user_id"

    def comparisons(self, row: Row, place: str, file: Path) -> Iterable[Comparison | Reject]:
        try:
            yield self.comparison(row, place, file)
        except Unusable as problem:
            yield Reject(place, *problem.args)

    def comparison(self, row: Row, place: str, file: Path) -> Comparison:
        """Return a row's comparison; raises Unusable."""
        columns = {name: given or name for name, given in self.config.columns}
        # a column that was named must be there, and a null is not everyone
        without = EVERYONE if self.config.columns.user_id is None else None
        name = user_name(row.get(columns["user_id"], without))
        rest: dict[str, Any] = {"split": _split(row.get(columns["split"]))}
        if row.get(columns["chosen"]) is not None and row.get(columns["rejected"]) is not None:
            sides = (columns["chosen"], columns["rejected"])
            prompt, chosen, rejected = self._items(row, columns["prompt"], sides, place, file)
            return preferred(place, name, prompt, chosen, rejected, self.config.salt, **rest)
        sides = (columns["first"], columns["second"])
        absent = [column for column in (*sides, columns["label"]) if row.get(column) is None]
        if absent:
            raise Unusable(
                "missing-column",
                f"has neither {columns['chosen']} and {columns['rejected']} nor "
                f"{', '.join(absent)}",
            )
        prompt, first, second = self._items(row, columns["prompt"], sides, place, file)
        return Comparison(place, name, prompt, first, second, _label(row[columns["label"]]), **rest)

    def _items(
        self, row: Row, prompt_column: str, sides: tuple[str, str], place: str, file: Path
    ) -> tuple[Conversation, Item, Item]:
        """Return prompt and both items; conversations that begin alike are cut where they part."""
        given = row.get(prompt_column)
        prompt = conversation(given) if isinstance(given, list) else question(_text(given))
        values = [row[side] for side in sides]
        if all(isinstance(value, list) for value in values):
            first, second = (conversation(value, "assistant") for value in values)
            both = zip(first, second, strict=False)
            shared = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], both))
            shared = min(shared, len(first) - 1, len(second) - 1)
            if shared < 0 or {len(first), len(second)} != {shared + 1}:
                raise Unusable(
                    "unclear-response",
                    "after what they share, both sides must have exactly one message",
                )
            if shared and (not isinstance(given, list) or first[: len(prompt)] == prompt):
                prompt = ()  # the conversations have it already
            return (*prompt, *first[:shared]), _answer(first), _answer(second)
        items = [
            self._item(value, side, place, file) for value, side in zip(values, sides, strict=True)
        ]
        return prompt, items[0], items[1]

    def _item(self, value: Any, column: str, place: str, file: Path) -> Item:
        """Return a text or an image by what the value is."""
        is_image = isinstance(value, dict) and bool({"bytes", "path"} & set(value))
        if is_image:  # the image feature of Hugging Face datasets
            value = value["bytes"] if value.get("bytes") else value.get("path")
        if isinstance(value, bytes):
            where = _row_in_group(file, row_number(place))
            return Image(Place(str(file.resolve()), column, *where), image_content_id(value))
        if not isinstance(value, str):
            raise Unusable(
                "bad-item", f"{column} is a {type(value).__name__}, neither text nor image"
            )
        if self.config.items == "auto":
            is_image = is_image or value.lower().partition("?")[0].endswith(IMAGE_ENDS)
        if not is_image and self.config.items != "image":
            return Text(value)
        if value.startswith(("http://", "https://")):
            found = fetched_image(value, self.config)
            if isinstance(found, str):
                raise Unusable("no-image", found)
            return found
        path = self.folder / value
        try:
            if not path.is_file():  # a pipe would wait, a device has no end
                raise FileNotFoundError(path)
            raw = path.read_bytes()
        except (OSError, ValueError):  # also of a text so long, or so odd, that it can be no path
            message = (
                f"{column} names {storable(value[:200])}, which is no file under {self.folder}"
            )
            raise Unusable("no-image", message) from None
        return Image(Place(str(path.resolve())), image_content_id(raw))

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        """As other sources; but where some rows name their user, those that do not are rejects."""
        nameless = pl.col("user_id") == EVERYONE
        if pairs.is_empty() or pairs.select(nameless.all()).item():
            return super().assign_splits(pairs)
        left_out = pairs.filter(nameless).select(
            "source_row",
            reason=pl.lit("no-user"),
            message=pl.lit("the row names no user, but others do"),
        )
        split = super().assign_splits(pairs.filter(~nameless))
        return SplitPairs(split.pairs, pl.concat([split.rejects, left_out]), split.details)


def _answer(turns: Conversation) -> Text:
    return Text(turns[-1].content, role=turns[-1].role)


def row_number(place: str) -> int:
    """Return the number of a row in its file, from its place."""
    return int(place.rpartition(":")[2])


@cache
def _group_ends(file: Path, modified: int) -> list[int]:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(file)
    return list(
        itertools.accumulate(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
    )


def _row_in_group(file: Path, number: int) -> tuple[int, int]:
    """Return row group and row within it of a row of a Parquet file."""
    ends = _group_ends(file, file.stat().st_mtime_ns)
    group = bisect.bisect_right(ends, number)
    return group, number - (ends[group - 1] if group else 0)


def _text(prompt: Any) -> str | None:
    """Return a prompt's text; a number, as columns of Parquet may hold them, is one too."""
    if prompt is None or isinstance(prompt, str):
        return prompt
    if isinstance(prompt, bool) or number_of(prompt) is None:
        raise ItemError(f"a prompt is a text or a list of chat messages, not {shown(prompt)}")
    return str(prompt)


def _label(value: Any) -> float:
    """Return P(first preferred) of a number or a word; raises Unusable."""
    if isinstance(value, str) and value.strip().lower() in LABELS:
        return LABELS[value.strip().lower()]
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        message = f"the label is {shown(value, 200)}, neither a number nor first, second or tie"
        raise Unusable("bad-label", message) from None


def _split(value: Any) -> Split | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in SPLITS:
        raise Unusable("bad-split", f"the split is {shown(value, 200)}; use train, val or test")
    return SPLITS[value]
