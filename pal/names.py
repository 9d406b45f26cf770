"""One rule for every name that becomes a folder: run, sweep, export, dataset, encoder; and for
names that a record gives, which become paths just the same."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from pal.errors import ConfigError, PalError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST_MEANT = 3
TAKEN = "sources"
"""a folder of code in data/, so no dataset can have its name"""


def require_name(what: str, name: str, error: type[PalError] = ConfigError) -> str:
    """Return a name that may become a folder's; raises ``error`` for any other.

    ``what`` says in the message whose name it is, e.g. ``run`` or ``dataset``.
    """
    if not NAME.fullmatch(name):
        shown = name if len(name) <= 120 else f"{name[:120]}..."
        raise error(
            f"{shown!r} cannot be the name of {_article(what)} {what}: use 1 to 100 letters from a "
            f"to z, A to Z, digits, dots, hyphens and underscores, and begin with a letter or a "
            f"digit, e.g. {name_from(name)}"
        )
    if what == "dataset" and name == TAKEN:
        raise error(f"{name!r} is a folder of code in data/, so no dataset can have this name")
    return name


def name_from(text: str, longest: int = 60) -> str:
    """Return the nearest valid name of a text: letters lose their accents, other characters become
    ``_``; ``x`` where nothing is left."""
    letters = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    bare = "".join(one for one in letters if not unicodedata.combining(one))
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", bare).lstrip("._-")[:longest]
    return plain or "x"


def did_you_mean(name: str, others: Sequence[str]) -> str:
    """Return ``; did you mean 'NAME'?``, the others that a name begins or that are most like it, at
    most three, and ``;`` where there are none."""
    begun = [other for other in others if other.startswith(f"{name}-")]
    close = begun[:MOST_MEANT] or difflib.get_close_matches(name, others, n=1)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"


def did_you_mean_folder(folder: Path, file: str) -> str:
    """Return the same for a folder that holds no ``file``, of those beside it that do."""
    others = [path.parent.name for path in sorted(folder.parent.glob(f"*/{file}"))]
    return did_you_mean(folder.name, [other for other in others if NAME.fullmatch(other)])


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
