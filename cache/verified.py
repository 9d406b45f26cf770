"""Whether shards still have the bytes that were written, without hashing them at every start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pal.cache.records import Mark, ShardEntry, Verified
from pal.errors import CacheError
from pal.files import file_sha256


def marks_of(folder: Path) -> dict[str, Mark]:
    """Return what is known of a cache's shards; nothing where the memory is absent or damaged."""
    found = Verified.find(folder)
    return {} if found is None else found.shards


def is_undamaged(folder: Path, entry: ShardEntry, marks: Mapping[str, Mark]) -> bool:
    """Say whether a shard has the bytes that its entry states.

    The hash is computed only if size and time stamp are not those of the last time that it was seen
    right.
    """
    path = folder / entry.path
    try:
        stat = path.stat()
    except OSError:
        return False
    if stat.st_size != entry.bytes:
        return False
    now = Mark(bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=entry.sha256)
    return marks.get(entry.path) == now or file_sha256(path) == entry.sha256


def require_undamaged(folder: Path, entries: Sequence[ShardEntry], *, trusting: bool) -> None:
    """Raise CacheError that names every damaged shard; ``trusting``: believe the marks."""
    marks = marks_of(folder) if trusting else {}
    damaged = [entry.path for entry in entries if not is_undamaged(folder, entry, marks)]
    if damaged:
        # without its marks, the next reader and pal embed look at the bytes again
        if os.access(folder, os.W_OK):
            (folder / Verified.file).unlink(missing_ok=True)
        raise CacheError(
            f"{folder}: {', '.join(damaged)} is damaged or missing; run pal embed again to "
            f"re-encode it"
        )


def record_verified(folder: Path, entries: Sequence[ShardEntry]) -> None:
    """Remember that these shards have just been seen undamaged; not in a read-only cache."""
    marks = {}
    for entry in entries:
        stat = (folder / entry.path).stat()
        marks[entry.path] = Mark(bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=entry.sha256)
    if marks != marks_of(folder) and os.access(folder, os.W_OK):
        Verified(shards=marks).write(folder)
