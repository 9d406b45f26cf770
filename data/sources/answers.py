"""What the answers of a column mean, recognised over the whole column, or asked for.

0 and 1 are shares of the first, 1 and 2 are the first and the second, A is the first: a row by
itself cannot say which of them holds, and a wrong guess would turn half of the answers round.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from pal.cells import with_point
from pal.data.survey import SHOWN, Column, answer_key
from pal.errors import DataError
from pal.items import is_unicode
from pal.users import is_missing_text

FIRST, SECOND, TIE = 1.0, 0.0, 0.5
SIDES: dict[str, float | None] = {
    **dict.fromkeys(("first", "a", "left", "model_a", "model a", "true"), FIRST),
    **dict.fromkeys(("second", "b", "right", "model_b", "model b", "false"), SECOND),
    **dict.fromkeys(("tie", "draw", "equal", "tie (bothbad)"), TIE),
}
"""P(first preferred) of the words of comparisons, in lower case"""
VOTES: dict[str, float | None] = {
    **dict.fromkeys(("agree", "yes", "true", "up", "like"), 1.0),
    **dict.fromkeys(("disagree", "no", "false", "down", "dislike"), 0.0),
    **dict.fromkeys(("pass", "skip", "unsure", "neutral"), None),
}
"""P(agree) of the words of votes; None is a pass"""
OFTEN, FEWEST = 0.05, 3
"""share of the answers, and number, from which one that has no meaning is no slip of a single row
but a convention that is not known"""
RARE = 0.01
"""share of the votes below which -1 is a slip, and does not say what 0 is"""
LARGEST = 10
"""whole numbers up to which, and down to minus which, answers may be codes"""


def _words(given: Any) -> Any:
    """Turn keys that YAML reads as numbers, or as true and false, back into words."""
    if not isinstance(given, Mapping):
        return given
    found: dict[Any, Any] = {}
    for key, value in given.items():
        names = {True: ("true", "yes", "on"), False: ("false", "no", "off")}
        written = answer_key(key)
        same = names[key] if isinstance(key, bool) else (written, answer_key(with_point(written)))
        found |= dict.fromkeys(same, value)
    return found


Meanings = Annotated[
    dict[str, Annotated[float, Field(ge=0.0, le=1.0)]],
    BeforeValidator(_words),
]
"""what words of the file mean: from 0 to 1"""


@dataclass(frozen=True)
class Convention:
    """What the answers of a column mean."""

    meaning: Mapping[str, float | None]
    """by ``answer_key``; None is a pass"""
    has_shares: bool = False
    """whether numbers from 0 to 1 mean themselves"""
    rule: str = ""
    """how numbers are read, for people"""

    def knows(self, value: Any) -> bool:
        """Say whether an answer has a meaning."""
        return self._key(value) in self.meaning or self._share(value) is not None

    def of(self, value: Any) -> float | None:
        """Return what an answer that is known means."""
        key = self._key(value)
        return self.meaning[key] if key in self.meaning else self._share(value)

    @staticmethod
    def _key(value: Any) -> str:
        try:
            return answer_key(value)
        except ValueError:  # a number of too many digits
            return ""

    def _share(self, value: Any) -> float | None:
        if not self.has_shares:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            return None
        return number if 0.0 <= number <= 1.0 else None

    def told(self, column: Column) -> str:
        """Return what the answers of a column are taken for, the most frequent first."""
        parts = []
        for key, count in column.answers.most_common(SHOWN):
            means = _told(self.of(key)) if self.knows(key) else "not understood"
            parts.append(f"{key!r} is {means} ({count:,})")
        more = "" if len(column.answers) <= SHOWN else f" and {len(column.answers) - SHOWN} more"
        rule = f"; {self.rule}" if _codes(column) else ""
        return f"{column.name}: {', '.join(parts)}{more}{rule}"


def _told(meaning: float | None) -> str:
    return "a pass" if meaning is None else f"{meaning:g}"


def of_sides(
    column: Column, own: Mapping[str, float], sides: tuple[str, str], asked: str
) -> Convention:
    """Return the convention of a column of labels: P(first preferred).

    Numbers from 0 to 1 are that themselves; where there are only 1 and 2, 1 is the first. ``own``
    is what the user says; ``sides`` names the two sides' columns, whose names are answers too;
    ``asked`` is where the user can say it. Raises DataError where frequent answers have no meaning.
    """
    named = dict(zip(map(answer_key, sides), (FIRST, SECOND), strict=True))
    meaning = {**SIDES, **(named if len(named) == 2 else {}), **own}
    codes = {number: count for number, count in _codes(column).items() if number not in own}
    numbers = _numbers(column, own)
    if numbers <= {1.0, 2.0} and "2" in codes:
        return Convention(
            {"1": FIRST, "2": SECOND, **meaning}, rule="of the numbers 1 is the first, 2 the second"
        )
    strange = Counter({str(n): c for n, c in codes.items() if n not in ("0", "1")})
    _require_known(column, meaning, strange, asked, "1 is the first, 0 the second, 0.5 a tie")
    return Convention(meaning, True, "numbers are the share of the first: 1 first, 0 second")


def of_votes(column: Column, own: Mapping[str, float], asked: str) -> Convention:
    """Return the convention of a column of votes: P(agree), None for a pass.

    Where there are -1, 1 agrees, -1 disagrees and 0 passes. 0 without them may be either: raises
    DataError, as for frequent answers without a meaning.
    """
    said: dict[str, float | None] = {key: None if p == TIE else p for key, p in own.items()}
    meaning, codes = {**VOTES, **said}, _codes(column)
    rule = "1 agrees"
    if codes["-1"] > RARE * column.answers.total():
        meaning = {"-1": 0.0, "0": None, **meaning}
        rule = "of the numbers 1 agrees, -1 disagrees, 0 passes"
    meaning = {"1": 1.0, **meaning}
    strange = Counter({n: c for n, c in codes.items() if n not in meaning})
    _require_known(column, meaning, strange, asked, "1 agrees, 0 disagrees, 0.5 passes")
    return Convention(meaning, rule=rule)


def _codes(column: Column) -> Counter[str]:
    """Return the small whole numbers among the answers."""
    small = {str(number) for number in range(-LARGEST, LARGEST + 1)}
    return Counter({key: n for key, n in column.answers.items() if key in small})


def _numbers(column: Column, own: Mapping[str, float]) -> set[float]:
    """Return all numbers among the answers that the user has not said the meaning of."""
    found = set()
    for key in column.answers.keys() - own.keys():
        try:
            found.add(float(key))
        except ValueError:
            continue
    return {number for number in found if not math.isnan(number)}


def _require_known(
    column: Column,
    meaning: Mapping[str, float | None],
    strange: Counter[str],
    asked: str,
    scale: str,
) -> None:
    """Raise DataError where answers without a meaning are too many to be slips."""
    words = Counter({
        key: count
        for key, count in column.answers.items()
        if key not in meaning and _is_word(key)
    })  # fmt: skip
    total = column.answers.total()
    unknown = Counter({
        key: count
        for key, count in (strange + words).items()
        if count >= FEWEST and count >= OFTEN * total
    })  # fmt: skip
    if not unknown:
        return
    own = sorted(unknown | _codes(column))  # what one number means depends on the others
    keys = ", ".join(f'"{key}": ...' for key in own[:SHOWN])
    raise DataError(
        f"the column {column.told()}, and what {next(iter(unknown))!r} means is not "
        f"certain; say it with numbers from 0 to 1 ({scale}): {asked}: {{{keys}}}"
    )


def is_missing(value: Any, convention: Convention | None = None) -> bool:
    """Say whether a cell holds no answer: empty, null or NaN, also as a text file writes them,
    unless it is a word that has a meaning in a convention, such as none of the two."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, str):
        return is_missing_text(value) and not (convention and convention.knows(value))
    return value is None


def _is_word(key: str) -> bool:
    """Say whether an answer may be a word of a convention, not a number or a damaged text."""
    if not (is_unicode(key) and key.isprintable() and any(map(str.isalpha, key))):
        return False
    return not is_missing_text(key) and key not in ("inf", "-inf", "infinity")
