"""Opening what a head is trained and evaluated on: a prepared dataset, and a cache of features."""

from __future__ import annotations

from pathlib import Path

from pal.cache.reader import FeatureStore
from pal.cache.records import Manifest
from pal.config import Config, PathsConfig
from pal.dataset import PreparedDataset
from pal.embed.choose import locate_cache
from pal.errors import CacheError, DataError
from pal.train.build import settled
from pal.train.run_record import RunRecord


def open_dataset(config: Config) -> PreparedDataset:
    """Open the prepared dataset; raises DataError unless it was prepared as the settings say.

    Settings without a source mean the one that was prepared last.
    """
    chosen = config.dataset_config()
    settings = chosen.model_dump(mode="json", exclude={"source"})
    dataset = PreparedDataset.open(config.paths.data / config.dataset)
    before = dataset.card.source
    if chosen.source is not None and not is_same_source(chosen.source, before):
        raise DataError(
            f"{dataset.folder} was prepared from {before}, not from data.{config.dataset}.source = "
            f"{chosen.source}; run: pal embed --dataset {config.dataset} --source {chosen.source}"
        )
    prepared = dataset.card.settings
    changed = [key for key in settings if settings[key] != prepared.get(key)]
    if changed:
        listed = ", ".join(f"data.{config.dataset}.{key} = {settings[key]!r}" for key in changed)
        raise DataError(
            f"{dataset.folder} was prepared with other settings than {listed}; "
            f"run pal embed --dataset {config.dataset} with the same settings first"
        )
    return dataset


def is_same_source(one: str, other: str | None) -> bool:
    """Say whether two sources are one place: the same path, or the same text where it is none."""
    return one == other or (other is not None and Path(one).resolve() == Path(other).resolve())


def open_inputs(config: Config) -> tuple[PreparedDataset, FeatureStore]:
    """Open the dataset in the view of the head, and the cache that the settings ask for.

    Raises DataError or CacheError, each naming the command that makes what is missing.
    """
    dataset = open_dataset(config)
    view = settled(config.train, dataset).view
    assert view is not None, "it is filled in"
    _, spec, folder = locate_cache(config, dataset)
    if not (folder / Manifest.file).is_file():
        raise CacheError(
            f"no complete cache in {folder}; run: pal embed --dataset {config.dataset} --encoder "
            f"{config.encoder}"
        )
    return dataset.viewed(view), FeatureStore.open(folder, spec)


def inputs_of_run(paths: PathsConfig, run: RunRecord) -> tuple[PreparedDataset, FeatureStore]:
    """Open the dataset and the very cache that a run was trained on, whatever the settings are."""
    dataset = PreparedDataset.open(paths.data / run.dataset).viewed(run.view)
    folder = paths.cache / run.dataset / f"{run.encoder}-{run.cache_fingerprint[:12]}"
    return dataset, FeatureStore.open(folder)
