"""What to say of a file whose columns nobody can name but its owner; among them wide tables, a row
for each person and a column for each statement."""

from __future__ import annotations

from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path

from pal.data.rows import RowAdapter
from pal.data.sheets import Kind
from pal.data.sources.columns import in_yaml, listed
from pal.data.survey import Survey

MOST_ANSWERS = 11
"""different answers of a statement at most"""
FEWEST_STATEMENTS = 3
MOST_SIDES = 4
"""different answers of a column of labels at most"""
READERS: dict[Kind, str] = {
    "CSV": "read_csv", "JSON lines": "read_ndjson", "JSON": "read_json",
    "Parquet": "read_parquet", "Arrow": "read_ipc",
}  # fmt: skip


def unknown_columns(adapter: RowAdapter, source: Path) -> str:
    """Return a sentence about columns without usual names: what to do with them, by example."""
    names, statements = adapter.survey.names, statements_of(adapter.survey)
    if statements:
        others = [name for name in names if name not in statements]
        return (
            f"{source} looks like a row for each person and a column for each statement "
            f"({listed(statements[:FEWEST_STATEMENTS])}, ...); write a row for each answer, e.g. "
            f"in Python: {_to_rows(adapter, others)}"
        )
    example = _sides_of(adapter.survey) or dict(
        zip(("user_id", "item", "vote"), names, strict=False)
    )
    return (
        f"{source} is neither comparisons (user_id, prompt, chosen, rejected; or first, second, "
        f"label), votes (user_id, item, vote) nor ratings (user_id, item, rating): its columns are "
        f"{listed(names)}; say which is what, e.g. with --set "
        f"'data.{adapter.dataset}.columns={in_yaml(example)}'"
    )


def _sides_of(survey: Survey) -> dict[str, str]:
    """Return an example for comparisons, by our names: the sides are two columns of text that are
    called alike, the label a column of few answers; empty where these are not there."""
    texts = [one for one in survey.columns.values() if one.kind == "text"]
    few = [one.name for one in texts if 1 < len(one.answers) <= MOST_SIDES]
    many = [one.name for one in texts if one.name not in few]
    sides = next((pair for pair in combinations(many, 2) if _are_called_alike(*pair)), None)
    if sides is None or not few:
        return {}
    others = [name for name in survey.names if name not in (*sides, *few)]
    known = dict(zip(("user_id", "prompt"), others, strict=False))
    return {**known, "first": sides[0], "second": sides[1], "label": few[0]}


def _are_called_alike(one: str, other: str) -> bool:
    """Say whether half of the longer of two names stands in the other."""
    shared = SequenceMatcher(None, one, other, autojunk=False).find_longest_match().size
    return 2 * shared >= max(len(one), len(other))


def statements_of(survey: Survey) -> list[str]:
    """Return the columns of a wide table that are a statement each, which most of its columns are
    and which hold the same few answers; none where it is no such table."""
    few = [one for one in survey.columns.values() if 1 < len(one.answers) <= MOST_ANSWERS]
    alike = [
        [one.name for one in few if one.answers.keys() & other.answers.keys()] for other in few
    ]
    most = max(alike, key=len, default=[])
    is_wide = len(most) >= FEWEST_STATEMENTS and 2 * len(most) > len(survey.columns)
    return most if is_wide else []


def _to_rows(adapter: RowAdapter, others: list[str]) -> str:
    """Return a line of Polars that makes a wide table long; ``others`` are no statements, the first
    of them the person."""
    sheet = adapter.sheet(adapter.files[0])
    cells = (
        f", separator={sheet.delimiter!r}" if sheet.is_untyped and sheet.delimiter != "," else ""
    )
    people = f".rename({{{others[0]!r}: 'user_id'}})" if others else ".with_row_index('user_id')"
    kept = ["user_id", *others[1:]]
    return (
        f"polars.{READERS[sheet.kind]}({str(sheet.file)!r}{cells}){people}.unpivot(index={kept}, "
        f"variable_name='item', value_name='vote').write_csv('long.csv')"
    )
