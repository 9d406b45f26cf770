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
import stat
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from pal.errors import PalWarning, system_number

INFLIGHT, PARKED = ".inflight-", ".parked-"
EXCHANGE = 2
"""flag of Linux's renameat2: let two names change places"""
NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""what a system or file system says that cannot do it"""
NO_LOCKS = {*NOT_HERE, errno.ENOLCK}
TAKEN = {errno.EEXIST, errno.ENOTEMPTY}
"""what a system says of a name that a directory has already"""
MOST_TRIES = 100
"""times that other processes may take a directory's name just before us"""
PATIENT_SECONDS = 3
"""time that a lock may be waited for without a word"""
FORGOTTEN_SECONDS = 7 * 86_400
"""age at which a leftover is removed wherever its process was"""


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
    name tells machine and process, so that the next command removes what a killed one left. An
    error of the system that names no file is given the name of ``target``.
    """
    temporary = target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        temporary = target.parent / _inflight_name(target.suffix)
        yield temporary
    except Exception as error:
        number = system_number(error)
        if number is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(number, os.strerror(number), str(target)) from error
    finally:
        if temporary != target:
            _remove(temporary)


def _inflight_name(suffix: str) -> str:
    return f"{INFLIGHT}{_machine()}-{os.getpid()}-{uuid.uuid4().hex}{suffix}"


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
        _take_place(temporary, target)
        sync_directory(target.parent)


def _take_place(new: Path, target: Path) -> None:
    """Give a directory the name of another, which is gone then or has the new one's name.

    Other processes may do the same, or recover, at any moment: whoever comes last wins.
    """
    for _ in range(MOST_TRIES):
        recover(target)
        if _is_renamed(new, target):
            return
        with suppress(FileNotFoundError):  # moved by another process meanwhile
            if _exchange(new, target):
                return
            parked = _parked(target)
            if _is_renamed(target, parked) and _is_renamed(new, target):
                discard(parked)
                return
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(target))


def _is_renamed(old: Path, new: Path) -> bool:
    """Rename a directory, unless another that is not empty has the name."""
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno in TAKEN:
            return False
        raise
    return True


def recover(target: Path) -> None:
    """Bring back a directory whose replacement was killed between its two renames.

    Readers call it, so that what killed processes left does not wait for the next one that writes.
    """
    remove_leftovers(target.parent)
    parked = _parked(target)
    if parked.exists():
        if target.exists():
            discard(parked)
        else:
            with suppress(FileNotFoundError):  # another process was quicker
                _is_renamed(parked, target)


def discard(path: Path) -> None:
    """Remove a directory, which nobody sees in half; unless another process is quicker."""
    gone = path.parent / _inflight_name(path.suffix)
    with suppress(FileNotFoundError):
        os.rename(path, gone)
        _remove(gone)


def bytes_of(folder: Path) -> int:
    """Return how many bytes the files of a folder take; links are not followed."""
    found = (path.lstat() for path in folder.rglob("*"))
    return sum(one.st_size for one in found if stat.S_ISREG(one.st_mode))


@contextmanager
def locked(target: Path, *, wait: bool = True) -> Iterator[None]:
    """Keep out everybody else who asks for the same file or folder, by a lock beside it.

    Raises filelock's Timeout if it is taken and nobody is to wait. A killed process holds no lock,
    and the lock's file is removed at the end, while it is still held.
    """
    path = target.parent / f".{target.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()  # the lock takes some of its own errors for somebody who holds it
    lock: BaseFileLock = FileLock(path)
    try:
        _acquire(lock, target, wait)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        lock = SoftFileLock(f"{path}.held")
        _acquire(lock, target, wait)
    try:
        yield
    finally:
        with suppress(OSError):  # not on Windows
            path.unlink(missing_ok=True)
        lock.release()


def _acquire(lock: BaseFileLock, target: Path, wait: bool) -> None:
    try:
        lock.acquire(timeout=PATIENT_SECONDS if wait else 0)
    except Timeout:
        if not wait:
            raise
        warnings.warn(f"waiting for another pal that writes {target}", PalWarning, stacklevel=4)
        lock.acquire()


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places; False where the system has no such thing."""
    rename = _renameat2()
    if rename is None:
        return False
    here = -100  # AT_FDCWD
    if rename(here, os.fsencode(one), here, os.fsencode(other), EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in NOT_HERE:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


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
    """Return what tells machines and containers apart: equal process numbers mean nothing else."""
    try:
        processes = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        processes = 0
    told = f"{socket.gethostname()} {processes}"
    return hashlib.blake2b(told.encode(), digest_size=4).hexdigest()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of this machine left in a folder."""
    _remove_leftovers(folder.absolute(), os.getpid())


@cache
def _remove_leftovers(folder: Path, process: int) -> None:
    """Remove what killed processes of this machine left in a folder; once per process.

    What those of other machines left goes when nobody has touched it for a week.
    """
    for path in folder.glob(f"{INFLIGHT}*"):
        found = re.match(rf"{re.escape(INFLIGHT)}([0-9a-f]+)-([0-9]+)-", path.name)
        is_dead = found and found.group(1) == _machine() and not is_alive(int(found.group(2)))
        with suppress(OSError):
            if is_dead or time.time() - path.lstat().st_mtime > FORGOTTEN_SECONDS:
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
