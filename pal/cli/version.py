"""What --version says: the version and, of a checkout, the state of git."""

from __future__ import annotations

import subprocess
from pathlib import Path

from pal import __version__

PATIENCE = 5
"""seconds that git may take"""


def version_text() -> str:
    """Return the version and, where this is a checkout, its commit and whether it was changed."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return f"pal {__version__}"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return f"pal {__version__} (git cannot say which commit)"
    commit, _, changed = done.stdout.strip().partition("-")
    return f"pal {__version__} (git {commit}{', changed since' if changed else ''})"
