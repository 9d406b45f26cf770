"""Finding what a row of the user's own holds: in the column that the settings name, or in the first
one that has a usual name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pal.config import Component
from pal.data.comparisons import Reject
from pal.rows import Row

Usual = Mapping[str, tuple[str, ...]]
"""what columns are called where nobody says, by our name"""


def values_of(
    row: Row, place: str, columns: Component, usual: Usual, needed: tuple[str, ...]
) -> dict[str, Any] | Reject:
    """Return a row's values by our names, None where no column has one.

    A row without a column that is ``needed`` is a reject. ``columns`` has a field for each name:
    the column that was named for it, or None.
    """
    found: dict[str, Any] = {}
    for name, names in usual.items():
        given = getattr(columns, name)
        wanted = names if given is None else (given,)
        column = next((one for one in wanted if one in row), None)
        if column is None and name in needed:
            listed = ", ".join(map(str, row))[:200]
            message = f"has no {' or '.join(wanted)} among its columns {listed}"
            return Reject(place, "missing-column", message)
        found[name] = None if column is None else row[column]
    return found
