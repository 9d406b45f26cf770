"""What was recognised of a source, in words for people: its files and columns, and some rows as the
model will read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from pal.data.adapter import Adapter
from pal.data.rows import RowAdapter
from pal.data.tables import Tables
from pal.items import storable, turns_of_json

MOST_FILES, MOST_COLUMNS = 8, 30
ROWS = 5
LONGEST = 160
"""letters of a text that are shown"""
ANSWERS = {0.5: "neither", 1.0: "the first", 0.0: "the second"}


@dataclass(frozen=True)
class Seen:
    """One thing that was recognised."""

    subject: str
    what: str


def recognised(adapter: Adapter) -> Iterator[Seen]:
    """Yield how each file of a source of rows is read and what its columns hold; nothing of any
    other source. Raises DataError where a file cannot be read."""
    if not isinstance(adapter, RowAdapter):
        return
    survey = adapter.survey
    for file in adapter.files[:MOST_FILES]:
        split = adapter.split_of(file)
        said = f"; by its name the {split} split" if split else ""
        rows = f"{survey.rows.get(file, 0):,} rows"
        yield Seen("file", f"{adapter.name_of(file)}: {adapter.sheet(file)}, {rows}{said}")
    if len(adapter.files) > MOST_FILES:
        yield Seen("file", f"and {len(adapter.files) - MOST_FILES:,} more")
    for name, column in list(survey.columns.items())[:MOST_COLUMNS]:
        counts = {"filled": column.filled, "empty": column.empty}
        counts["that look like images"] = column.looks.total()
        listed = [f"{count:,} {what}" for what, count in counts.items() if count]
        yield Seen("column", storable(", ".join([f"{name}: {column.kind}", *listed])))
    if len(survey.columns) > MOST_COLUMNS:
        yield Seen("column", f"and {len(survey.columns) - MOST_COLUMNS:,} more")


def samples(tables: Tables) -> Iterator[Seen]:
    """Yield some comparisons as the model will read them."""
    pairs = tables.pairs.head(ROWS)
    names = ("prompt_id", "first_id", "second_id")
    wanted = pl.concat([pairs.select(item_id=name) for name in names]).drop_nulls().unique()
    rows = tables.items.join(wanted, on="item_id", how="semi")
    shown = {row["item_id"]: _item(row) for row in rows.iter_rows(named=True)}
    for row in pairs.iter_rows(named=True):
        prompt, first, second = (shown.get(row[name], "none") for name in names)
        answer = ANSWERS.get(row["label"], f"the first with {row['label']:g}")
        yield Seen(
            "row",
            f"{row['user_id']}, {row['split']}: prompt {prompt}; first {first}; second {second}; "
            f"prefers {answer}",
        )


def _item(row: dict[str, Any]) -> str:
    """Return an item for people: its turns, each with who speaks, or where its image is."""
    if row["modality"] == "text":
        context = row.get("context") or "[]"
        turns = [f"{turn.role}: {turn.content}" for turn in turns_of_json(context)]
        said = f"{row['role']}: {row['text']}" if turns else row["text"]
        text = " | ".join([*turns, said])
        return repr(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")
    file = row.get("image_file") or "the row"
    place = f"image in {file}"
    return place if row.get("image_row") is None else f"{place}, {row['image_column']}"
