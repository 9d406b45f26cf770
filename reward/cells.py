"""CSV files of rows that are scored; an empty cell is nothing."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pal.cells import delimiter_of, rows_of_cells
from pal.errors import RewardError
from pal.reward.plain import line_of
from pal.rows import BadRow, Row

BEGINNING = 1 << 16
"""characters by which it is found what stands between the cells of a CSV file"""
DELIMITERS = {".csv": ",", ".tsv": "\t"}
"""between the cells that are written, by the ending"""


def is_cells(path: Path) -> bool:
    return path.suffix in DELIMITERS


def read_cells(path: Path) -> Iterator[Row | BadRow]:
    """Yield the rows of a CSV file; raises RewardError where it is none."""
    return (row for _, row in _numbered(path))


def number_in_file(path: Path, count: int) -> int:
    """Return the number by which people find the row that is the ``count``-th of a file, from 1: a
    CSV file's as a spreadsheet has it, the header being the first."""
    if not is_cells(path):
        return count
    return next(number for number, _ in islice(_numbered(path), count - 1, None))


def _numbered(path: Path) -> Iterator[tuple[int, Row | BadRow]]:
    try:
        # what is no UTF-8 becomes halves of surrogate pairs, which cost the row alone
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            delimiter = delimiter_of(stream.read(BEGINNING), is_whole=False)
            stream.seek(0)
            yield from rows_of_cells(stream, delimiter)
    except (ValueError, csv.Error) as error:
        raise RewardError(f"{path} is no CSV file that can be read ({error}); correct it") from None


def write_cells(path: Path, rows: Callable[[], Iterable[Row]]) -> int:
    """Write rows as CSV and return how many; ``rows`` begins anew each time.

    The columns are those that any row has, in the order in which they are met; what is no text or
    number is written as JSON, and null as an empty cell.
    """
    names = list(dict.fromkeys(name for row in rows() for name in row))
    count = 0
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as out:
        writer = csv.writer(out, delimiter=DELIMITERS[path.suffix])
        writer.writerow(names)
        for count, row in enumerate(rows(), start=1):  # noqa: B007, counted for after the loop
            writer.writerow([_cell(row.get(name)) for name in names])
    return count


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, str | int | float) and not isinstance(value, bool)):
        return value
    return line_of(value).rstrip("\n")
