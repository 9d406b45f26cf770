"""Rows of files that others wrote: each one a dictionary, or the reason why it is none.

Whatever stands in a row, it costs only that row: bytes that are no UTF-8, numbers that are too
long, a thousand brackets, a value that has no Python type.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

DEEPEST = 100
"""lists and objects within one another; deeper ones end many programs, ours among them"""
Row = dict[str, Any]
# strings as a whole, so that a bracket within one is none; one that never ends goes to the end
STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
MARK = re.compile(STRING + rb"|[\[\]{},]", re.DOTALL)
"""a bracket, a comma or a whole string of a JSON text; no letter is looked at twice"""
MEMBER = re.compile(rb"\s*(" + STRING + rb")\s*:(.*)", re.DOTALL)
OTHER_FILES = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"PK\x03\x04": "a zip file",
    b"PAR1": "Parquet",
}
"""what a file begins with that is certainly no text"""


NOT_UTF8 = "not UTF-8"


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read."""

    number: int
    """among the rows of its file, from 1; empty lines are no rows"""
    reason: str


def rows_of_lines(lines: Iterable[bytes]) -> Iterator[Row | BadRow]:
    """Yield the objects of JSON lines; empty lines are none."""
    number = 0
    for place, line in enumerate(lines):
        raw = (line if place else line.removeprefix(codecs.BOM_UTF8)).strip()
        if raw:
            number += 1
            yield row_of(raw, number)


def rows_of_array(raw: bytes) -> Iterator[Row | BadRow]:
    """Yield the objects of a JSON array; raises ValueError where it does not end."""
    elements = _elements(raw.removeprefix(codecs.BOM_UTF8))
    yield from (row_of(element, number) for number, element in enumerate(elements, start=1))


def members_of(raw: bytes) -> dict[str, bytes]:
    """Return the texts of an object's values by their keys; raises ValueError where the text is no
    whole object with keys."""
    found = {}
    for element in _elements(raw.removeprefix(codecs.BOM_UTF8).lstrip()):
        member = MEMBER.match(element)
        if member is None:
            raise ValueError("a member of the object has no key")
        found[str(json.loads(member[1]))] = member[2].strip()
    return found


def row_of(raw: bytes, number: int) -> Row | BadRow:
    """Return the object of a JSON text."""
    found = _parsed(raw)
    return BadRow(number, found) if isinstance(found, str) else found


def rows_of_batch(batch: pa.RecordBatch, before: int) -> Iterator[Row | BadRow]:
    """Yield the rows of a batch that comes after ``before`` others of its file."""
    try:
        rows: list[Row] | None = batch.to_pylist()
    except Exception:  # not UTF-8, a date that Python does not know, ...
        rows = None
    if rows is not None:
        yield from rows if batch.num_columns else ({} for _ in range(batch.num_rows))
        return
    for number in range(batch.num_rows):
        yield _row_of_columns(batch.slice(number, 1), before + number + 1)


def other_kind(start: bytes) -> str | None:
    """Say what a file is that should be text, by its first bytes; None for one that may be text."""
    return next((kind for mark, kind in OTHER_FILES.items() if start.startswith(mark)), None)


def _parsed(raw: bytes) -> Row | str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return NOT_UTF8
    if raw.count(b"[") + raw.count(b"{") > DEEPEST and _depth(raw) > DEEPEST:
        return f"lists and objects nested more than {DEEPEST} deep"
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg})"
    except ValueError:  # Python's limit, which keeps a few lines from costing minutes
        return "a whole number of thousands of digits"
    return row if isinstance(row, dict) else f"{type(row).__name__} instead of an object"


def _depth(raw: bytes) -> int:
    depth = deepest = 0
    for mark in MARK.finditer(raw):
        depth += (mark[0] in b"[{") - (mark[0] in b"]}")
        deepest = max(deepest, depth)
    return deepest


def _elements(raw: bytes) -> Iterator[bytes]:
    """Yield the texts of an array's elements, whatever they hold."""
    depth, start = 0, 0
    for mark in MARK.finditer(raw):
        closes = mark[0] in b"]}"
        if depth == 1 and (closes or mark[0] == b","):
            element = raw[start : mark.start()]
            if element.strip() or not closes:
                yield element
            start = mark.end()
        depth += (mark[0] in b"[{") - closes
        if depth == 1 and not start:
            start = mark.end()
        if depth == 0:
            if raw[mark.end() :].strip():
                raise ValueError("something follows the array")
            return
    raise ValueError("the array does not end")


def _row_of_columns(one: pa.RecordBatch, number: int) -> Row | BadRow:
    row = {}
    for name, column in zip(one.schema.names, one.columns, strict=True):
        try:
            row[name] = column.to_pylist()[0]
        except Exception as error:
            return BadRow(number, f"column {name} cannot be read ({type(error).__name__})")
    return row
