"""Whether shards still have the bytes that were written, without hashing them at every start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pal.cache.records import Mark, ShardEntry, Verified
from pal.cache.spec import embed_command
from pal.errors import CacheError
from pal.files import file_sha256


def marks_of(folder: Path) -> dict[str, Mark]:
    """Return what is known of a cache's shards; nothing where the memory is absent or damaged."""
    found = Verified.find(folder)
    return {} if found is None else found.shards


def seen_undamaged(folder: Path, entry: ShardEntry, marks: Mapping[str, Mark]) -> Mark | None:
    """Return what a shard looks like if it has the bytes that its entry states, else None.

    The hash is computed only if size and time stamp are not those of the last time that it was seen
    right.
    """
    path = folder / entry.path
    try:
        stat = path.stat()
        now = Mark(bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=entry.sha256)
        if stat.st_size != entry.bytes:
            return None
        return now if marks.get(entry.path) == now or file_sha256(path) == entry.sha256 else None
    except FileNotFoundError:
        return None


def require_undamaged(
    folder: Path, entries: Sequence[ShardEntry], *, trusting: bool
) -> dict[str, Mark]:
    """Return the mark of every shard; raises CacheError that names the damaged ones.

    ``trusting``: believe the marks that are there.
    """
    before = marks_of(folder) if trusting else {}
    marks = {entry.path: seen_undamaged(folder, entry, before) for entry in entries}
    damaged = [path for path, mark in marks.items() if mark is None]
    if damaged:
        # without its marks, the next reader and pal embed look at the bytes again
        if os.access(folder, os.W_OK):
            (folder / Verified.file).unlink(missing_ok=True)
        raise CacheError(
            f"{folder}: {', '.join(damaged)} is damaged or missing; run "
            f"{embed_command(folder)} again to re-encode it"
        )
    return {path: mark for path, mark in marks.items() if mark is not None}


def record_verified(folder: Path, marks: dict[str, Mark]) -> None:
    """Remember that these shards have just been seen undamaged, where the disk allows it."""
    if marks != marks_of(folder) and os.access(folder, os.W_OK):
        with suppress(OSError):  # a full disk keeps nobody from reading
            Verified(shards=marks).write(folder)
