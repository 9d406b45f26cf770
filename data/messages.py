"""Chat messages as files hold them: as lists, or as a text where a file's cells hold only texts."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from pal.errors import shown
from pal.items import ItemError
from pal.rows import DEEPEST

LIST = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")
SINGLE = re.compile(r"""\s*\{\s*['"](role|content)['"]\s*:""")
CALLS = ("tool_calls", "function_call")
"""what a message holds that only calls a tool, and may have no content for"""


def spoken(value: Any) -> Any:
    """Return the messages that a value holds, of a text those that it holds as JSON or as Python
    prints them; every other value as it is.

    Raises ItemError for a text that begins like a list of messages and cannot be read: it is not
    what anybody said.
    """
    if isinstance(value, str):
        read = _read(value)
        messages = [read] if isinstance(read, dict) else read
        if not (isinstance(messages, list) and all(map(_is_message, messages))):
            return value
        value = messages
    if isinstance(value, dict) and _is_message(value):
        value = [value]
    return list(map(_with_content, value)) if isinstance(value, list) else value


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value and ("content" in value or _calls(value))


def _calls(message: dict[str, Any]) -> bool:
    return any(message.get(name) for name in CALLS)


def _with_content(value: Any) -> Any:
    if isinstance(value, dict) and "content" not in value and _calls(value):
        return {**value, "content": None}
    return value


def _read(text: str) -> Any:
    """Return what a text that looks like messages holds, None for any other text."""
    is_list = LIST.match(text) is not None
    if not (is_list or SINGLE.match(text)):
        return None
    if text.count("[") + text.count("{") <= DEEPEST * 10:
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                continue
    if not is_list:
        return None
    raise ItemError(
        f"{shown(text)} begins like chat messages but is no JSON; save them with json.dumps, or as "
        "JSON lines"
    )
