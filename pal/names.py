"""One rule for every name that becomes a folder: run, sweep, export, dataset, encoder; and for
names that a record gives, which become paths just the same."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from pal.errors import ConfigError, PalError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
TAKEN = "sources"
"""a folder of code in data/, so no dataset can have its name"""


def require_name(what: str, name: str, error: type[PalError] = ConfigError) -> str:
    """Return a name that may become a folder's; raises ``error`` for any other.

    ``what`` says in the message whose name it is, e.g. ``run`` or ``dataset``.
    """
    if not NAME.fullmatch(name):
        shown = name if len(name) <= 120 else f"{name[:120]}..."
        raise error(
            f"{shown!r} cannot be the name of {_article(what)} {what}: use 1 to 100 letters, "
            f"digits, dots, hyphens and underscores, and begin with a letter or a digit"
        )
    if what == "dataset" and name == TAKEN:
        raise error(f"{name!r} is a folder of code in data/, so no dataset can have this name")
    return name


def name_from(text: str, longest: int = 60) -> str:
    """Return the nearest valid name of a text: other characters become ``_``."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:longest]
    return plain if NAME.fullmatch(plain) else f"x{plain}"


def _is_folder_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("no name of a folder")
    return name


def _is_inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise ValueError("no path of a file inside the folder")
    return path


FolderName = Annotated[str, AfterValidator(_is_folder_name)]
"""in a record: a name that may become a folder's"""
InnerPath = Annotated[str, AfterValidator(_is_inside)]
"""in a record: a file in the record's own folder, never outside"""
Fingerprint = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]+$")]
"""in a record: hexadecimal digits"""


def _article(what: str) -> str:
    return "an" if what[0] in "aeiou" else "a"
