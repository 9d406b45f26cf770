"""What the Tab key finds beside commands and options: names of datasets, encoders and runs.

Quick, and silent where it cannot look: nobody wants an error in the middle of a line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pal.config import Config


def datasets(typed: str) -> list[str]:
    """Return the datasets under ``data:``."""
    config = _config()
    return [] if config is None else _beginning(typed, list(config.data.datasets))


def encoders(typed: str) -> list[str]:
    """Return the encoders under ``embed:``."""
    config = _config()
    return [] if config is None else _beginning(typed, list(config.embed.encoders))


def runs(typed: str) -> list[str]:
    """Return the folders of ``runs/`` that hold a head."""
    config = _config()
    if config is None:
        return []
    found = [path.parent.name for path in config.paths.runs.glob("[!.]*/head.json")]
    return _beginning(typed, found)


def _config() -> Config | None:
    from pal.config import load
    from pal.errors import PalError

    try:
        return load().config
    except PalError:
        return None


def _beginning(typed: str, names: list[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(typed))
