"""What the page asks a new user: pairs of a prepared dataset, or of a file of the caller's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal.config import ServeConfig
from pal.dataset import PreparedDataset, oriented
from pal.embed.images import ImageReader, as_library
from pal.errors import PalError, RewardError
from pal.items import BETWEEN_TURNS, Conversation, Image, Item, Text, items_of
from pal.reward.model import RewardModel
from pal.reward.rows import read_rows, sides_of
from pal.reward.server.guard import is_only_here
from pal.reward.server.reader import Reader
from pal.reward.server.schemas import QuestionBody
from pal.rows import BadRow

if TYPE_CHECKING:
    import polars as pl

MOST_QUESTIONS = 32
"""more would make each step of an interview slow on a CPU: two items of each are encoded"""
LONGEST_TEXT = 2000
"""of a question that is taken from a dataset: people have to read it"""
BYTES_OF_LABEL = 32
"""at most, of an answer and what stands between two questions"""


def questions_of(
    model: RewardModel, settings: ServeConfig, data: Path | None, token: str | None = None
) -> list[QuestionBody]:
    """Return what ``serve.questions`` names; where that is null, pairs of the dataset that the head
    was trained on, if it lies in ``data`` and only this machine can ask for them.

    All of them can be sent in one request, and are read as a request's. Raises PalError where what
    is named gives none, or one that cannot be read.
    """
    named, reader = settings.questions, Reader(model, settings)
    if named is not None:
        try:
            found = list(_of_dataset(reader, named) if named.is_dir() else _of_file(reader, named))
        except OSError as error:
            raise RewardError(
                f"cannot read {named} ({error.strerror}); give serve.questions another file"
            ) from error
        if not found:
            raise RewardError(
                f"{named} has no pair that this model can read; give rows with prompt, first and "
                "second, or the folder of a prepared dataset"
            )
        return found
    if data is None or not is_only_here(settings, token):
        return []
    try:
        return list(_of_dataset(reader, data / model.metadata.dataset, is_own=True))
    except (PalError, OSError):  # nobody asked for them
        return []


def _of_file(reader: Reader, path: Path) -> Iterator[QuestionBody]:
    """Yield the first pairs of a file; raises RewardError for the first that cannot be read."""
    if not path.is_file():  # a pipe would wait, a device has no end
        raise RewardError(
            f"serve.questions: {path} is no file that exists; give a JSONL, CSV or Parquet file, "
            "or the folder of a prepared dataset"
        )
    left = _most_bytes(reader.settings)
    for number, row in enumerate(islice(read_rows(path), MOST_QUESTIONS), start=1):
        if isinstance(row, BadRow):
            raise RewardError(f"{path}, row {row.number}: {row.reason}")
        sides = sides_of(row)
        if sides is None:
            raise RewardError(
                f"{path}, row {number} has neither first and second nor chosen and rejected; give "
                "both answers"
            )
        first, second = (_as_sent(reader, row[side]) for side in sides)
        question = QuestionBody(prompt=row.get("prompt"), first=first, second=second)
        try:
            left -= _size_of(reader, question)
        except PalError as error:
            raise RewardError(f"{path}, row {number}: {error}") from error
        if left < 0:
            raise RewardError(
                f"{path}: its first {number} pairs have more bytes than a request may have, "
                f"{reader.settings.max_body_bytes:,}; give smaller ones, or more to "
                "serve.max_body_bytes"
            )
        yield question


def _as_sent(reader: Reader, side: Any) -> Any:
    """Return a side of a row as a request has it: files keep an image as bytes, too."""
    raw = side.get("bytes") if isinstance(side, dict) else side  # as Hugging Face datasets keep it
    if reader.model.is_image and isinstance(raw, bytes):
        return base64.b64encode(raw).decode()
    return side


def _size_of(reader: Reader, question: QuestionBody) -> int:
    """Return how many bytes a question has in a request; raises PalError where it would be
    refused there."""
    for side in (question.first, question.second):
        row = reader.row_of(question.prompt, side)
        if isinstance(row.item, Image):
            try:
                as_library(row.item.place.raw or b"")
            except Exception as error:  # PIL has many ways of refusing
                raise RewardError(f"an image cannot be read ({error})") from error
    try:
        return len(question.model_dump_json().encode()) + BYTES_OF_LABEL
    except ValueError as error:  # half of a surrogate pair, bytes
        raise RewardError("a text is not UTF-8, or holds half of a surrogate pair") from error


def _most_bytes(settings: ServeConfig) -> int:
    return settings.max_body_bytes - len('{"questions":[]}')


def _of_dataset(reader: Reader, folder: Path, is_own: bool = False) -> Iterator[QuestionBody]:
    """Yield pairs of a prepared dataset that nobody was trained on, where there are such ones, in
    the order of their ids, which are hashes; none where it ``is_own``, the head's, by name only."""
    metadata = reader.model.metadata
    dataset = PreparedDataset.open(folder).viewed(metadata.view)
    trained_on = (metadata.split_digest, metadata.pairs_digest)
    if is_own and (dataset.split_digest, dataset.pairs_digest) != trained_on:
        return
    columns = ["pair_id", "prompt_id", "first_id", "second_id", "label"]
    test = dataset.pairs("test", columns=columns)
    pairs = test if len(test) else dataset.pairs(columns=columns)
    pairs = oriented(pairs.sort("pair_id")).unique(
        ["prompt_id", "low", "high"], keep="first", maintain_order=True
    )
    tried = pairs.head(8 * MOST_QUESTIONS)
    items, left, given = _items(dataset, tried), _most_bytes(reader.settings), 0
    for row in tried.iter_rows(named=True):
        question = _question(reader.model, items, row)
        if question is None or given == MOST_QUESTIONS:
            continue
        try:
            size = _size_of(reader, question)
        except PalError:
            continue
        if size <= left:
            left, given = left - size, given + 1
            yield question


