"""A chat template that writes a conversation as an encoder reads it.

Trainers join prompt and answer with the chat template of the reward model's tokenizer. The
tokenizer of an export has one that gives the very text that stage one gives the encoder, whatever
the encoder's own tokenizer has.
"""

from __future__ import annotations

import json

from pal.embed.render import Renderer
from pal.items import BETWEEN_TURNS
from pal.reward.export_record import ExportRecord

LAST = "{{ messages[-1]['content'] }}"
BEFORE = f"{{{{ messages[:-1] | map(attribute='content') | join({json.dumps(BETWEEN_TURNS)}) }}}}"


def template_of(renderer: Renderer, record: ExportRecord) -> str:
    """Return the template in Jinja; the encoder's own one is inside where that is a chat's."""
    own = str(renderer.tokenizer.chat_template)
    start = _literal(renderer.instruction)
    if record.view == "prompt+response":
        if renderer.is_chat:
            return own
        pieces = renderer.pattern.removesuffix("{text}").split("{context}")
        context = BEFORE.join(map(_literal, pieces))
        return start + "{% if messages | length > 1 %}" + context + "{% endif %}" + LAST
    text = (BEFORE if "{prompt}" in record.item_text else "") + LAST
    if not renderer.is_chat:
        return start + text
    # what is rewarded stands alone, as something that a user says
    alone = "{% set text %}" + text + "{% endset %}"
    # a scope of its own: a name that is set below is undefined above
    scope = "{% with messages = [{'role': 'user', 'content': text}] %}"
    return alone + scope + own + "{% endwith %}"


def _literal(text: str) -> str:
    """Return a text as it stands in a template, whatever letters it has."""
    return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""
