"""The user's own comparisons, in the forms that TRL's preference datasets have, or with explicit
sides.

``prompt, chosen, rejected`` as texts or messages; ``chosen, rejected`` as whole conversations that
begin alike; or ``prompt, first, second, label``; each with a ``user_id`` where there are several
users. Items may be images.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import Field

from pal.config import Component, ImageSourceConfig
from pal.data.adapter import Part
from pal.data.comparisons import Comparison, Reject, preferred
from pal.data.messages import spoken
from pal.data.rows import OwnFilesConfig, RowAdapter, number_of
from pal.data.sources.answers import Convention, Meanings, is_missing, of_sides
from pal.data.sources.columns import PROMPTS, USERS, Columns, Vocabulary, listed
from pal.data.sources.pictured import ItemReader, Unusable
from pal.data.splits import SplitPairs
from pal.dataset import Split
from pal.errors import shown
from pal.items import (
    Conversation,
    Item,
    ItemError,
    Text,
    conversation,
    question,
)
from pal.rows import Row
from pal.users import user_name

EVERYONE, NAMELESS = "everyone", "\0nobody is named"
"""the one user of a source without users; and what stands for it until all rows are read, which no
column can hold"""
SPLITS: dict[str, Split] = {"train": "train", "val": "val", "validation": "val", "test": "test"}
WORDS = Vocabulary(
    usual={"user_id": USERS, "prompt": PROMPTS},
    needed=(("chosen", "rejected"), ("first", "second", "label")),
    likely={
        "prompt": ("query", "input", "context"),
        "chosen": ("preferred_response", "preferred_answer", "better", "accepted"),
        "rejected": ("rejected_response", "other_answer", "worse", "dispreferred"),
        "label": ("preferred", "preference", "choice", "winner", "vote", "selected", "answer"),
    },
)


class PairsColumns(Component):
    """Which column of the user's own data holds what; null: the column of that very name."""

    user_id: str | None = None
    """Who compared: user_id, user, participant, annotator, rater, worker, voter or respondent; a
    source without such a column is one user's, called everyone."""
    prompt: str | None = None
    """A text, or messages with role and content: prompt, question or instruction."""
    chosen: str | None = None
    """The preferred item, as TRL names it."""
    rejected: str | None = None
    """The other item, as TRL names it."""
    first: str | None = None
    """The first item, where sides are explicit."""
    second: str | None = None
    """The second item, where sides are explicit."""
    label: str | None = None
    """P(first preferred) from 0 to 1; 1 and 2; or words, such as A, B and tie."""
    split: str | None = None
    """train, val or test, where the source has splits; else the names of files may say it."""


class PairsConfig(OwnFilesConfig, ImageSourceConfig):
    """The user's own comparisons: JSON lines, JSON, CSV, Parquet, Arrow or a dataset on the Hub."""

    views: tuple[Literal["response", "prompt+response"], ...] = ("response", "prompt+response")
    """Which items to make of a text response: by itself, or behind its prompt."""
    columns: PairsColumns = PairsColumns()
    """Which column of the file holds what: ``{our name: name in the file}``."""
    values: dict[Literal["label"], Meanings] = Field(default_factory=dict)
    """What labels of the file mean, from 0, the second, to 1, the first: ``label: {A: 1, B: 0}``;
    others keep their usual meaning."""
    items: Literal["auto", "text", "image"] = "auto"
    """What strings among the items are; auto: by the whole column, paths and URLs that end like an
    image, and images within the string (``data:``), are images, all others texts."""


