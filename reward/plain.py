"""The one JSON text of a row, whatever it holds."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

from pal.items import is_unicode


def line_of(row: Any) -> str:
    """Return a value as a line of JSON: bytes become ``{"base64": ...}``, NaN and infinity null."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        row = _finite(row)
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain)
    if not is_unicode(text):  # half of a surrogate pair, which only an escape can write
        text = json.dumps(row, allow_nan=False, default=_plain)
    return text + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return str(value)
