"""What a page consists of, before it is HTML: blocks of plain text, tables and pictures.

Texts come from strangers. They are plain text here and become HTML in one place,
``pal.report.render``, which escapes all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Tone = Literal["plain", "warning", "good", "bad"]


@dataclass(frozen=True)
class Thumbnail:
    """A small image in a cell of a table."""

    alt: str
    """what it is, in words"""
    jpeg: str
    """the file as base64"""


Cell = str | Thumbnail
Rows = Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Bullets:
    """Short sentences one below the other."""

    kind: ClassVar[str] = "bullets"
    lines: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Commands, one a line."""

    kind: ClassVar[str] = "code"
    lines: Sequence[str]


@dataclass(frozen=True)
class Facts:
    """Names and what stands behind each."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table; ``numbers`` are the columns that are set to the right. A caption that says what the
    heading above does is for those alone who do not see the page."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Rows
    numbers: frozenset[int] = frozenset()
    is_named_above: bool = False

    @classmethod
    def of(cls, caption: str, header: Sequence[str], rows: Rows) -> Table:
        """Return a table whose columns of numbers are found by themselves."""
        columns = range(1, len(header))  # the first one names the row
        numbers = [c for c in columns if rows and all(_is_number(row[c]) for row in rows)]
        return cls(caption, header, rows, frozenset(numbers))


@dataclass(frozen=True)
class Picture:
    """A drawing as SVG of ours, or a PNG file as base64; ``table`` has its numbers, for whoever
    cannot see it or wants to know them."""

    kind: ClassVar[str] = "picture"
    caption: str
    alt: str
    """what it shows, in words"""
    svg: str = ""
    """markup that ``pal.report.drawing`` made, in which every text is escaped already"""
    png: str = ""
    table: Table | None = None


@dataclass(frozen=True)
class Beside:
    """Drawings or tables side by side where there is room."""

    kind: ClassVar[str] = "beside"
    each: Sequence[Picture | Table]


Block = Text | Bullets | Code | Facts | Table | Picture | Beside


@dataclass(frozen=True)
class Source:
    """A file from which numbers of a page come, and the command that makes it."""

    what: str
    file: str
    digest: str
    command: str


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading; ``level`` 3 is a part of the one before it."""

    title: str
    blocks: Sequence[Block]
    level: Literal[2, 3] = 2


@dataclass
class Page:
    """A whole page."""

    title: str
    lead: str
    sections: list[Section] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)

    def add(self, title: str, blocks: Sequence[Block], level: Literal[2, 3] = 2) -> None:
        """Add a section, unless there is nothing in it."""
        if blocks:
            self.sections.append(Section(title, blocks, level))

    def cite(self, *sources: Source) -> None:
        """Name where numbers come from, each file once."""
        self.sources += [one for one in sources if one not in self.sources]


def _is_number(cell: Cell) -> bool:
    """Say whether a cell begins like a number, or is empty."""
    if not isinstance(cell, str):
        return False
    plain = cell.lstrip("+-−< ").replace(",", "")
    return cell in ("", "-", "–") or plain[:1].isdigit()
