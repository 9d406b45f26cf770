"""One name for one user, whatever type the id has: the only place where ids become names.

    7, 7.0, "7", numpy.int64(7), b"7"        -> "7"
    "007", "7.0" in JSON, "José"             -> as they are: a text is a name already
    None, "", "  ", float("nan")             -> None: nobody is named

A text file has no types, so its columns are read as a whole (``user_names``): a column counts as
numbers only if every entry is one, and then 7 and 7.0 are one user there too.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from typing import Any

from pal.errors import PalError, shown

NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,99})(\.0*)?")
"""how a whole number is written; 007 is not, so it stays a text"""
MISSING_IN_TEXT_FILES = {"", "nan", "null", "none"}


class UserError(PalError):
    """What stands in the place of a user's id cannot be one."""


def user_name(value: Any) -> str | None:
    """Return the name of a user, None where nobody is named; raises UserError for what is no id.

    Ids are texts, whole numbers of any kind, or UTF-8 bytes.
    """
    if value is None:
        return None
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            value = bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"a user's id is {bytes(value)[:40]!r}, which is not UTF-8") from error
    if isinstance(value, str):
        return str(value) if value.strip() else None
    if getattr(value, "ndim", None) == 0 and not isinstance(value, numbers.Number):
        return user_name(value.item())  # NumPy's and torch's single values
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        raise UserError(f"a user's id is {bool(value)}; ids are texts or whole numbers")
    if isinstance(value, numbers.Integral):
        if abs(int(value)) >= 10**100:
            raise UserError("a user's id is a number of more than 100 digits; give it as a text")
        return str(int(value))
    if isinstance(value, numbers.Real):
        try:
            number = float(value)
        except (OverflowError, ValueError):
            number = math.inf
        if math.isnan(number):
            return None
        if number.is_integer() and abs(number) < 1e100:
            return str(int(number))
    raise UserError(f"a user's id is {shown(value)}; ids are texts or whole numbers")


def user_names(column: Sequence[str | None]) -> list[str | None]:
    """Return the names of a column of a text file, which has no types and no null.

    Entries such as NaN and null are missing. If all others are whole numbers, 7.0 is the user 7.
    """
    present = [None if is_missing_text(value) else value for value in column]
    if all(value is None or NUMBER.fullmatch(value.strip()) for value in present):
        return [None if v is None else str(int(v.strip().partition(".")[0])) for v in present]
    return [user_name(value) for value in present]


def is_missing_text(value: str | None) -> bool:
    """Say whether an entry of a text file stands for nothing."""
    return value is None or value.strip().lower() in MISSING_IN_TEXT_FILES
