"""Hashes of large files, and what is known of models, remembered so that a rerun is quick."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pydantic import Field

from pal.errors import EncoderError
from pal.files import atomic_file, file_sha256
from pal.records import Entry, Record


class FileDigest(Entry):
    """The SHA-256 of a file, and what the file looked like then."""

    bytes: int
    mtime_ns: int
    sha256: str


class ModelFacts(Entry):
    """What transformers' own code of a model tells (pal.embed.architecture)."""

    sdpa: bool | None
    """whether it supports that attention; null of code that the model brings itself"""
    positions: int | None
    """tokens of the longest text; null without an end"""
    is_half: bool
    """whether it has an encoder and a decoder, of which the encoder is read"""


class Fidelity(Entry):
    """What becomes of a model's features in ``mixed`` (pal.embed.fidelity)."""

    cosine: float | None = None
    """the smallest with the same feature in float32; null where it cannot compute at all"""
    reason: str
    """why it is computed in float32; empty where it need not be"""


class Digests(Record, kind="file-digests", error=EncoderError, remedy="remove it"):
    """What ``DigestMemory`` remembers: hashes by the path of the file, models by their settings."""

    digests: dict[str, FileDigest]
    facts: dict[str, ModelFacts] = Field(default_factory=dict)
    fidelities: dict[str, Fidelity] = Field(default_factory=dict)


class DigestMemory:
    """SHA-256 of files, remembered by path, size and time stamp.

    The memory is believed, so its file must be our own: never one that came with a model. Without a
    file, hashes are computed each time.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.changed = False
        self.known: dict[str, FileDigest] = {}
        self.facts: dict[str, ModelFacts] = {}
        self.fidelities: dict[str, Fidelity] = {}
        if file is not None:
            with suppress(EncoderError):  # a memory that is absent or damaged is empty
                found = Digests.read_file(file)
                self.known, self.facts = dict(found.digests), dict(found.facts)
                self.fidelities = dict(found.fidelities)

    def sha256(self, path: Path) -> str:
        stat, key = path.stat(), str(path.resolve())
        found = self.known.get(key)
        if found is None or (found.bytes, found.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            found = self.known[key] = FileDigest(
                bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=file_sha256(path)
            )
            self.changed = True
        return found.sha256

    def remember(self, key: str, facts: ModelFacts) -> None:
        """Keep what is known of a model."""
        self.facts[key] = facts
        self.changed = True

    def remember_fidelity(self, key: str, fidelity: Fidelity) -> None:
        """Keep what was found of a model in another arithmetic."""
        self.fidelities[key] = fidelity
        self.changed = True

    def save(self) -> None:
        if self.file is not None and self.changed and os.access(self.file.parent, os.W_OK):
            with atomic_file(self.file) as temporary:
                found = Digests(digests=self.known, facts=self.facts, fidelities=self.fidelities)
                found.write_to(temporary)
