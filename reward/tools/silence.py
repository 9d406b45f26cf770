"""Empty answers of a policy that is being trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SILENCE = "..."
"""what is rewarded instead of an answer without a word. No encoder reads an empty text, and a
trainer counts a row without reward as zero, which may be more than any answer gets"""


def spoken(answer: Any) -> Any:
    """Return an answer, a text or chat messages, with ``SILENCE`` where it has no word."""
    if isinstance(answer, str):
        return answer if answer.strip() else SILENCE
    if not isinstance(answer, list | tuple) or not answer:
        return answer
    last = answer[-1]
    if isinstance(last, Mapping) and isinstance(last.get("content"), str | None):
        return [*answer[:-1], {**last, "content": spoken(last.get("content") or "")}]
    return answer
