"""From a source to a prepared dataset: items, pairs, rejects and a card, all or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from pal.config import DatasetConfig
from pal.data.adapter import Adapter
from pal.data.counts import counts_of, digest_of, split_digest
from pal.data.parts import Progress, silent
from pal.data.splits import require_splits
from pal.data.tables import Tables, tables_of, write_tables
from pal.dataset import TRUTH, WITH_PROMPT, DatasetCard, Digests, PreparedDataset
from pal.errors import DataError
from pal.files import digest, file_sha256, locked
from pal.names import require_name
from pal.records import Damaged, JsonObject, read_sealed

LARGEST_CHECKED = 1 << 28
"""bytes of a table up to which its seal is checked before a dataset is reused; the seals of larger
ones are checked when they are read"""
SPLIT_RULES: JsonObject = {"card_version": 3}
"""what a split digest begins with; to be changed when the same rows would be split differently"""
DIVIDING_RULES: JsonObject = {"divided": 2}
"""the same for sources that splits.py divides"""


def prepare(
    name: str,
    config: DatasetConfig,
    folder: Path,
    build: Callable[[Any], Adapter],
    progress: Progress = silent,
) -> PreparedDataset:
    """Prepare a dataset in ``folder`` unless it is there already, made from the same inputs and
    settings.

    ``config.source`` None means the source that ``folder`` was prepared from. Raises DataError; an
    existing folder is replaced only by a complete new one. Images outside the source's files are no
    inputs: a changed one is seen only when something else changes too, a missing one is looked for
    again. ``progress`` is called after each part of the source.
    """
    require_name("dataset", name)
    DatasetCard.require_replaceable(folder)
    settings: JsonObject = config.model_dump(mode="json", exclude={"source"})
    present = DatasetCard.find(folder)
    same = None
    if present is not None and (present.name, present.settings) == (name, settings):
        same = present if is_sound(folder, present) else None
    if config.source is None:
        if same is not None:
            return PreparedDataset(folder, same)
        if present is not None:
            config = config.model_copy(update={"source": present.source})
        elif config.needs_source:
            require_known_source(name, folder)
    adapter = build(config)
    inputs = adapter.inputs()
    # images that were missing may be there by now
    if same is not None and same.inputs == inputs and "no-image" not in same.rejects:
        if same.source != config.source:  # the same rows, now from another place
            same = same.model_copy(update={"source": config.source})
            same.write(folder)
        if any(_unfinished(folder)):
            with suppress(Timeout), locked(folder, wait=False):  # else somebody is at them
                _remove_unfinished(folder)
        return PreparedDataset(folder, same)

    with locked(folder):
        if DatasetCard.find(folder) == present:
            return _prepare(name, config, folder, adapter, inputs, progress)
    # somebody else has just prepared it
    return prepare(name, config, folder, build, progress)


def _prepare(
    name: str,
    config: DatasetConfig,
    folder: Path,
    adapter: Adapter,
    inputs: dict[str, str],
    progress: Progress,
) -> PreparedDataset:
    """Make a dataset anew, nobody else being at it."""
    settings: JsonObject = config.model_dump(mode="json", exclude={"source"})
    key = digest([DatasetCard.version, settings, inputs], 8)
    unfinished = folder.parent / f".{name}.unfinished-{key}"
    tables = tables_of(adapter, unfinished, progress)
    try:
        require_splits(name, tables.pairs, adapter.origin, tables.reject_reasons)
    except DataError as problem:
        shows = f"; pal doctor --dataset {name} shows the rows" if tables.reject_reasons else ""
        raise DataError(f"{problem}{shows}") from None
    with DatasetCard.replace(folder) as temporary:
        files = write_tables(temporary, tables, adapter.truth())
        card = _card(name, config, adapter, inputs, tables, files)
        card.write(temporary)
    _remove_unfinished(folder)
    return PreparedDataset(folder, card)


def _unfinished(folder: Path) -> Iterator[Path]:
    """Yield the folders of parts that are kept until a dataset is complete."""
    return folder.parent.glob(f".{folder.name}.unfinished-*")


def _remove_unfinished(folder: Path) -> None:
    """Remove kept parts; whoever calls holds the lock of the folder."""
    for old in _unfinished(folder):
        shutil.rmtree(old, ignore_errors=True)


def is_sound(folder: Path, card: DatasetCard) -> bool:
    """Say whether the files that a card names are there and not damaged, as far as that is cheap to
    know."""
    for name, seal in card.files.items():
        path = folder / name
        try:
            if path.stat().st_size > LARGEST_CHECKED:
                continue
            if name == TRUTH:
                if file_sha256(path) != seal:
                    return False
            else:
                read_sealed(path, seal)
        except (OSError, Damaged):
            return False
    return True


def require_known_source(name: str, folder: Path) -> None:
    """Raise DataError if ``folder`` holds a dataset whose damaged card no longer tells its
    source."""
    if DatasetCard.is_ours(folder):
        path = folder / DatasetCard.file
        try:
            DatasetCard.parse(read_sealed(path))
        except Damaged as problem:
            raise DataError(
                f"{path} {problem}, so where its rows came from is not known; "
                f"run: pal prepare --dataset {name} --source PATH or hf:REPO@REV"
            ) from None


def _card(
    name: str,
    config: DatasetConfig,
    adapter: Adapter,
    inputs: dict[str, str],
    tables: Tables,
    files: dict[str, str],
) -> DatasetCard:
    pairs = tables.pairs
    rows = pairs.select("pair_id", "user_id", "split", "population").iter_rows()
    rules = {**SPLIT_RULES, **(DIVIDING_RULES if tables.splitting.divided else {})}
    has_both_views = set(WITH_PROMPT.values()) <= set(pairs.columns)
    return DatasetCard(
        name=name,
        source=config.source,
        revision=adapter.origin,
        licence=adapter.licence,
        settings=config.model_dump(mode="json", exclude={"source"}),
        inputs=inputs,
        item_text=adapter.item_text,
        views=("response", "prompt+response") if has_both_views else ("response",),
        counts=counts_of(tables.items, pairs),
        splitting=tables.splitting,
        rejects=tables.reject_reasons,
        digests=Digests(
            items=digest_of(tables.items.select("item_id")),
            pairs=digest_of(pairs.select("pair_id", "label", "split", "population")),
        ),
        split_digest=split_digest(
            {**rules, "dataset": name, "salt": config.salt},
            ((pair.hex(), *rest) for pair, *rest in rows),
        ),
        files=files,
    )
