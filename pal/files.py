"""Files that are either whole or absent, on whatever file system, whoever is killed meanwhile."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

INFLIGHT, PARKED = ".inflight-", ".parked-"
KEEP, EXCHANGE = 1, 2
"""flags of Linux's renameat2: never replace; let two names change places"""
NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""what a system or file system says that cannot do it"""


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, plain UTF-8; for digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any, size: int = 32) -> str:
    """Return BLAKE2b over the canonical JSON of a value, as ``2 * size`` hex digits."""
    return hashlib.blake2b(canonical_json(value).encode("utf-8"), digest_size=size).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in one stream."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Make a file's bytes durable."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


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

    The caller writes to it and renames it; same folder, hence same file system, hence atomic. Its
    name tells machine and process, so that the next command removes what a killed one left.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target.parent, os.getpid())
    name = f"{INFLIGHT}{_machine()}-{os.getpid()}-{uuid.uuid4().hex}{target.suffix}"
    temporary = target.parent / name
    try:
        yield temporary
    finally:
        _remove(temporary)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it replaces ``target``, on an error nothing changes."""
    with inflight(target) as temporary:
        yield temporary
        sync_file(temporary)
        os.replace(temporary, target)
        sync_directory(target.parent)


def write_json(target: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    with atomic_file(target) as temporary:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory; on success it takes the place of ``target`` as a whole.

    Where the system can, both change places at once. Where it cannot, the old one is parked under a
    known name in between, from which ``recover`` brings it back after a kill.
    """
    with inflight(target) as temporary:
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                sync_file(path)
        recover(target)
        if not target.exists():
            os.replace(temporary, target)
        elif not _rename(temporary, target, EXCHANGE):
            parked = _parked(target)
            os.replace(target, parked)
            os.replace(temporary, target)
            _remove(parked)
        sync_directory(target.parent)


def recover(target: Path) -> None:
    """Bring back a directory whose replacement was killed between its two renames."""
    parked = _parked(target)
    if parked.exists():
        if target.exists():
            _remove(parked)
        else:
            os.replace(parked, target)


def publish(temporary: Path, target: Path) -> bool:
    """Give a finished file its name unless there is one already; says whether it did.

    Of several processes exactly one succeeds, on file systems without hard links too.
    """
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NOT_HERE and error.errno != errno.EMLINK:
            raise
        with suppress(FileExistsError):
            if _rename(temporary, target, KEEP):
                sync_directory(target.parent)
                return True
            handle = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY)  # claims the name
            os.close(handle)
            os.replace(temporary, target)
            sync_directory(target.parent)
            return True
        return False
    sync_directory(target.parent)
    return True


def _rename(one: Path, other: Path, flag: int) -> bool:
    """Rename with a flag of renameat2; False where the system has no such thing."""
    rename = _renameat2()
    if rename is None:
        return False
    here = -100  # AT_FDCWD
    if rename(here, os.fsencode(one), here, os.fsencode(other), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in NOT_HERE:
        return False
    if code == errno.EEXIST:
        raise FileExistsError(code, os.strerror(code), str(other))
    raise OSError(code, os.strerror(code), str(one))


@cache
def _renameat2() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None


def _parked(target: Path) -> Path:
    return target.parent / f"{PARKED}{target.name}"


@cache
def _machine() -> str:
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()


@cache
def _remove_leftovers(folder: Path, process: int) -> None:
    """Remove what killed processes of this machine left in a folder; once per process."""
    for path in folder.glob(f"{INFLIGHT}*"):
        found = re.match(rf"{re.escape(INFLIGHT)}([0-9a-f]+)-([0-9]+)-", path.name)
        if found and found.group(1) == _machine() and not is_alive(int(found.group(2))):
            with suppress(OSError):
                _remove(path)


def is_alive(process: int) -> bool:
    """Return whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
