"""One value for each row, or one for all: what callers of a model may give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pal.errors import RewardError


def is_one_prompt(prompts: Any) -> bool:
    """Say whether prompts are one for all rows: a text, or the messages of one chat."""
    if isinstance(prompts, str) or not hasattr(prompts, "__len__"):
        return True
    return len(prompts) > 0 and all(isinstance(turn, Mapping) for turn in prompts)


def is_one_user(users: Any) -> bool:
    """Say whether users are one for all rows: an id or a mixture."""
    is_text_or_mixture = isinstance(users, str | bytes | Mapping)
    return is_text_or_mixture or not hasattr(users, "__len__") or getattr(users, "ndim", 1) == 0


def sequence_of(items: Any, what: str) -> Sequence[Any]:
    """Return items, one for each row; raises RewardError for what is none: the letters of a text
    are not."""
    if isinstance(items, str | bytes | Mapping) or not hasattr(items, "__len__"):
        raise RewardError(
            f"one {type(items).__name__} is no list; give a sequence of {what}, one for each row"
        )
    found: Sequence[Any] = items
    return found


def one_for_each(values: Any, rows: int, what: str, is_one: bool) -> Sequence[Any]:
    """Return one value per row; raises RewardError where there are as many as something else."""
    if is_one:
        return [values] * rows
    if len(values) != rows:
        raise RewardError(
            f"{len(values)} {what} for {rows} responses; give one for each, or one for all"
        )
    return list(values)
