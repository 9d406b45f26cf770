"""Hashes of large files, remembered so that a rerun is quick."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pal.errors import EncoderError
from pal.files import atomic_file, file_sha256
from pal.records import Entry, Record


class FileDigest(Entry):
    """The SHA-256 of a file, and what the file looked like then."""

    bytes: int
    mtime_ns: int
    sha256: str


class Digests(Record, kind="file-digests", error=EncoderError, remedy="remove it"):
    """What ``DigestMemory`` remembers, by the path of the file."""

    digests: dict[str, FileDigest]


class DigestMemory:
    """SHA-256 of files, remembered by path, size and time stamp.

    The memory is believed, so its file must be our own: never one that came with a model. Without a
    file, hashes are computed each time.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.changed = False
        self.known: dict[str, FileDigest] = {}
        if file is not None:
            with suppress(EncoderError):  # a memory that is absent or damaged is empty
                self.known = dict(Digests.read_file(file).digests)

    def sha256(self, path: Path) -> str:
        stat, key = path.stat(), str(path.resolve())
        found = self.known.get(key)
        if found is None or (found.bytes, found.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
            found = self.known[key] = FileDigest(
                bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=file_sha256(path)
            )
            self.changed = True
        return found.sha256

    def save(self) -> None:
        if self.file is not None and self.changed and os.access(self.file.parent, os.W_OK):
            with atomic_file(self.file) as temporary:
                Digests(digests=self.known).write_to(temporary)
