"""What flows out of a source: comparisons of texts or images, or the reason why a row is none.

An adapter makes a ``Comparison`` or a ``Reject`` of each source row; ``Recorder`` turns them into
rows of the tables.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from pal.chance import bucket
from pal.dataset import ID_BYTES, WITH_PROMPT, Split, View, item_id

Turn = tuple[str, str]
"""role (system, user, assistant) and content"""


@dataclass(frozen=True)
class Text:
    """A text, and the turns before it where it is to be read behind them."""

    text: str
    context: tuple[Turn, ...] = ()

    @property
    def id(self) -> bytes:
        return (
            item_id("text", self.text)
            if not self.context
            else item_id("text", self.context_json, self.text)
        )

    @property
    def context_json(self) -> str:
        turns = [{"role": role, "content": content} for role, content in self.context]
        return json.dumps(turns, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Image:
    """Where an image's bytes are, and the hash of them; ``filter`` is rendered when the image is
    encoded."""

    content_id: bytes
    file: str
    column: str | None = None
    group: int | None = None
    row: int | None = None
    filter: str | None = None

    @property
    def id(self) -> bytes:
        return (
            self.content_id
            if self.filter is None
            else item_id("filtered image", self.content_id, self.filter)
        )


def image_content_id(raw: bytes) -> bytes:
    """Name an image by its encoded bytes, wherever they lie."""
    return item_id("image", raw)


Item = Text | Image


@dataclass(frozen=True)
class Comparison:
    """Who compared which two items, under which prompt, and the answer."""

    source_row: str
    user_id: str | None
    prompt: tuple[Turn, ...]
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


def question(text: str | None) -> tuple[Turn, ...]:
    """Return the conversation that consists of one prompt, or of nothing."""
    return (("user", text),) if text and text.strip() else ()


def preferred(
    source_row: str,
    user_id: str | None,
    prompt: tuple[Turn, ...],
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


def prompt_item(prompt: tuple[Turn, ...]) -> Text | None:
    """Return what a prompt's map reads: its last turn behind the earlier ones."""
    return Text(prompt[-1][1], prompt[:-1]) if prompt else None


def prompt_key(prompt: tuple[Turn, ...]) -> bytes:
    """Name a prompt by its normalised text: NFC, white space collapsed; prompts of one name are
    never split."""
    parts = [part for turn in prompt for part in turn]
    return item_id(
        "prompt",
        *(re.sub(r"\s+", " ", unicodedata.normalize("NFC", part)).strip() for part in parts),
    )


ITEM_COLUMNS: dict[str, Any] = {
    "item_id": pl.Binary, "modality": pl.String, "text": pl.String, "context": pl.String, "image_file": pl.String,
    "image_column": pl.String, "image_group": pl.Int32, "image_row": pl.Int64, "image_filter": pl.String,
}  # fmt: skip
PAIR_COLUMNS: dict[str, Any] = {
    "source_row": pl.String, "user_id": pl.String, "prompt_id": pl.Binary, "first_id": pl.Binary,
    "second_id": pl.Binary, "label": pl.Float64, "split": pl.String, "prompt_key": pl.Binary,
}  # fmt: skip
REJECT_COLUMNS: dict[str, Any] = {
    "source_row": pl.String,
    "reason": pl.String,
    "message": pl.String,
}


def rejects_frame(rejects: Iterable[Reject] = ()) -> pl.DataFrame:
    """Return rejects as rows."""
    return pl.DataFrame(
        [(r.source_row, r.reason, r.message) for r in rejects], schema=REJECT_COLUMNS, orient="row"
    )


@dataclass
class Chunk:
    """Some rows of a source as rows of the three tables (pal.dataset); any order, repeats allowed.

    ``pairs`` has no ``pair_id`` yet, and from a ``Recorder`` no population; further columns are
    kept behind it.
    """

    items: pl.DataFrame
    pairs: pl.DataFrame
    rejects: pl.DataFrame = field(default_factory=rejects_frame)


TABLES = ("items", "pairs", "rejects")


