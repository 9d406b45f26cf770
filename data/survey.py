"""What all rows of a source hold, column by column: read once before any row is understood.

Whether 1 and 2 are labels, ids are numbers, or strings are images is a question about a whole
column; a row by itself cannot answer it. Rows are streamed, and few values are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pal.cells import with_point
from pal.data.pictures import Look, look_of
from pal.rows import Row
from pal.users import NUMBER, is_missing_text

MOST_ANSWERS = 1000
"""different short values of a column that are counted one by one"""
LONGEST_ANSWER = 60
LOOKED_FOR = 100
"""paths of a column that are looked for on the disk"""
SHOWN = 6
"""answers that a message lists"""
TYPES = {
    bool: "true or false", int: "whole number", float: "number", str: "text", list: "list",
    dict: "object", bytes: "bytes",
}  # fmt: skip
IsFile = Callable[[str], bool]


def answer_key(value: Any) -> str:
    """Return how an answer is counted and looked up: lower case, whole numbers without a point."""
    text = str(value).strip().lower()
    if "." in text and NUMBER.fullmatch(text):
        return text.partition(".")[0]
    return text


@dataclass
class Column:
    """What the rows of a source hold in one column."""

    name: str
    filled: int = 0
    """rows with a value"""
    empty: int = 0
    """rows without one: null or an empty cell"""
    types: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    """short values by ``answer_key``, at most ``MOST_ANSWERS`` different ones"""
    are_numbers: bool = True
    """whether all cells of text files that hold something hold whole numbers"""
    commas: int = 0
    """numbers with a decimal comma, which are counted in ``answers`` with a point"""
    looks: Counter[Look] = field(default_factory=Counter)
    """strings that look like images, by how"""
    found: int = 0
    """those of them that are files, as far as they were looked for"""

    def add(
        self, value: Any, is_untyped: bool, is_file: IsFile, has_decimal_commas: bool = False
    ) -> None:
        if value is None or value == "":
            self.empty += 1
            return
        self.filled += 1
        self.types[TYPES.get(type(value), type(value).__name__)] += 1
        if isinstance(value, str):
            self._add_text(value, is_untyped, is_file, has_decimal_commas)
        elif isinstance(value, int | float):
            self._count(value)

    def _add_text(
        self, value: str, is_untyped: bool, is_file: IsFile, has_decimal_commas: bool
    ) -> None:
        if len(value) <= LONGEST_ANSWER:
            number = with_point(value) if has_decimal_commas else value
            self.commas += number != value
            self._count(number)
        if is_untyped and self.are_numbers and not is_missing_text(value):
            self.are_numbers = NUMBER.fullmatch(value.strip()) is not None
        look = look_of(value)
        if look == "spaced path" and not is_file(value):
            return  # a sentence that ends like a file's name
        if look is not None:
            self.looks[look] += 1
            if look == "spaced path":
                self.found += 1
            elif look == "path" and self.looks[look] <= LOOKED_FOR:
                self.found += is_file(value)

    def _count(self, value: Any) -> None:
        try:
            key = answer_key(value)
        except ValueError:  # a number of too many digits to be written
            return
        if key in self.answers or len(self.answers) < MOST_ANSWERS:
            self.answers[key] += 1

    def told(self) -> str:
        """Return the most frequent answers for people."""
        common = ", ".join(f"{key!r} ({n:,})" for key, n in self.answers.most_common(SHOWN))
        further = len(self.answers) - SHOWN
        return f"{self.name} holds {common}" + (f" and {further:,} more" if further > 0 else "")

    @property
    def kind(self) -> str:
        """What most values are, in words."""
        return " or ".join(name for name, _ in self.types.most_common(3)) or "empty"

    @property
    def is_of_images(self) -> bool:
        """Whether most strings look like images: then all of them are."""
        return 2 * self.looks.total() > self.types["text"]

    @property
    def has_images(self) -> bool:
        """Whether some string certainly is an image."""
        return self.found > 0 or bool(self.looks["data"] + self.looks["URL"])


@dataclass
class Survey:
    """The columns of a source, in the order in which they were met."""

    columns: dict[str, Column] = field(default_factory=dict)
    rows: dict[Path, int] = field(default_factory=dict)
    """rows of each file, those that cannot be read included"""
    readable: int = 0
    """rows that could be read"""

    def add(
        self,
        file: Path,
        row: Row | None,
        is_untyped: bool,
        is_file: IsFile,
        has_decimal_commas: bool = False,
    ) -> None:
        """Take a row, None for one that cannot be read."""
        self.rows[file] = self.rows.get(file, 0) + 1
        if row is None:
            return
        self.readable += 1
        for name, value in row.items():
            self.column(name).add(value, is_untyped, is_file, has_decimal_commas)

    def add_unread(self, names: Iterable[str]) -> None:
        """Take columns of bytes, whose values are not looked at."""
        for name in names:
            self.column(name).types["bytes"] += 1

    def column(self, name: str) -> Column:
        """Return a column; one that no row has is empty."""
        if name not in self.columns:
            self.columns[name] = Column(name)
        return self.columns[name]

    @property
    def names(self) -> list[str]:
        return list(self.columns)
