"""Rows of a file, one by one, read as its sheet says: JSON lines, JSON, CSV, Parquet and Arrow.

A row that cannot be read costs only itself (pal.rows); a file that cannot be read is one sentence.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from pathlib import Path

from pal.cells import rows_of_cells
from pal.data.arrow import batches_of
from pal.data.encodings import Foreign, is_utf8
from pal.data.sheets import Sheet, reading
from pal.rows import BadRow, Row, members_of, row_of, rows_of_array, rows_of_batch, rows_of_lines

BATCH = 1024
LISTS = ("data", "rows", "records", "examples", "instances", "items")
"""names under which an object holds its rows"""
Numbered = tuple[int, Row | BadRow]


def read_rows(file: Path) -> Iterator[Row | BadRow]:
    """Yield the rows of a file of any kind; raises DataError for one that cannot be read."""
    return (row for _, row in numbered_rows(Sheet.of(file)))


def numbered_rows(sheet: Sheet, with_bytes: bool = True) -> Iterator[Numbered]:
    """Yield rows with their numbers, or why one cannot be read.

    A CSV file's rows are counted as a spreadsheet counts them, the header being the first; those
    of all others from 0. Without ``with_bytes`` columns of bytes are left out where that saves
    reading them. Raises DataError for a file that cannot be read.
    """
    with reading(sheet.file):
        if sheet.kind in ("Parquet", "Arrow"):
            yield from enumerate(_columns(sheet, with_bytes))
        elif sheet.kind == "CSV":
            yield from _csv(sheet)
        else:
            yield from enumerate(TEXT[sheet.kind](sheet))


def _json_lines(sheet: Sheet) -> Iterator[Row | BadRow]:
    foreign = Foreign(sheet.file, sheet.settings)
    yield from rows_of_lines(foreign.watched(_lines(sheet)))
    foreign.require_few()


def _lines(sheet: Sheet) -> Iterator[bytes]:
    """Yield the lines of a file as UTF-8."""
    if is_utf8(sheet.encoding):
        with sheet.open() as stream:
            yield from stream
        return
    with sheet.open_text() as text:
        for line in text:
            yield line.encode("utf-8", "surrogatepass")


def _json(sheet: Sheet) -> Iterator[Row | BadRow]:
    """Yield the objects of an array, of the list that an object holds, or of lines."""
    raw = b"".join(_lines(sheet)).removeprefix(codecs.BOM_UTF8)
    start = raw[:64].lstrip()[:1]
    if start == b"[":
        yield from _watched_array(sheet, raw, raw)
        return
    found = _list_within(raw) if start == b"{" else None
    if found is not None:
        yield from _watched_array(sheet, raw, found)
    elif start == b"{" and _is_one_object(raw):
        yield row_of(raw, 1)
    else:
        yield from _json_lines(sheet)


def _watched_array(sheet: Sheet, raw: bytes, array: bytes) -> Iterator[Row | BadRow]:
    foreign = Foreign(sheet.file, sheet.settings)
    if not raw.isascii():
        for _ in foreign.watched(raw.splitlines()):
            pass
    foreign.require_few()
    yield from rows_of_array(array)


def _list_within(raw: bytes) -> bytes | None:
    """Return the text of the list of rows that an object holds, None where it is a row itself, or
    one of many lines."""
    members = _members(raw)
    if members is None:
        return None
    _require_rows(members)
    lists = [name for name in LISTS if members.get(name, b"").startswith(b"[")]
    if len(lists) > 1:
        raise ValueError(
            f"it holds rows under {' and '.join(lists)}; keep one list, as a file of its own"
        )
    return members[lists[0]] if lists else None


def _require_rows(members: dict[str, bytes]) -> None:
    """Raise ValueError for an object that holds a table by columns, as pandas writes it."""
    starts = [value[:1] for value in members.values()]
    by_index = len(starts) > 1 and all(
        start == b"{" and b'"0"' in value[:8]
        for start, value in zip(starts, members.values(), strict=True)
    )
    if by_index or {"columns", "data"} <= members.keys():
        raise ValueError(
            "it holds a table by columns, as pandas writes it unless told otherwise; write it with "
            'to_json(FILE, orient="records", lines=True)'
        )


def _is_one_object(raw: bytes) -> bool:
    return _members(raw) is not None


def _members(raw: bytes) -> dict[str, bytes] | None:
    """Return the members of a text that is one object and nothing else."""
    first, _, rest = raw.strip().partition(b"\n")
    if rest.strip() and _is_object(first):
        return None  # an object a line
    try:
        return members_of(raw)
    except ValueError:
        return None


def _is_object(line: bytes) -> bool:
    return isinstance(row_of(line, 1), dict)


TEXT: dict[str, Callable[[Sheet], Iterator[Row | BadRow]]] = {
    "JSON lines": _json_lines,
    "JSON": _json,
}


def _columns(sheet: Sheet, with_bytes: bool) -> Iterator[Row | BadRow]:
    """Yield the rows of a Parquet or Arrow file."""
    before = 0
    for batch in batches_of(sheet.file, BATCH, () if with_bytes else sheet.images):
        yield from rows_of_batch(batch, before)
        before += batch.num_rows


def _csv(sheet: Sheet) -> Iterator[Numbered]:
    foreign = Foreign(sheet.file, sheet.settings)
    with sheet.open_text() as stream:
        lines = foreign.watched_text(stream)
        yield from rows_of_cells(lines, sheet.delimiter, sheet.header)
    foreign.require_few()
