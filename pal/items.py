"""What is judged and what a model reads: texts and images, defined once for all stages.

An item is named by the hash of its content (``item_id``). A text knows the turns before it and the
role of each, its own included: a prompt of system and user is not an assistant's text. An image is
a pointer to bytes that stay where they are, or the bytes themselves.

Rows of ``items.parquet`` and items in memory are the same thing: ``items_table`` lays items out,
``items_of`` reads them back, so that a cache, a live encoder, an export and a request render alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pal.errors import PalError, shown

if TYPE_CHECKING:
    import pyarrow as pa

ID_BYTES = 16
View = Literal["response", "prompt+response"]
"""what a head compares: the responses by themselves, or each behind its prompt"""
ItemText = Literal["{response}", "{prompt}{response}"]
"""how a prompt and a response make the text of an item in the view ``response``"""
BETWEEN_TURNS = "\n\n"


class ItemError(PalError):
    """What was given is no text, conversation or image."""


class Turn(NamedTuple):
    """One message: who speaks (system, user, assistant, ...) and what is said."""

    role: str
    content: str


Conversation = tuple[Turn, ...]
Prompt = str | Sequence[Mapping[str, Any]] | None
"""what callers give: the text of one user turn, chat messages, or nothing"""


@dataclass(frozen=True)
class Text:
    """A text, and where it is to be read behind others, those turns and its own speaker's role."""

    text: str
    context: Conversation = ()
    role: str = "assistant"
    """counts only behind a context; a text alone is the same item whoever says it"""

    @property
    def id(self) -> bytes:
        if not self.context:
            return item_id("text", self.text)
        return item_id("text", turns_json(self.context), self.role, self.text)

    @property
    def turns(self) -> Conversation:
        """The whole conversation, this text last; alone it is what a user says."""
        return (*self.context, Turn(self.role if self.context else "user", self.text))


@dataclass(frozen=True)
class Place:
    """Where an image's encoded bytes are, and what is done to the image once it is decoded.

    They are ``raw``, or the content of ``file``, or in the Parquet file ``file`` at ``row`` of the
    row group ``group`` in ``column``.
    """

    file: str | None = None
    column: str | None = None
    group: int | None = None
    row: int | None = None
    filter: str | None = None
    raw: bytes | None = None


@dataclass(frozen=True)
class Image:
    """An image: where its bytes are, and their hash, unless it was read back from a table."""

    place: Place
    content_id: bytes | None = None

    @classmethod
    def of_bytes(cls, raw: bytes) -> Image:
        """Return an image that is in memory."""
        return cls(Place(raw=raw), image_content_id(raw))

    @property
    def id(self) -> bytes:
        assert self.content_id is not None, "an image that was read from a table has its id there"
        if self.place.filter is None:
            return self.content_id
        return item_id("filtered image", self.content_id, self.place.filter)


@dataclass(frozen=True)
class Feature:
    """A float32 vector that a dataset brings itself, as little-endian bytes."""

    raw: bytes

    @property
    def id(self) -> bytes:
        return item_id("feature", self.raw)


Item = Text | Image | Feature


def item_id(kind: str, *parts: str | bytes) -> bytes:
    """Return the 16-byte name of an item: BLAKE2b-128 over kind and length-prefixed parts."""
    state = hashlib.blake2b(kind.encode() + b"\0", digest_size=ID_BYTES)
    for part in parts:
        raw = part.encode("utf-8", errors="surrogatepass") if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.digest()


def image_content_id(raw: bytes) -> bytes:
    """Name an image by its encoded bytes, wherever they lie."""
    return item_id("image", raw)


def turns_json(turns: Iterable[Turn]) -> str:
    """Return turns as the one JSON text they have: ``[{"role", "content"}, ...]``."""
    listed = [{"role": turn.role, "content": turn.content} for turn in turns]
    return json.dumps(listed, ensure_ascii=False, separators=(",", ":"))


def turns_of_json(text: str) -> Conversation:
    """Return the turns of a text that ``turns_json`` wrote."""
    return tuple(Turn(turn["role"], turn["content"]) for turn in json.loads(text))


def conversation(messages: Prompt, role: str = "user") -> Conversation:
    """Return what a caller gives as turns: a text is one turn of ``role``, nothing is none.

    Messages keep their roles; of content in parts the text parts count; ``content: null``, as a
    message that only calls a tool has, is an empty text. Raises ItemError.
    """
    if messages is None:
        return ()
    if isinstance(messages, str):
        return (Turn(role, messages),)
    if not isinstance(messages, Iterable) or isinstance(messages, bytes | Mapping):
        raise ItemError(f"a text is a string or a list of chat messages, not {shown(messages)}")
    try:
        listed = list(messages)
    except TypeError:  # an array without an axis says that it can be iterated over
        raise ItemError(
            f"a text is a string or a list of chat messages, not {shown(messages)}"
        ) from None
    return tuple(_turn(message, role) for message in listed)


