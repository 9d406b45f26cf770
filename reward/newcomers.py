"""A file of answers of people whom a model does not know: each is learned from the own ones.

Rows are comparisons with a ``user_id``: prompt, chosen, rejected; or first, second and ``label``,
P(first preferred). Where a row has chosen and rejected, its label says nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pal.errors import PalError, RewardError, shown
from pal.reward.adaptation import Answer
from pal.reward.cells import number_in_file
from pal.reward.model import RewardModel
from pal.reward.rows import SIDES, item_in, read_rows, sides_of
from pal.rows import BadRow, Row
from pal.users import user_name

COLUMNS = ("user_id", "prompt", "label", *(side for sides in SIDES for side in sides))


def learn_file(model: RewardModel, source: Path) -> list[str]:
    """Add everybody in a file to a model's users and return their names; raises RewardError for the
    first row that is no answer, and for people whom the model knows from its training."""
    answers: dict[str, list[Answer]] = {}
    for name, answer in answers_in(source, model.is_image):
        if name in model.users.number:
            raise RewardError(
                f"--answers {source}: {shown(name)} is known from the training, from more answers; "
                "leave such rows out"
            )
        answers.setdefault(name, []).append(answer)
    if not answers:
        raise RewardError(f"--answers {source} has no row; give a file of comparisons")
    for name, own in answers.items():
        try:
            model.learn(name, own)
        except PalError as error:
            raise RewardError(f"--answers {source}: {shown(name)}: {error}") from error
    return list(answers)


def answers_in(source: Path, is_image: bool) -> Iterator[tuple[str, Answer]]:
    """Yield who answered, and what."""
    for count, row in enumerate(read_rows(source, COLUMNS, "--answers"), start=1):
        try:
            yield _answer(row, is_image)
        except PalError as error:
            number = number_in_file(source, count)
            raise RewardError(f"--answers {source}, row {number}: {error}") from error


def _answer(row: Row | BadRow, is_image: bool) -> tuple[str, Answer]:
    if isinstance(row, BadRow):
        raise RewardError(row.reason)
    name = user_name(row.get("user_id"))
    if name is None:
        raise RewardError("it has no user_id; say whose answer it is")
    sides = sides_of(row)
    if sides is None:
        raise RewardError("it has neither chosen and rejected nor first and second")
    label = 1.0 if sides[0] == "chosen" else _number(row.get("label"))
    first, second = (item_in(row, side, is_image) for side in sides)
    for side, item in zip(sides, (first, second), strict=True):
        if item is None:
            raise RewardError(f"it has no {side}")
    prompt = row.get("prompt")
    return name, Answer("" if prompt is None else prompt, first, second, label)


def _number(label: Any) -> float:
    """Return a label as a number."""
    if label in (None, ""):
        raise RewardError("it has no label; say how far the first is preferred, from 0 to 1")
    try:
        return float(label)
    except (TypeError, ValueError) as error:
        raise RewardError(f"its label is {shown(label)}; give a number from 0 to 1") from error
