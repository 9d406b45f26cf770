"""One rule for every name that becomes a folder: run, sweep, export, dataset, encoder."""

from __future__ import annotations

import re

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


def _article(what: str) -> str:
    return "an" if what[0] in "aeiou" else "a"