def concatenated(chunks: Sequence[Chunk]) -> Chunk:
    """Return the rows of several chunks as one."""
    if not chunks:
        return Recorder().chunk()
    return Chunk(
        *(
            pl.concat([getattr(chunk, table) for chunk in chunks], how="diagonal")
            for table in TABLES
        )
    )


class Recorder:
    """Collects comparisons and rejects of a chunk and checks what is common to all sources."""

    def __init__(self, views: Sequence[View] = ("response",)) -> None:
        self.with_prompt = "prompt+response" in views
        self._items: dict[bytes, tuple[Any, ...]] = {}
        self._pairs: list[tuple[Any, ...]] = []
        self._further: list[dict[str, Any]] = []
        self._rejects: list[Reject] = []

    def add(self, row: Comparison | Reject) -> None:
        """Take a row of the source; a comparison that is none becomes a reject."""
        problem = row if isinstance(row, Reject) else _problem(row)
        if problem is not None:
            self._rejects.append(problem)
            return
        assert isinstance(row, Comparison)
        prompt, first, second = prompt_item(row.prompt), row.first, row.second
        for item in (prompt, first, second):
            if item is not None:
                self._keep(item)
        behind: tuple[bytes, ...] = ()
        if self.with_prompt:
            behind = tuple(self._keep(_behind(item, row.prompt)) for item in (first, second))
        key = prompt_key(row.prompt) if row.prompt else None
        ids = (None if prompt is None else prompt.id, first.id, second.id)
        self._pairs.append((row.source_row, row.user_id, *ids, row.label, row.split, key, *behind))
        self._further.append(row.columns)

    def _keep(self, item: Item) -> bytes:
        name = item.id
        if name not in self._items:
            if isinstance(item, Text):
                context = item.context_json if item.context else None
                self._items[name] = (name, "text", item.text, context, None, None, None, None, None)
            else:
                place = (item.file, item.column, item.group, item.row, item.filter)
                self._items[name] = (name, "image", None, None, *place)
        return name

    def chunk(self) -> Chunk:
        """Return what was collected."""
        columns = PAIR_COLUMNS | (
            dict.fromkeys(WITH_PROMPT.values(), pl.Binary) if self.with_prompt else {}
        )
        pairs = pl.DataFrame(self._pairs, schema=columns, orient="row")
        if self._further and any(self._further):
            pairs = pairs.hstack(pl.DataFrame(self._further, infer_schema_length=None))
        items = pl.DataFrame(list(self._items.values()), schema=ITEM_COLUMNS, orient="row")
        return Chunk(items, pairs, rejects_frame(self._rejects))


def _behind(item: Item, prompt: tuple[Turn, ...]) -> Item:
    """Return a response behind its prompt; an image stays as it is."""
    return Text(item.text, prompt) if isinstance(item, Text) else item


def _problem(row: Comparison) -> Reject | None:
    """Say why a comparison cannot be used, or return None."""
    if row.user_id is None or not row.user_id.strip():
        return Reject(row.source_row, "no-user", "the row names no user")
    if not (math.isfinite(row.label) and 0.0 <= row.label <= 1.0):
        return Reject(row.source_row, "bad-label", f"the label is {row.label}, not within 0 and 1")
    texts = [content for turn in row.prompt for content in turn]
    for item in (row.first, row.second):
        if isinstance(item, Text):
            if not item.text.strip():
                return Reject(row.source_row, "empty-text", "one of the two texts is empty")
            texts.append(item.text)
    if any(not is_unicode(text) for text in [*texts, row.user_id]):
        return Reject(row.source_row, "invalid-unicode", "a text holds half of a surrogate pair")
    if row.first.id == row.second.id:
        return Reject(row.source_row, "identical-items", "the two items are the same")
    return None


def is_unicode(text: str) -> bool:
    """Say whether a text can be stored: JSON may escape half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def pair_id(user: str, prompt: bytes | None, first: bytes, second: bytes, repeat: int) -> bytes:
    """Name a comparison by its content; the n-th repeat of one has a name of its own."""
    state = hashlib.blake2b(digest_size=ID_BYTES, person=b"pair")
    for part in (user.encode(), prompt or b"", first, second, repeat.to_bytes(4, "little")):
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()
