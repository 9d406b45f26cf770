"""What flows out of a source: comparisons of items, or the reason why a row is none.

A source makes a ``Comparison`` or a ``Reject`` of each of its rows; ``Recorder`` turns them into
rows of the tables.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pal.chance import bucket
from pal.dataset import WITH_PROMPT, Split
from pal.items import (
    ID_BYTES,
    Conversation,
    Item,
    ItemError,
    Text,
    View,
    behind,
    is_unicode,
    item_id,
    item_row,
    items_schema,
    prompt_item,
    storable,
)
from pal.users import UserError

TABLES = ("items", "pairs", "rejects")
UNEXPECTED = "unexpected"
"""reason of a row that no adapter is prepared for"""
LONGEST_MESSAGE = 500
ROWS_AT_ONCE = 1 << 13
"""rows that are Python objects at once: in a table they take a tenth of the memory"""
PAIR_COLUMNS: dict[str, Any] = {
    "source_row": pl.String,
    "user_id": pl.String,
    "prompt_id": pl.Binary,
    "first_id": pl.Binary,
    "second_id": pl.Binary,
    "label": pl.Float64,
    "split": pl.String,
    "prompt_key": pl.Binary,
}
REJECT_COLUMNS: dict[str, Any] = {
    "source_row": pl.String,
    "reason": pl.String,
    "message": pl.String,
}


@dataclass(frozen=True)
class Comparison:
    """Who compared which two items, under which prompt, and the answer."""

    source_row: str
    user_id: str | None
    """the user's name (pal.users)"""
    prompt: Conversation
    """the conversation up to the items; empty where there is none"""
    first: Item
    second: Item
    label: float
    """P(first preferred)"""
    split: Split | None = None
    """the source's own; None: by hash"""
    columns: dict[str, Any] = field(default_factory=dict)
    """further columns of the source to keep"""


@dataclass(frozen=True)
class Reject:
    """A source row that is no comparison."""

    source_row: str
    reason: str
    message: str

    @classmethod
    def of(cls, source_row: str, problem: Exception) -> Reject:
        """Return the reject of a row in which an item or a user is not what it must be, or of which
        nothing better is known than the exception it leads to."""
        for kind, reason in ((UserError, "bad-user"), (ItemError, "bad-item")):
            if isinstance(problem, kind):
                return cls(source_row, reason, str(problem))
        return cls(source_row, UNEXPECTED, f"{type(problem).__name__}: {problem}")


def preferred(
    source_row: str,
    user_id: str | None,
    prompt: Conversation,
    chosen: Item,
    rejected: Item,
    salt: str,
    **rest: Any,
) -> Comparison:
    """Return the comparison of a chosen and a rejected item, its sides by hash: sources put the
    chosen one first."""
    low, high = sorted((chosen.id, rejected.id))
    chosen_first = (bucket("side", salt, f"{user_id}\x1f{low.hex()}{high.hex()}") < 0.5) == (
        chosen.id == low
    )
    first, second = (chosen, rejected) if chosen_first else (rejected, chosen)
    return Comparison(source_row, user_id, prompt, first, second, float(chosen_first), **rest)


def prompt_key(prompt: Conversation) -> bytes:
    """Name a prompt by its normalised text: NFC, white space collapsed; prompts of one name are
    never split."""
    parts = [part for turn in prompt for part in turn]
    return item_id(
        "prompt",
        *(re.sub(r"\s+", " ", unicodedata.normalize("NFC", part)).strip() for part in parts),
    )


def pair_id(user: str, prompt: bytes | None, first: bytes, second: bytes, repeat: int) -> bytes:
    """Name a comparison by its content; the n-th repeat of one has a name of its own."""
    state = hashlib.blake2b(digest_size=ID_BYTES, person=b"pair")
    for part in (user.encode(), prompt or b"", first, second, repeat.to_bytes(4, "little")):
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()


def rejects_frame(rejects: Iterable[Reject] = ()) -> pl.DataFrame:
    """Return rejects as rows."""
    rows = [
        (one.source_row, one.reason, storable(one.message)[:LONGEST_MESSAGE]) for one in rejects
    ]
    return pl.DataFrame(rows, schema=REJECT_COLUMNS, orient="row")


@dataclass
class Chunk:
    """Some rows of a source as rows of the three tables (pal.dataset); any order, repeats allowed.

    ``pairs`` has no ``pair_id`` yet, and from a ``Recorder`` no population; further columns are
    kept behind it.
    """

    items: pl.DataFrame
    pairs: pl.DataFrame
    rejects: pl.DataFrame = field(default_factory=rejects_frame)


def concatenated(chunks: Sequence[Chunk]) -> Chunk:
    """Return the rows of several chunks as one."""
    if len(chunks) < 2:
        return chunks[0] if chunks else Recorder().chunk()
    frames = (
        pl.concat([getattr(c, table) for c in chunks], how="diagonal_relaxed", rechunk=True)
        for table in TABLES
    )
    return Chunk(*frames)


