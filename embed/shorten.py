"""Texts whose turns are too long: what is said is cut, oldest first, and then rendered."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pal.embed.chat import RefusedByTemplate
from pal.items import Text, Turn

if TYPE_CHECKING:
    from pal.embed.render import Renderer


def shortened(renderer: Renderer, text: Text, longest: int) -> Text:
    """Return a text of which at most ``longest`` tokens are left with all that is written around
    its turns.

    The turns before it lose their words from the start, the oldest first; then it loses its own
    end, or, alone and with ``truncation_side: left``, its own start. Turns without words keep their
    roles, unless their marks alone take half of the tokens: then the oldest go. Raises
    RefusedByTemplate where the marks leave no place for a word.
    """
    tokenizer = renderer.tokenizer
    excess = renderer.length(text) - longest
    place = 0
    while excess > 0 and place < len(text.context):
        turn = text.context[place]
        kept = Turn(turn.role, without(tokenizer, turn.content, excess, from_start=True))
        text = replace(text, context=(*text.context[:place], kept, *text.context[place + 1 :]))
        place += not kept.content
        excess = renderer.length(text) - longest
    if excess > 0 and text.context:
        text = _without_old_marks(renderer, text, longest // 2)
        excess = renderer.length(text) - longest
    at_start = not text.context and renderer.config.truncation_side == "left"
    while excess > 0:
        text = replace(text, text=without(tokenizer, text.text, excess, at_start))
        if not text.text.strip():
            raise RefusedByTemplate(
                f"what the template writes around {len(text.turns)} turns leaves no place for a "
                f"word in max_length = {longest} tokens"
            )
        excess = renderer.length(text) - longest
    return text


def _without_old_marks(renderer: Renderer, text: Text, most: int) -> Text:
    """Leave out as few of the oldest turns, which have no words any more, as bring the marks under
    ``most`` tokens, or all but the last where that is not enough."""
    bare = replace(text, text="-")
    if renderer.length(bare) <= most:
        return text
    shortest = text
    for first in range(1, len(text.context)):  # a text without context would have another role
        try:
            length = renderer.length(replace(bare, context=bare.context[first:]))
        except RefusedByTemplate:  # e.g. of an order of roles
            continue
        shortest = replace(text, context=text.context[first:])
        if length <= most:
            break
    return shortest


def without(tokenizer: Any, content: str, excess: int, from_start: bool) -> str:
    """Return a text that is shorter by about ``excess`` tokens, and by a character at least."""
    options = {"return_offsets_mapping": True} if tokenizer.is_fast else {}
    read = tokenizer(content, add_special_tokens=False, verbose=False, **options)
    count = len(read["input_ids"])
    if excess >= count:
        return ""
    place = excess if from_start else count - excess
    if tokenizer.is_fast:
        at = int(read["offset_mapping"][place][0])
    else:
        at = round(len(content) * place / count)
    return content[max(at, 1) :] if from_start else content[: min(at, len(content) - 1)]
