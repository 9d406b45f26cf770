"""What stage one is to do: an encoder, and the caches that it fills."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pal.cache.donors import Known
from pal.cache.plan import ShardTask, default_rows
from pal.cache.records import Manifest, SpecRecord
from pal.cache.spec import Spec, folder_of, make_spec
from pal.cache.writer import CacheWriter
from pal.config import Config, EncoderConfig
from pal.dataset import PreparedDataset
from pal.embed.arithmetic import has_choice
from pal.embed.encoder import EncoderSource, locate
from pal.embed.images import in_source_order
from pal.errors import CacheError
from pal.items import ITEM_COLUMNS
from pal.names import require_name

if TYPE_CHECKING:
    import pyarrow as pa

ORDER_COLUMNS = ["item_id", "image_file", "image_group", "image_row"]


@dataclass
class Job:
    """What there is to embed: one cache per tap, all from the same items in the same order."""

    config: Config
    dataset: PreparedDataset
    source: EncoderSource
    specs: list[Spec]
    folders: list[Path]
    retry_errors: bool = False
    """whether shards with failed items are encoded again"""
    why: str = ""
    """what decided the arithmetic, where the settings leave it open"""
    is_open: bool = False
    """whether no cache, be it only begun, holds anybody to this arithmetic yet"""

    @property
    def dtype(self) -> str:
        """The arithmetic that features are computed in."""
        return self.source.config.compute_dtype

    @property
    def arithmetic(self) -> str:
        """One line about the arithmetic, empty where the settings name it."""
        name = self.source.name
        other = f"; --set embed.{name}.compute_dtype=... takes another"
        hint = other if has_choice(self.source.config) else ""
        return f"{name} computes in {self.dtype}, {self.why}{hint}" if self.why else ""

    @property
    def is_complete(self) -> bool:
        """Whether all caches are, as their manifests say."""
        return all(Manifest.find(folder) is not None for folder in self.folders)

    @property
    def is_begun(self) -> bool:
        """Whether somebody fills one of the caches, or has."""
        return any(SpecRecord.find(folder) is not None for folder in self.folders)

    @property
    def known_rows(self) -> int:
        """How many items other caches of the same encoder have, which are taken over."""
        return min(map(len, self.known), default=0)

    @property
    def layers(self) -> list[int]:
        return list(self.config.embed.layers) or [self.source.config.layer]

    def with_absolute_paths(self) -> Job:
        """Return the same job for a process that works in another folder."""
        source = replace(self.source, folder=self.source.folder and self.source.folder.absolute())
        dataset = replace(self.dataset, folder=self.dataset.folder.absolute())
        folders = [folder.absolute() for folder in self.folders]
        return replace(self, source=source, dataset=dataset, folders=folders)

    @cached_property
    def item_ids(self) -> np.ndarray:
        """Return the ids of all items in the order of the plan, (n,) S16."""
        names = in_source_order(self.dataset.items(ORDER_COLUMNS)).column("item_id")
        return np.array(names.to_pylist(), dtype="S16")

    @cached_property
    def known(self) -> list[Known]:
        """Return what other caches hold of the items, for each layer; empty where nothing is."""
        both = zip(self.folders, self.specs, strict=True)
        found = [Known.of(folder, spec, self.item_ids) for folder, spec in both]
        return found if all(map(len, found)) else []

    def __getstate__(self) -> dict[str, object]:
        """Leave behind what is mapped into this process: another one looks for itself."""
        return {name: value for name, value in vars(self).items() if name != "known"}

    def items(self) -> pa.Table:
        """Return the rows of the items in the order of the plan."""
        return in_source_order(self.dataset.items(list(ITEM_COLUMNS)))

    def open(self) -> tuple[list[CacheWriter], list[ShardTask]]:
        """Open the folders and return their common tasks."""
        writers = [
            CacheWriter(folder, spec, self.retry_errors)
            for folder, spec in zip(self.folders, self.specs, strict=True)
        ]
        ids = self.item_ids
        size = self.config.embed.rows_per_shard or default_rows(len(ids))
        plans = [writer.plan(ids, size) for writer in writers]
        if any(plan != plans[0] for plan in plans):
            raise CacheError(
                f"the caches of layers {self.layers} were begun with different "
                f"embed.rows_per_shard; embed one layer at a time, or remove one of "
                f"{', '.join(str(folder) for folder in self.folders)}"
            )
        return writers, plans[0]


def job_under(encoder: EncoderConfig, config: Config, dataset: PreparedDataset) -> Job:
    """Return what there is to embed under settings of the encoder: its own layer, or all of
    ``embed.layers``."""
    name, folder = require_name("encoder", config.encoder), require_name("dataset", dataset.name)
    config.paths.cache.mkdir(parents=True, exist_ok=True)
    sources, specs = [], []
    for layer in config.embed.layers or (encoder.layer,):
        chosen = encoder.model_copy(update={"layer": layer})
        sources.append(locate(name, chosen, config.paths.cache / ".digests.json"))
        specs.append(make_spec(dataset.name, dataset.items_digest, sources[-1].spec))
    folders = [folder_of(config.paths.cache, folder, name, spec) for spec in specs]
    return Job(config, dataset, sources[0], specs, folders)
