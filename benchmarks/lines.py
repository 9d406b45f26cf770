"""Results that are kept as lines of JSON, so that a script that was killed goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def lines_of(path: Path) -> list[Line]:
    """Return the lines of a file, none where there is none; one that was cut off is no line."""
    told = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in told if line.endswith("}")]


def add_line(path: Path, line: Line) -> None:
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
