"""CSV files: what stands between their cells, and their rows as a spreadsheet counts them."""

from __future__ import annotations

import csv
import io
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from pal.rows import BadRow, Row

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")
SAMPLE = 50
"""rows by which a delimiter is recognised"""


def delimiter_of(text: str, is_whole: bool = True) -> str:
    """Return what stands between the cells of a CSV file, given its beginning: what cuts the
    header, and most rows into as many cells as the header has."""
    csv.field_size_limit(sys.maxsize)
    best, found = (0.0, 1), ","
    for one in DELIMITERS:
        try:
            reader = csv.reader(io.StringIO(text, newline=""), delimiter=one)
            widths = [len(cells) for cells in itertools.islice(reader, SAMPLE) if cells]
        except csv.Error:
            continue
        if not is_whole and 1 < len(widths) < SAMPLE:
            widths.pop()  # cut off
        if not widths or widths[0] == 1:
            continue
        fits = sum(width == widths[0] for width in widths) / len(widths)
        best, found = max((best, found), ((fits, widths[0]), one), key=lambda two: two[0])
    return found


def with_point(cell: Any) -> Any:
    """Return a number that is written with a decimal comma, as 1,75, with a point; any other cell
    as it is, 1.234,5 too, of which nobody knows what its marks are."""
    if isinstance(cell, str) and DECIMAL_COMMA.fullmatch(cell):
        return cell.replace(",", ".")
    return cell


def rows_of_cells(
    stream: Iterable[str], delimiter: str, header_at: int = 1
) -> Iterator[tuple[int, Row | BadRow]]:
    """Yield the rows of a CSV file with their numbers as a spreadsheet counts them, lines without
    cells included, which are no rows; ``header_at`` is the number of the first that may be the
    header.

    Raises ValueError where two columns have one name, or a quote is never closed.
    """
    csv.field_size_limit(sys.maxsize)
    header: list[str] | None = None
    lines = _Lines(stream)
    for number, cells in enumerate(csv.reader(lines, delimiter=delimiter), start=1):
        if cells and number >= header_at:
            if header is None:
                header = _header(cells)
            else:
                yield number, _row(header, cells, number)
        lines.end_row()
    lines.require_closed()


def _header(cells: list[str]) -> list[str]:
    twice = sorted({name for name in cells if name and cells.count(name) > 1})
    if twice:
        raise ValueError(f"two columns are called {twice[0]!r}; rename one of them")
    return cells


def _row(header: list[str], cells: list[str], number: int) -> Row | BadRow:
    further = cells[len(header) :]
    if any(further):
        return BadRow(number, f"{len(further)} fields more than the header has")
    cut = cells[: len(header)]
    return {name: cell or None for name, cell in itertools.zip_longest(header, cut)}


class _Lines:
    """Lines of a CSV file, of which the last row's are remembered."""

    def __init__(self, stream: Iterable[str]) -> None:
        self.stream = iter(stream)
        self.row: list[str] = []
        self.before: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.row.append(next(self.stream))
        return self.row[-1]

    def end_row(self) -> None:
        self.before, self.row = self.row, []

    def require_closed(self) -> None:
        """Raise ValueError where a quote that is never closed swallowed the rest of the file."""
        last = self.row or self.before
        try:
            list(csv.reader(last, strict=True))
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                message = (
                    f"a quote is never closed, the one of the row that begins {last[0][:80]!r}"
                )
                raise ValueError(message) from None