def _items(dataset: PreparedDataset, pairs: pl.DataFrame) -> dict[bytes, Item]:
    import pyarrow as pa
    import pyarrow.compute as pc

    wanted = {name for column in ("prompt_id", "first_id", "second_id") for name in pairs[column]}
    table = dataset.items()
    ids = pa.array(sorted(wanted - {None}), pa.binary(16))
    some = table.filter(pc.is_in(table.column("item_id"), ids))
    return dict(zip(some.column("item_id").to_pylist(), items_of(some), strict=True))


def _question(
    model: RewardModel, items: dict[bytes, Item], row: dict[str, Any]
) -> QuestionBody | None:
    """Return a pair as a request would send it, None where that would not be the same pair."""
    first, second, prompt = (items.get(row[key]) for key in ("first_id", "second_id", "prompt_id"))
    turns: Conversation = first.context if isinstance(first, Text) else ()
    if not turns and isinstance(prompt, Text):
        turns = prompt.turns
    asked = _sent(turns)
    sides = [_side(turns, item, model) for item in (first, second)]
    if any(side is None for side in sides) or len(json.dumps([asked, *sides])) > _longest(model):
        return None
    for side, name in zip(sides, ("first_id", "second_id"), strict=True):
        given = base64.b64decode(side) if model.is_image else side  # type: ignore[arg-type]
        try:
            read = model.row(asked, given)
        except PalError:
            return None
        if read.item.id != row[name]:
            return None
    return QuestionBody(prompt=asked, first=sides[0], second=sides[1])


def _longest(model: RewardModel) -> int:
    return 1 << 20 if model.is_image else LONGEST_TEXT


def _sent(turns: Conversation) -> Any:
    """Return the turns of a prompt as a request has them."""
    if not turns:
        return None
    if len(turns) == 1 and turns[0].role == "user":
        return turns[0].content
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _side(turns: Conversation, item: Item | None, model: RewardModel) -> str | None:
    """Return a response as a request has it: its words without the prompt's, or an image's
    bytes."""
    if isinstance(item, Image):
        from pyarrow import ArrowException

        try:
            return base64.b64encode(ImageReader().bytes_of(item.place)).decode()
        except (OSError, ValueError, ArrowException):
            return None
    if not isinstance(item, Text):
        return None
    if item.context or model.metadata.item_text == "{response}":
        return item.text
    return item.text.removeprefix(BETWEEN_TURNS.join(turn.content for turn in turns))
