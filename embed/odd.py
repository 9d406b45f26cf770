"""Odd items: which of many an encoder cannot take, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pal.errors import PalError
from pal.items import Text, is_unicode, storable

PANIC = "PanicException"
"""what libraries written in Rust raise where they give up; it is no Exception"""
LONGEST_MESSAGE = 500


class Failure(NamedTuple):
    """Why an item cannot be encoded."""

    stage: str
    """fetch, decode, tokenize, encode or nonfinite"""
    error_class: str
    message: str


Failures = dict[int, Failure]
"""by row"""


def is_about_items(error: BaseException) -> bool:
    """Say whether an error may be about what was given: not a sentence of ours, which is about the
    encoder or the whole dataset, and nobody who wants to stop."""
    if type(error).__name__ == PANIC:
        return True
    return isinstance(error, Exception) and not isinstance(error, PalError)


def failure_of(stage: str, error: BaseException, where: str = "") -> Failure:
    """Return an error as an item's failure; its message can be stored, whatever it quotes."""
    message = storable(f"{where}{error}")[:LONGEST_MESSAGE]
    return Failure(stage, type(error).__name__, message or type(error).__name__)


def odd_ones(rows: Sequence[int], call: Callable[[Sequence[int]], object], stage: str) -> Failures:
    """Return the rows for which ``call`` fails even when they are alone, found by halving."""
    try:
        call(rows)
    except BaseException as error:
        if not is_about_items(error):
            raise
        if len(rows) == 1:
            return {rows[0]: failure_of(stage, error)}
    else:
        return {}
    half = len(rows) // 2
    return {**odd_ones(rows[:half], call, stage), **odd_ones(rows[half:], call, stage)}


def unreadable(text: Text) -> Failure | None:
    """Return why a text cannot be read, None where it can."""
    if not all(is_unicode(turn.role + turn.content) for turn in text.turns):
        return Failure(
            "decode",
            "UnicodeDecodeError",
            "the text, or a turn before it, is not UTF-8 or holds half of a surrogate pair",
        )
    if not text.text.strip():
        return Failure("tokenize", "EmptyText", "the text is empty")
    return None
