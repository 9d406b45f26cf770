"""What a cache folder says about itself: typed records, sealed on disk.

spec.json            SpecRecord: what the values depend on
shards/part-*.json   Receipt: one finished shard
manifest.json        Manifest: the complete cache
verified.json        Verified: which shards need not be hashed again
"""

from __future__ import annotations

from pathlib import Path

from pal.cache.spec import embed_command
from pal.errors import CacheError
from pal.names import FolderName, InnerPath
from pal.records import Entry, JsonObject, Record


class CacheRecord(Record, kind="", remedy=""):
    """A record within a cache, whose remedy may name the command that fills it."""

    @classmethod
    def remedy_for(cls, folder: Path) -> str:
        return cls.remedy.format(folder=folder, name=folder.name, embed=embed_command(folder))


class SpecRecord(
    CacheRecord,
    kind="cache-spec",
    file="spec.json",
    error=CacheError,
    remedy="run {embed} again, which writes it anew",
):
    """``spec.json``: written first of all, never changed."""

    spec: JsonObject


class Statistics(Entry):
    """Sums over all stored values of a shard."""

    count: int
    sum: float
    sum_of_squares: float
    absmax: float
    """the largest magnitude"""


class Seconds(Entry):
    """Where the time of a shard, or of all shards, went."""

    read: float = 0.0
    """reading and tokenising, in the background"""
    wait: float = 0.0
    """waiting for what was read"""
    encode: float = 0.0
    write: float = 0.0


class ShardEntry(Entry):
    """A shard as the manifest names it."""

    path: InnerPath
    """relative to the cache's folder"""
    rows: int
    bytes: int
    sha256: str


class Receipt(
    CacheRecord,
    kind="receipt",
    error=CacheError,
    remedy="run {embed} again, which encodes this shard again",
):
    """``shards/part-N-of-M.json``: the only sign that a shard is complete."""

    shard: int
    path: InnerPath
    dim: int
    rows: int
    reused: int = 0
    """rows whose features were taken over from another cache of the same encoder"""
    errors: int
    bytes: int
    sha256: str
    row_groups: int
    fingerprint: str
    items: str
    """digest of the ids of the shard's items, those that failed included"""
    statistics: Statistics
    seconds: Seconds
    tokens_real: int
    tokens_padded: int
    truncated: int
    answers_cut: int
    """truncated items with context of which even the text itself was too long"""
    rows_per_s: float
    device: str
    fraction_of_peak: float | None
    """share of the device's matrix rate that encoding reached; null on a CPU"""
    producer: dict[str, str]
    """software and hardware that made the shard"""
    created_utc: str

    @property
    def entry(self) -> ShardEntry:
        """What the manifest says of the shard."""
        return ShardEntry(path=self.path, rows=self.rows, bytes=self.bytes, sha256=self.sha256)


class FeatureStatistics(Entry):
    """How all values of a cache are distributed."""

    mean: float
    std: float
    absmax: float


class Provenance(Entry):
    """How a cache came to be: what the writer is told when the last shard is done."""

    dataset: FolderName
    encoder: FolderName
    revision: str
    untrained: bool
    """random weights: numbers made with them say nothing about the real model"""
    dedup_ratio: float
    """mentions of items by comparisons over unique items"""
    seconds: float
    """from start to end of the call that completed the cache"""


class Manifest(
    CacheRecord,
    kind="cache",
    file="manifest.json",
    error=CacheError,
    remedy="run {embed} again, which writes it anew",
):
    """``manifest.json``: written last of all, so a cache that has one is complete."""

    fingerprint: str
    spec: JsonObject
    dim: int
    dtype: str
    rows: int
    errors: int
    bytes: int
    shards: list[ShardEntry]
    feature: FeatureStatistics
    dataset: FolderName
    encoder: FolderName
    revision: str
    untrained: bool
    dedup_ratio: float
    seconds: float
    tokens_real: int
    tokens_padded: int
    spent: Seconds
    """sums over the shards, whoever encoded them and when"""
    files: dict[InnerPath, str]
    """seal of each further file beside the manifest"""

    @classmethod
    def of(cls, folder: Path) -> Manifest:
        """Read the manifest of a cache; raises CacheError where it is not complete."""
        if not (folder / cls.file).is_file():
            raise CacheError(f"no complete cache in {folder}; run {embed_command(folder)}")
        return cls.read(folder)


class Mark(Entry):
    """What a shard's file looked like when its hash was last seen right."""

    bytes: int
    mtime_ns: int
    sha256: str


class Verified(Record, kind="verified", file="verified.json", error=CacheError, remedy="remove it"):
    """``verified.json``: a memory that saves hashing; without it, all is hashed again."""

    shards: dict[str, Mark]
