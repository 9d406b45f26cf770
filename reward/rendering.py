"""From what callers have, strings or chat messages, to the items that a head was trained on.

One function per item: ``response_item`` for what is rewarded, ``prompt_item`` for heads that read
the prompt apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pal.dataset import View
from pal.errors import RewardError

Turns = list[dict[str, str]]
Prompt = str | Sequence[Mapping[str, Any]] | None
"""text of one user turn, chat messages, or nothing"""


@dataclass(frozen=True)
class Text:
    """A text item; ``context`` is the JSON list of the turns before it, None where it answers
    nothing."""

    text: str
    context: str | None = None


def turns_of(messages: Prompt, role: str = "user") -> Turns:
    """Return chat messages in the one form that items have; a plain string is one turn of
    ``role``."""
    if messages is None:
        return []
    if isinstance(messages, str):
        return [{"role": role, "content": messages}]
    if not isinstance(messages, Iterable) or isinstance(messages, bytes | Mapping):
        raise RewardError(
            f"a text is a string or a list of chat messages, not {str(messages)[:80]!r}"
        )
    return [
        {"role": _text(m.get("role"), role), "content": _content(m.get("content"))}
        for m in map(_message, messages)
    ]


def prompt_item(turns: Turns) -> Text | None:
    """Return the prompt as an item of its own: its last turn behind the earlier ones; None where
    there is none."""
    return Text(turns[-1]["content"], _context(turns[:-1])) if turns else None


def response_item(turns: Turns, response: Prompt, view: View, item_text: str) -> Text:
    """Return what is rewarded, in the view that the head was trained in.

    ``prompt+response``: the response, with the turns before it as context. ``response``: one text
    without context, made by ``item_text`` of the prompt's and the response's words. Of a response
    of several messages the last is the item, and those before it count to the prompt.
    """
    answer = turns_of(response, "assistant")
    if not answer:
        raise RewardError("a response is missing; give a string or at least one chat message")
    before, text = [*turns, *answer[:-1]], answer[-1]["content"]
    if view == "prompt+response":
        return Text(text, _context(before))
    return Text(
        item_text.format(prompt="\n\n".join(turn["content"] for turn in before), response=text)
    )


def _context(turns: Turns) -> str | None:
    return json.dumps(turns, ensure_ascii=False) if turns else None


def _message(message: Any) -> Mapping[str, Any]:
    if not isinstance(message, Mapping) or "content" not in message:
        raise RewardError(
            f"chat messages are objects with role and content, not {str(message)[:80]!r}"
        )
    return message


def _text(value: Any, default: str) -> str:
    return value if isinstance(value, str) else default


def _content(content: Any) -> str:
    """Return a message's words; of content in parts, those of its text parts."""
    if content is None:  # a message that only calls a tool
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise RewardError(
            "the content of a chat message is a string or a list of parts, not "
            f"{str(content)[:80]!r}"
        )
    return "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
