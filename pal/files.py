"""Files that are either whole or absent: every artefact goes through here."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INFLIGHT = ".inflight-"


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, plain UTF-8; the input of
    digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any, size: int = 32) -> str:
    """Return BLAKE2b over the canonical JSON of a value, as ``2 * size`` hex digits."""
    return hashlib.blake2b(canonical_json(value).encode("utf-8"), digest_size=size).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in one stream."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_directory(path: Path) -> None:
    """Make renames inside a directory durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def inflight(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` and remove whatever is left there afterwards.

    The caller writes to it and renames it; same folder, hence same file system, hence atomic.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{INFLIGHT}{uuid.uuid4().hex}{target.suffix}"
    try:
        yield temporary
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it replaces ``target``, on an error nothing changes."""
    with inflight(target) as temporary:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
        sync_directory(target.parent)


def write_json(target: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    with atomic_file(target) as temporary:
        temporary.write_text(
            json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory; on success it takes the place of ``target`` as a whole."""
    with inflight(target) as temporary:
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with open(path, "rb") as stream:
                    os.fsync(stream.fileno())
        with inflight(target) as previous:
            if target.exists():
                os.replace(target, previous)
            os.replace(temporary, target)
            sync_directory(target.parent)