def _turn(message: Any, role: str) -> Turn:
    if not isinstance(message, Mapping) or "content" not in message:
        raise ItemError(f"chat messages are objects with role and content, not {shown(message)}")
    given = message.get("role")
    return Turn(given if isinstance(given, str) and given else role, _content(message["content"]))


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ItemError(
            f"the content of a message is a string or a list of parts, not {shown(content)}"
        )
    texts = [part.get("text") for part in content if isinstance(part, Mapping)]
    return "".join(text for text in texts if isinstance(text, str))


def question(text: str | None) -> Conversation:
    """Return the conversation that consists of one prompt, or of nothing."""
    return (Turn("user", text),) if text and text.strip() else ()


def prompt_item(prompt: Conversation) -> Text | None:
    """Return what a prompt's map reads: its last turn, in its own role, behind the earlier ones."""
    return Text(prompt[-1].content, prompt[:-1], prompt[-1].role) if prompt else None


def behind(prompt: Conversation, item: Item) -> Item:
    """Return a response as it is read behind its prompt; images are the same in both views."""
    return Text(item.text, (*prompt, *item.context), item.role) if isinstance(item, Text) else item


def response_item(prompt: Conversation, response: Prompt, view: View, item_text: ItemText) -> Text:
    """Return what is rewarded, in the view that a head was trained in. Raises ItemError.

    ``prompt+response``: the response behind the turns before it. ``response``: one text alone, made
    by the pattern ``item_text`` of the prompt's and the response's words. Of a response of several
    messages the last one is the item, and those before it count to the prompt.
    """
    answer = conversation(response, "assistant")
    if not answer:
        raise ItemError("a response is missing; give a string or at least one chat message")
    before, last = (*prompt, *answer[:-1]), answer[-1]
    if view == "prompt+response":
        return Text(last.content, before, last.role)
    words = BETWEEN_TURNS.join(turn.content for turn in before)
    return Text(item_text.format(prompt=words, response=last.content))


def items_schema() -> pa.Schema:
    """What a row of ``items.parquet`` is; ``modality`` says which columns count.

    text: ``text``, and behind others ``context``, the turns before it as JSON, and ``role``, its
    own speaker's; image: the columns of ``Image``; feature: a float32 vector in ``feature``.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("item_id", pa.binary(ID_BYTES), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("text", pa.large_string()),
            pa.field("context", pa.large_string()),
            pa.field("role", pa.string()),
            pa.field("image_file", pa.string()),
            pa.field("image_column", pa.string()),
            pa.field("image_group", pa.int32()),
            pa.field("image_row", pa.int64()),
            pa.field("image_filter", pa.string()),
            pa.field("feature", pa.large_binary()),
        ]
    )


ITEM_COLUMNS = (
    "item_id", "modality", "text", "context", "role", "image_file", "image_column", "image_group",
    "image_row", "image_filter", "feature",
)  # fmt: skip


def item_row(item: Item) -> tuple[Any, ...]:
    """Return an item as a row of ``ITEM_COLUMNS``; bytes in memory have no place there."""
    if isinstance(item, Text):
        context, role = (turns_json(item.context), item.role) if item.context else (None, None)
        return (item.id, "text", item.text, context, role, *[None] * 6)
    if isinstance(item, Feature):
        return (item.id, "feature", *[None] * 8, item.raw)
    place = item.place
    where = (place.file, place.column, place.group, place.row, place.filter)
    return (item.id, "image", *[None] * 3, *where, None)


def items_of(table: pa.Table) -> list[Item]:
    """Return the rows of ``items.parquet`` as items.

    Bytes that are not UTF-8 become halves of surrogate pairs, which an encoder refuses row by row.
    """
    import pyarrow as pa

    def column(name: str) -> list[Any]:
        if name not in table.column_names:
            return [None] * len(table)
        values = table.column(name)
        if pa.types.is_large_string(values.type) or pa.types.is_string(values.type):
            raw = values.cast(pa.large_binary()).to_pylist()
            return [None if v is None else v.decode("utf-8", "surrogateescape") for v in raw]
        found: list[Any] = values.to_pylist()
        return found

    rows = zip(*(column(name) for name in ITEM_COLUMNS[1:]), strict=True)
    return [_item(modality, *values) for modality, *values in rows]


def _item(modality: str, *values: Any) -> Item:
    text, context, role, *where, feature = values
    if modality == "text":
        turns = turns_of_json(context) if context else ()
        return Text(text or "", turns, role or "assistant")
    return Feature(feature) if modality == "feature" else Image(Place(*where))


def is_unicode(text: str) -> bool:
    """Say whether a text can be stored: JSON may escape half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def storable(text: str) -> str:
    """Return a text for a message or a name; halves of surrogate pairs, which no table can store,
    are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