def in_blocks(chunks: Iterable[Chunk]) -> Chunk:
    """Return the rows of very many small chunks as one: each alone takes far more memory than its
    rows."""
    blocks, some, rows = [], [], 0
    for chunk in chunks:
        some.append(chunk)
        rows += len(chunk.pairs)
        if rows >= ROWS_AT_ONCE:
            blocks.append(compact(concatenated(some)))
            some, rows = [], 0
    return concatenated([*blocks, *some])


def with_content(items: pl.DataFrame) -> pl.DataFrame:
    """Return items without the columns that say nothing: an empty cell takes as much memory as a
    short one."""
    needed = ("item_id", "modality", "text")
    empty = (c for c in items.columns if c not in needed and items[c].null_count() == len(items))
    return items.drop(*empty)


def compact(chunk: Chunk) -> Chunk:
    """Return the same rows in memory of their own: polars keeps texts and ids where they were first
    written, in pieces of which most may be empty."""
    frames = (getattr(chunk, table).to_arrow() for table in TABLES)
    return Chunk(*(pl.DataFrame(pl.from_arrow(frame)) for frame in frames))


class Recorder:
    """Collects comparisons and rejects of a chunk and checks what is common to all sources."""

    def __init__(self, views: Sequence[View] = ("response",)) -> None:
        self.with_prompt = "prompt+response" in views
        self._items: dict[bytes, tuple[Any, ...]] = {}
        self._pairs: list[tuple[Any, ...]] = []
        self._further: list[dict[str, Any]] = []
        self._rejects: list[Reject] = []
        self._blocks: list[Chunk] = []
        """items and pairs that are rows of tables already"""

    def add(self, row: Comparison | Reject) -> None:
        """Take a row of the source; a comparison that is none becomes a reject."""
        problem = row if isinstance(row, Reject) else _problem(row)
        if problem is not None:
            self._rejects.append(problem)
            return
        assert isinstance(row, Comparison)
        prompt, sides = prompt_item(row.prompt), (row.first, row.second)
        ids = (None if prompt is None else self._keep(prompt), *map(self._keep, sides))
        key = prompt_key(row.prompt) if row.prompt else None
        if self.with_prompt:
            ids_behind = tuple(self._keep(behind(row.prompt, item)) for item in sides)
        else:
            ids_behind = ()
        answer = (row.label, row.split, key)
        self._pairs.append((row.source_row, row.user_id, *ids, *answer, *ids_behind))
        self._further.append(row.columns)
        if len(self._pairs) >= ROWS_AT_ONCE:
            self._put_away()

    def _keep(self, item: Item) -> bytes:
        name = item.id
        if name not in self._items:
            self._items[name] = item_row(item)
        return name

    def chunk(self) -> Chunk:
        """Return what was collected."""
        self._put_away()
        whole = concatenated(self._blocks)
        if (
            len(self._blocks) > 1
            and not (is_first := whole.items["item_id"].is_first_distinct()).all()
        ):
            whole.items = whole.items.filter(is_first)
        self._blocks = [whole]
        pairs = whole.pairs
        if self._further and any(self._further):
            pairs = pairs.hstack(pl.DataFrame(self._further, infer_schema_length=None))
        return Chunk(whole.items, pairs, rejects_frame(self._rejects))

    def _put_away(self) -> None:
        """Make rows of tables of what was collected."""
        columns = PAIR_COLUMNS | (
            dict.fromkeys(WITH_PROMPT.values(), pl.Binary) if self.with_prompt else {}
        )
        empty = pl.DataFrame(pl.from_arrow(items_schema().empty_table()))
        items = pl.DataFrame(list(self._items.values()), schema=empty.schema, orient="row")
        pairs = pl.DataFrame(self._pairs, schema=columns, orient="row")
        self._blocks.append(compact(Chunk(with_content(items), pairs)))
        self._items, self._pairs = {}, []


def _problem(row: Comparison) -> Reject | None:
    """Say why a comparison cannot be used, or return None."""
    if row.user_id is None or not row.user_id.strip():
        return Reject(row.source_row, "no-user", "the row names no user")
    if not 0.0 <= row.label <= 1.0:  # NaN is not either
        return Reject(row.source_row, "bad-label", f"the label is {row.label}, not within 0 and 1")
    texts = [content for turn in row.prompt for content in turn]
    for item in (row.first, row.second):
        if isinstance(item, Text):
            if not item.text.strip():
                return Reject(row.source_row, "empty-text", "one of the two texts is empty")
            texts += [item.text, item.role]
    if any(not is_unicode(text) for text in [*texts, row.user_id]):
        return Reject(row.source_row, "invalid-unicode", "a text holds half of a surrogate pair")
    if row.first.id == row.second.id:
        return Reject(row.source_row, "identical-items", "the two items are the same")
    return None
