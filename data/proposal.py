"""From a file that nobody has described to settings for it: which kind of answers it holds, and
which column holds what. Nothing is guessed in silence: what was only likely is said so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pal.config import DatasetConfig
from pal.data.adapter import Adapter
from pal.data.describe import recognised
from pal.data.rows import RowAdapter
from pal.data.sources import adapters
from pal.data.sources.columns import Columns, UnclearColumns, listed, quoted
from pal.errors import ConfigError, DataError
from pal.files import atomic_file
from pal.items import is_unicode
from pal.names import TAKEN, name_from, require_name

EXPORTS = ("polis", "remesh")
"""kinds that are folders of a platform, which say by their files what they are"""
ROWS = {
    "pairs": "a row says which of two items somebody prefers",
    "votes": "a row says whether somebody agrees with something",
    "ratings": "a row gives an item of somebody a number",
}
"""kinds of files of rows, in the order in which they are tried"""
SIDES = ("chosen", "rejected", "first", "second", "item")
TEXTS, IMAGES = "minilm", "clip-h14"
"""encoders that are proposed"""


@dataclass(frozen=True)
class Proposal:
    """What a file is taken for."""

    name: str
    kind: str
    source: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    """the file's columns by our names"""
    notes: tuple[str, ...] = ()
    """what was recognised, a line each"""
    doubts: tuple[str, ...] = ()
    """columns, in our names, that are only likely"""
    encoder: str = TEXTS


