"""Which caches the present settings, datasets and runs need."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pal.cache.removal import encoder_name, fingerprint_of
from pal.config import Config
from pal.dataset import DatasetCard, PreparedDataset
from pal.embed.choose import locate_job
from pal.errors import PalError


def is_needed(config: Config, folder: Path, trained_on: Collection[str | None]) -> bool:
    """Say whether a cache is what the settings would make today for a prepared dataset, or one that
    a run was ``trained_on``; an encoder that cannot be looked up here counts as needed."""
    if fingerprint_of(folder) in trained_on:
        return True
    dataset, encoder = folder.parent.name, encoder_name(folder)
    place = config.paths.data / dataset
    if DatasetCard.find(place) is None or encoder not in config.embed.encoders:
        return False
    chosen = config.model_copy(update={"dataset": dataset, "encoder": encoder})
    try:
        job = locate_job(chosen, PreparedDataset.open(place))
    except PalError:
        return True
    return folder.name in {one.name for one in job.folders}