class OwnPairs(RowAdapter):
    """One comparison per row."""

    name = "pairs"
    Settings = PairsConfig
    licence = "the user's own"
    config: PairsConfig

    def parts(self) -> Sequence[Part]:
        self.columns, self.labels  # noqa: B018, what cannot be understood is said before any row
        return super().parts()

    @cached_property
    def columns(self) -> Columns:
        """Which column holds what; raises DataError where that is not clear."""
        return Columns.of(self.survey, self.config.columns, WORDS, self.dataset)

    @cached_property
    def labels(self) -> Convention | None:
        """What labels mean, None where there are none; raises DataError where that is not clear."""
        column = next(iter(self.columns.taken["label"]), None)
        if column is None:
            return None
        sides = self.columns.shown("first"), self.columns.shown("second")
        own, asked = self.config.values.get("label", {}), f"data.{self.dataset}.values.label"
        return of_sides(self.survey.column(column), own, sides, asked)

    @cached_property
    def items(self) -> ItemReader:
        """What makes items of values."""
        return ItemReader(
            self.survey, self.config, self.config.items, self.folder, self.keeps_images
        )

    def told(self) -> Iterator[str]:
        yield self.columns.told()
        if self.labels is not None:
            yield self.labels.told(self.survey.column(self.columns.shown("label")))
        yield from self.told_of_commas()

    @property
    def user_columns(self) -> Sequence[str]:
        return self.columns.taken["user_id"]

    @property
    def number_columns(self) -> Sequence[str]:
        return self.columns.taken["label"]

    def comparisons(self, row: Row, place: str, file: Path) -> Iterable[Comparison | Reject]:
        try:
            yield self.comparison(row, place, file)
        except Unusable as problem:
            yield Reject(place, *problem.args)

    def comparison(self, row: Row, place: str, file: Path) -> Comparison:
        """Return a row's comparison; raises Unusable."""
        columns = self.columns
        # a column that was named must be there, and a null is not everyone
        is_named = self.config.columns.user_id is not None or columns.of_row(row, "user_id")
        name = user_name(columns.value(row, "user_id")) if is_named else NAMELESS
        split = _split(columns.value(row, "split")) or self.split_of(file)
        chosen, rejected = columns.value(row, "chosen"), columns.value(row, "rejected")
        if chosen is not None and rejected is not None:
            prompt, one, other = self._items(row, ("chosen", "rejected"), place, file)
            return preferred(place, name, prompt, one, other, self.config.salt, split=split)
        self._require_sides(row)
        label = self._label(columns.value(row, "label"))
        prompt, first, second = self._items(row, ("first", "second"), place, file)
        return Comparison(place, name, prompt, first, second, label, split)

    def _require_sides(self, row: Row) -> None:
        """Raise Unusable for a row without two sides and a label, naming what is empty or not
        there."""
        columns = self.columns
        has_explicit = any(columns.of_row(row, name) for name in ("first", "second"))
        sides = ("first", "second") if has_explicit else ("chosen", "rejected")
        there = {side: columns.of_row(row, side) for side in sides}
        empty = [column for column in there.values() if column and row[column] is None]
        if empty:
            raise Unusable("empty-cell", f"nothing stands in {' and '.join(empty)}")
        needed = [*sides, *["label"] * has_explicit]
        absent = [columns.shown(name) for name in needed if columns.of_row(row, name) is None]
        if absent:
            raise Unusable(
                "missing-column",
                f"the row has no {' and no '.join(absent)}; it has {listed(list(row))}",
            )

    def _label(self, value: Any) -> float:
        """Return P(first preferred); raises Unusable."""
        if is_missing(value, self.labels):
            raise Unusable("no-label", "the row holds no label")
        if self.labels is None or not self.labels.knows(value):
            raise Unusable(
                "bad-label",
                f"the label is {shown(value, 200)}, which means nothing here; correct it, or say "
                f"what it means with data.{self.dataset}.values.label",
            )
        p = self.labels.of(value)
        assert p is not None, "a comparison has no passes"
        return p

    def _items(
        self, row: Row, sides: tuple[str, str], place: str, file: Path
    ) -> tuple[Conversation, Item, Item]:
        """Return prompt and both items; conversations that begin alike are cut where they part."""
        given = spoken(self.columns.value(row, "prompt"))
        prompt = conversation(given) if isinstance(given, list) else question(_text(given))
        columns = [self.columns.of_row(row, side) or side for side in sides]
        values = [spoken(row[column]) for column in columns]
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
            self.items.item(value, column, place, file)
            for value, column in zip(values, columns, strict=True)
        ]
        return prompt, items[0], items[1]

    def assign_splits(self, pairs: pl.DataFrame) -> SplitPairs:
        """As other sources; but where some rows name their user, those that do not are rejects."""
        nameless = pl.col("user_id") == NAMELESS
        if pairs.is_empty() or pairs.select(nameless.all()).item():
            return super().assign_splits(pairs.with_columns(user_id=pl.lit(EVERYONE)))
        left_out = pairs.filter(nameless).select(
            "source_row",
            reason=pl.lit("no-user"),
            message=pl.lit("the row names no user, but others do"),
        )
        split = super().assign_splits(pairs.filter(~nameless))
        return SplitPairs(split.pairs, pl.concat([split.rejects, left_out]), split.details)


def _answer(turns: Conversation) -> Text:
    return Text(turns[-1].content, role=turns[-1].role)


def _text(prompt: Any) -> str | None:
    """Return a prompt's text; a number, as columns of Parquet may hold them, is one too."""
    if prompt is None or isinstance(prompt, str):
        return prompt
    if isinstance(prompt, bool) or number_of(prompt) is None:
        raise ItemError(f"a prompt is a text or a list of chat messages, not {shown(prompt)}")
    return str(prompt)


def _split(value: Any) -> Split | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in SPLITS:
        raise Unusable("bad-split", f"the split is {shown(value, 200)}; use train, val or test")
    return SPLITS[value]
