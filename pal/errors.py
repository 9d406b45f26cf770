"""What can go wrong on the user's side, as one tree; and what is worth a warning.

    PalError                 one sentence: what is wrong, with the value, and what to do
    ├── ConfigError          pipeline.yaml, --set or an option
    ├── DataError            a raw source or a prepared dataset
    ├── EncoderError         weights, tokenizer or the numbers an encoder produced
    ├── CacheError           a damaged or incomplete cache
    │   └── CacheMismatch    a sound cache made under another specification
    ├── TrainError           a head that cannot be trained as asked
    ├── EvaluationError      a run that cannot be evaluated as asked
    ├── RewardError          an exported reward model, or what it was asked to score
    └── DiskError            a file system that is full, cannot be written, or fails

The command line prints the sentence and exits with 1; every other exception is our own mistake and
keeps its traceback.
"""

import errno
import os
import re
import sqlite3
from pathlib import Path
from typing import Any


def in_a_line(error: BaseException) -> str:
    """Return an error's kind and the first line of what it says: what follows, such as the numbers
    of bytes of a device, differs each time."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


class PalError(Exception):
    """Base of all errors that the user can fix."""


class ConfigError(PalError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(PalError):
    """A raw source or a prepared dataset is missing or unusable."""


class EncoderError(PalError):
    """An encoder cannot be loaded, or produced values that cannot be stored."""


class CacheError(PalError):
    """A cache is damaged, incomplete or not there."""


class CacheMismatch(CacheError):
    """A cache was made under another specification than the one asked for."""


class TrainError(PalError):
    """A head cannot be trained from these pairs and features."""


class EvaluationError(PalError):
    """A run cannot be evaluated on this dataset."""


class RewardError(PalError):
    """A reward model cannot be exported, loaded or asked as wanted."""


class DiskError(PalError):
    """A file system refuses what it was asked for."""


OF_DISKS = {
    errno.ENOSPC: "no space is left for {folder}; free some and run the command again",
    errno.EDQUOT: "the disk quota for {folder} is used up; free some and run the command again",
    errno.EFBIG: "{path} would be larger than its disk or a limit allows; use another disk, or "
    "raise the limit (ulimit -f)",
    errno.EROFS: "{folder} is on a disk that can only be read; choose a folder on another one",
    errno.EACCES: "{path} is not open to this user; change its permissions or choose another",
    errno.EPERM: "{path} is not open to this user; change its permissions or choose another",
    errno.ENAMETOOLONG: "the name of {path} is too long for its disk; choose a shorter one",
    errno.EXDEV: "{path} cannot be replaced, as it belongs to another disk or to the image of a "
    "container; remove it yourself or choose another name",
    errno.EBUSY: "{path} is in use, perhaps as a mount point; choose another name",
    errno.EIO: "the disk of {folder} fails to read or write; look after it, then run the command "
    "again",
    errno.ESTALE: "the network share of {folder} is gone; mount it again, then run the command "
    "again",
    errno.ENOTDIR: "{path} cannot be a folder, as a file has that name or one above it; choose "
    "another name",
    errno.EISDIR: "{path} is a folder where a file is needed; choose another name",
    errno.EEXIST: "{path} is in the way; remove it or choose another name",
    errno.ELOOP: "{path} is a link that leads in a circle; remove it or choose another name",
    errno.EMFILE: "too many files are open at once; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine; end other programs",
}
"""by number of the system: what is wrong and what to do"""
OF_DATABASES = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_IOERR: errno.EIO,
}


def system_number(error: BaseException) -> int | None:
    """Return the number that the system gave an error of a file system, None for any other error.

    Libraries written in Rust tell it in the text of their own errors, shutil in that of many.
    """
    number = None
    if isinstance(error, OSError) and error.errno is not None:
        number = error.errno
    elif isinstance(error, sqlite3.Error):
        number = OF_DATABASES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
    elif found := re.search(r"(?:\(os error |\[Errno )(\d+)[)\]]", str(error)):
        number = int(found.group(1))
    return number if number in OF_DISKS else None


def disk_error(error: BaseException) -> DiskError | None:
    """Return an error of a file system as a sentence, None for any other error."""
    number = system_number(error)
    if number is None:
        within = error.__cause__ or error.__context__
        return None if within is None else disk_error(within)
    given = [getattr(error, name, None) for name in ("filename", "filename2")]
    paths = [Path(os.fsdecode(place)) for place in given if isinstance(place, str | bytes)]
    if not paths:
        return DiskError(OF_DISKS[number].format(path="a file", folder="a file"))
    # one that begins with a dot is ours, to be renamed
    path = next((path for path in paths if not path.name.startswith(".")), paths[0].parent)
    return DiskError(OF_DISKS[number].format(path=path, folder=paths[0].parent))


class PalWarning(UserWarning):
    """Something that can go on, but that the user will want to know: one sentence, shown on
    standard error."""


def shown(value: Any, length: int = 80) -> str:
    """Return the beginning of any value for a message, in quotes; whatever it is, this is a text
    that can be printed."""
    try:
        text = str(value)
    except Exception:  # a number of too many digits, lists within lists without end, ...
        text = type(value).__name__
    return repr(text[:length])
