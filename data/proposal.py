"""From a file that nobody has described to settings for it: which kind of answers it holds, and
which column holds what. Nothing is guessed in silence: what was only likely is said so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pal.config import load
from pal.data.adapter import Adapter
from pal.data.describe import recognised
from pal.data.rows import RowAdapter
from pal.data.sources import adapters
from pal.data.sources.columns import Columns, UnclearColumns
from pal.data.wide import unknown_columns
from pal.errors import ConfigError, DataError
from pal.names import TAKEN, name_from, require_name
from pal.records import JsonObject

EXPORTS = ("polis", "remesh")
"""kinds that are folders of a platform, which say by their files what they are"""
ROWS = {
    "pairs": "a row says which of two items somebody prefers",
    "votes": "a row says whether somebody agrees with something",
    "ratings": "a row gives an item of somebody a number",
}
"""kinds of files of rows, in the order in which they are tried"""
SIDES = ("chosen", "rejected", "first", "second", "item")
OF_DATASET = re.compile(r"data\.([^.=]+)\.[^=]+=")
"""``--set`` of a dataset's setting, and the dataset"""
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
    further: JsonObject = field(default_factory=dict)
    """what else the user said of the dataset, by key"""


def propose(source: Path, name: str | None = None, said: Sequence[str] = ()) -> Proposal:
    """Look at a file, or a folder, and say how it would be read.

    ``said`` are settings of the dataset as ``--set`` takes them, ``data.NAME.key=value``. Raises
    DataError where the source is not there, cannot be read, or holds nothing that is known, and
    ConfigError for settings that nothing has.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist; give --source your file of answers")
    name = _name_of(said, name)
    try:
        return _proposed(source, name, said)
    except DataError as problem:
        told = str(problem)
        if "--set" in told or not re.search(r"data\.[^ .]+\.(encoding|columns|values)", told):
            raise
        raise DataError(f"{told}; pal init takes it as --set data.NAME.key=value") from None


def _name_of(said: Sequence[str], name: str | None) -> str | None:
    """Return the name of the dataset that settings are of; raises ConfigError for others."""
    for one in said:
        of = OF_DATASET.match(one)
        if of is None or of[1] != (name or of[1]):
            raise ConfigError(
                f"--set {one} is no setting of {name or 'the dataset'}; pal init takes "
                f"--set data.{name or 'NAME'}.key=value, and the others stand in pipeline.yaml"
            )
        name = of[1]
    return name


def _proposed(source: Path, name: str | None, said: Sequence[str]) -> Proposal:
    asked = [one.partition("=")[2] for one in said if one.startswith(f"data.{name}.kind=")]
    possible = (*ROWS, *EXPORTS) if source.is_dir() else tuple(ROWS)
    if asked and asked[-1] not in possible:
        raise ConfigError(
            f"data.{name}.kind = {asked[-1]!r} does not read {source}; use {', '.join(possible)}"
        )
    kinds = asked[-1:] or sorted(ROWS, key=lambda kind: kind != source.name.partition(".")[0])
    if source.is_dir():
        for kind in EXPORTS:
            try:
                export = _adapter(kind, source, _name(source, name, kind), said)
            except (DataError, ConfigError):
                continue
            return Proposal(export.dataset, kind, source, further=_further(export))
    refused: list[str] = []
    likely: Proposal | None = None
    unfit: ConfigError | None = None
    reader: RowAdapter | None = None
    for kind in kinds:
        called = _name(source, name, kind)
        try:
            adapter = _adapter(kind, source, called, said)
        except ConfigError as problem:
            unfit = unfit or problem
            continue
        assert isinstance(adapter, RowAdapter)
        reader = adapter
        if not adapter.survey.readable:
            raise DataError(f"{source} has no row that can be read; give --source another file")
        try:
            return _described(adapter, kind, source, {})
        except UnclearColumns as unclear:
            mapping = _mapping_of(unclear)
            if mapping and likely is None:
                likely = _likely(kind, source, called, mapping, said)
        except DataError as problem:
            refused.append(str(problem))
    if likely is not None:
        return likely
    if refused:
        raise DataError(refused[0])
    if reader is not None:
        raise DataError(unknown_columns(reader, source))
    assert unfit is not None, "no kind has these settings"
    raise unfit


def _described(adapter: RowAdapter, kind: str, source: Path, doubts: Mapping[str, str]) -> Proposal:
    """Return what an adapter understands of its files; raises DataError where that is not
    clear."""
    told = tuple(adapter.told())  # first of all, since it raises
    columns = getattr(adapter, "columns", None)
    assert isinstance(columns, Columns)
    taken = {ours: theirs[0] for ours, theirs in columns.taken.items() if theirs}
    held = [adapter.survey.column(taken[side]) for side in SIDES if side in taken]
    notes = [seen.what for seen in recognised(adapter) if seen.subject == "file"]
    return Proposal(
        adapter.dataset,
        kind,
        source,
        taken,
        (*notes, *told[1:]),
        tuple(doubts),
        IMAGES if any(column.is_of_images for column in held) else TEXTS,
        _further(adapter),
    )


def _likely(
    kind: str, source: Path, name: str, mapping: Mapping[str, str], said: Sequence[str]
) -> Proposal | None:
    """Return what a file is with columns that are only likely; None where even that is unclear."""
    try:
        adapter = _adapter(kind, source, name, said, mapping)
        assert isinstance(adapter, RowAdapter)
        return _described(adapter, kind, source, mapping)
    except DataError:
        return None


def _adapter(
    kind: str,
    source: Path,
    name: str,
    said: Sequence[str],
    columns: Mapping[str, str] | None = None,
) -> Adapter:
    """Return what reads a source of a kind; raises ConfigError where settings are not of the
    kind."""
    place = f"data.{name}"
    own = {f"{place}.source": str(source), f"{place}.kind": kind, f"{place}.columns": columns}
    settings = load(Path(os.devnull), said, own).config.data.datasets[name]
    found = adapters()[kind](settings, name)
    if isinstance(found, RowAdapter):
        found.keeps_images = False
    return found


def _further(adapter: Adapter) -> JsonObject:
    """Return what the user said of a dataset beside its columns."""
    known = {"kind", "source", "columns"}
    found: JsonObject = adapter.config.model_dump(mode="json", exclude_unset=True, exclude=known)
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
