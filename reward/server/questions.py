"""What the page asks a new user: pairs of a prepared dataset, or of a file of the caller's."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal.config import ServeConfig
from pal.dataset import PreparedDataset, oriented
from pal.errors import PalError, RewardError
from pal.items import BETWEEN_TURNS, Conversation, Image, Item, Text, items_of
from pal.reward.model import RewardModel
from pal.reward.rows import read_rows
from pal.reward.server.guard import is_only_here
from pal.reward.server.schemas import QuestionBody
from pal.rows import BadRow

if TYPE_CHECKING:
    import polars as pl

MOST_QUESTIONS = 32
"""more would make each step of an interview slow on a CPU: two items of each are encoded"""
LONGEST_TEXT = 2000
"""of a question that is taken from a dataset: people have to read it"""
SIDES = (("first", "second"), ("chosen", "rejected"))


def questions_of(
    model: RewardModel, settings: ServeConfig, data: Path | None
) -> list[QuestionBody]:
    """Return what ``serve.questions`` names; where that is null, pairs of the dataset that the head
    was trained on, if it lies in ``data`` and only this machine can ask for them.

    Raises PalError where what is named gives none.
    """
    named = settings.questions
    if named is not None:
        found = list(_of_dataset(model, named) if named.is_dir() else _of_file(model, named))
        if not found:
            raise RewardError(
                f"{named} has no pair that this model can read; give rows with prompt, first and "
                "second, or the folder of a prepared dataset"
            )
        return found
    if data is None or not is_only_here(settings):
        return []
    try:
        return list(_of_dataset(model, data / model.metadata.dataset))
    except PalError:  # nobody asked for them
        return []


def _of_file(model: RewardModel, path: Path) -> Iterator[QuestionBody]:
    """Yield the first pairs of a file; raises RewardError for the first that cannot be read."""
    for number, row in enumerate(read_rows(path), start=1):
        if number > MOST_QUESTIONS:
            return
        if isinstance(row, BadRow):
            raise RewardError(f"{path}, row {row.number}: {row.reason}")
        sides = next(((a, b) for a, b in SIDES if a in row and b in row), None)
        if sides is None:
            raise RewardError(
                f"{path}, row {number} has neither first and second nor chosen and rejected; give "
                "both answers"
            )
        question = QuestionBody(prompt=row.get("prompt"), first=row[sides[0]], second=row[sides[1]])
        if not model.is_image:
            for side in (question.first, question.second):
                try:
                    model.row(question.prompt, side)
                except PalError as error:
                    raise RewardError(f"{path}, row {number}: {error}") from error
        yield question


def _of_dataset(model: RewardModel, folder: Path) -> Iterator[QuestionBody]:
    """Yield pairs of a prepared dataset that nobody was trained on, where there are such ones, in
    the order of their ids, which are hashes."""
    dataset = PreparedDataset.open(folder).viewed(model.metadata.view)
    columns = ["pair_id", "prompt_id", "first_id", "second_id", "label"]
    test = dataset.pairs("test", columns=columns)
    pairs = test if len(test) else dataset.pairs(columns=columns)
    pairs = oriented(pairs.sort("pair_id")).unique(
        ["prompt_id", "low", "high"], keep="first", maintain_order=True
    )
    items = _items(dataset, pairs.head(8 * MOST_QUESTIONS))
    given = 0
    for row in pairs.head(8 * MOST_QUESTIONS).iter_rows(named=True):
        question = _question(model, items, row)
        if question is not None and given < MOST_QUESTIONS:
            given += 1
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
        from pal.embed.images import ImageReader

        try:
            return base64.b64encode(ImageReader().bytes_of(item.place)).decode()
        except (OSError, ValueError):
            return None
    if not isinstance(item, Text):
        return None
    if item.context or model.metadata.item_text == "{response}":
        return item.text
    return item.text.removeprefix(BETWEEN_TURNS.join(turn.content for turn in turns))