def propose(source: Path, name: str | None = None) -> Proposal:
    """Look at a file, or a folder, and say how it would be read.

    Raises DataError where it is not there, cannot be read, or holds nothing that is known.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; give --source your file of answers")
    if source.is_dir():
        for kind in EXPORTS:
            try:
                _adapter(kind, source)
            except DataError:
                continue
            return Proposal(_name(source, name, kind), kind, source)
    refused: list[str] = []
    likely: Proposal | None = None
    found: list[str] = []
    for kind in ROWS:
        adapter = _adapter(kind, source)
        assert isinstance(adapter, RowAdapter)
        found = list(adapter.survey.names)
        if not adapter.survey.readable:
            raise DataError(f"{source} has no row that can be read; give --source another file")
        try:
            return _described(adapter, kind, source, _name(source, name, kind), {})
        except UnclearColumns as unclear:
            mapping = _mapping_of(unclear)
            if mapping and likely is None:
                likely = _likely(kind, source, _name(source, name, kind), mapping)
        except DataError as problem:
            refused.append(str(problem))
    if likely is not None:
        return likely
    if refused:
        raise DataError(refused[0])
    raise DataError(
        f"{source} is neither comparisons (user_id, prompt, chosen, rejected), votes (user_id, "
        f"item, vote) nor ratings (user_id, item, rating): its columns are "
        f"{listed(found)}; name yours with data.NAME.columns in pipeline.yaml"
    )


def write_settings(found: Proposal, file: Path, force: bool = False) -> Path:
    """Write settings as YAML with comments; raises ConfigError where the file is there already."""
    if file.exists() and not force:
        raise ConfigError(
            f"{file} is there already and is not replaced; say --force, or put under its data: "
            f"{found.name}: {_in_one_line(found)}"
        )
    text = as_yaml(found)
    if not is_unicode(text):
        raise ConfigError(
            f"{found.source} has columns whose names are no text; rename them, or convert the file"
        )
    read = yaml.safe_load(text)["data"][found.name]
    assert read.get("columns", {}) == dict(found.columns), "what was written is what is read"
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return file


def as_yaml(found: Proposal) -> str:
    """Return the settings as YAML, with what was recognised as comments."""
    what = ROWS.get(found.kind, f"the export of a {found.kind} conversation")
    lines = [
        f"# Written by pal init, which looked at {_plain(str(found.source))}. Every line may be "
        "changed;",
        "# pal config prints all settings, pal doctor says what is wrong with which row.",
        "",
        f"dataset: {_quoted(found.name)}    # the default of --dataset",
        f"encoder: {found.encoder}    # a small one; pal config lists others under embed",
        "",
        "data:",
        f"  {_quoted(found.name)}:",
        f"    kind: {found.kind}    # {what}",
        f"    source: {_quoted(str(found.source))}",
    ]
    if found.columns:
        lines.append("    columns:    # our name: the name in the file")
        for ours, theirs in found.columns.items():
            doubt = "    # likely, please check" if ours in found.doubts else ""
            lines.append(f"      {ours}: {_quoted(theirs)}{doubt}")
    if found.kind in ("votes", "pairs"):
        ours = "vote" if found.kind == "votes" else "label"
        lines.append(f"    # values: {{{ours}: {{yes: 1, no: 0}}}}    # if answers have own words")
    lines += [f"    # {_plain(note)}" for note in found.notes]
    lines += [
        "    # min_answers: 10    # leave out people with fewer answers",
        "",
        "train:",
        "  head: auto    # many tastes that never lose to one; pal-a and pal-b have a K of yours",
        "  # k: 4",
        "",
        "# adapt: {shots: [0, 5, 20]}    # answers of new people; else as many as half can give",
    ]
    return "\n".join(lines) + "\n"


def _described(
    adapter: RowAdapter, kind: str, source: Path, name: str, doubts: Mapping[str, str]
) -> Proposal:
    """Return what an adapter understands of its files; raises DataError where that is not
    clear."""
    told = tuple(adapter.told())  # first of all, since it raises
    columns = getattr(adapter, "columns", None)
    assert isinstance(columns, Columns)
    taken = {ours: theirs[0] for ours, theirs in columns.taken.items() if theirs}
    held = [adapter.survey.column(taken[side]) for side in SIDES if side in taken]
    notes = [seen.what for seen in recognised(adapter) if seen.subject == "file"]
    return Proposal(
        name,
        kind,
        source,
        taken,
        (*notes, *told[1:]),
        tuple(doubts),
        IMAGES if any(column.is_of_images for column in held) else TEXTS,
    )


def _likely(kind: str, source: Path, name: str, mapping: Mapping[str, str]) -> Proposal | None:
    """Return what a file is with columns that are only likely; None where even that is unclear."""
    adapter = _adapter(kind, source, {"columns": dict(mapping)})
    assert isinstance(adapter, RowAdapter)
    try:
        return _described(adapter, kind, source, name, mapping)
    except DataError:
        return None


def _adapter(kind: str, source: Path, further: Mapping[str, Any] | None = None) -> Adapter:
    made = adapters()[kind]
    settings: DatasetConfig = made.Settings.model_validate(
        {"kind": kind, "source": str(source), **(further or {})}
    )
    found = made(settings, kind)
    if isinstance(found, RowAdapter):
        found.keeps_images = False
    return found


def _mapping_of(unclear: UnclearColumns) -> dict[str, str]:
    """Return the columns that are proposed, by our names; empty where none are."""
    if unclear.proposal is None:
        return {}
    (settings,) = yaml.safe_load(unclear.proposal)["data"].values()
    found: dict[str, str] = settings["columns"]
    return found


def _name(source: Path, given: str | None, kind: str) -> str:
    """Return the dataset's name: the one that is given, or the nearest to the file's."""
    if given is not None:
        return require_name("dataset", given)
    stem = source.name.partition(".")[0] or kind
    name = name_from(stem)
    is_of_other = name in adapters() and name != kind
    return f"my-{name}" if is_of_other or name == TAKEN else name


def _quoted(text: str) -> str:
    plain = quoted(text)
    return plain if plain == text else json.dumps(text, ensure_ascii=False)


def _plain(text: str) -> str:
    """Return a text that ends no comment."""
    return " ".join(text.split())


def _in_one_line(found: Proposal) -> str:
    columns = ", ".join(f"{ours}: {_quoted(own)}" for ours, own in found.columns.items())
    middle = f", columns: {{{columns}}}" if columns else ""
    return f"{{kind: {found.kind}, source: {_quoted(str(found.source))}{middle}}}"
