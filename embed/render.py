"""From texts to token ids: the template, and what is cut where a text is too long for the model.

A text with context (a prompt before a response) loses its context first, from its start; the text
itself only if it is too long alone, and then at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pal.config import EncoderConfig
from pal.errors import EncoderError
from pal.items import BETWEEN_TURNS, Text

AT_ONCE = 4096
CHAT = "chat"
PLAIN = "{context}" + BETWEEN_TURNS + "{text}"


class RefusedByTemplate(Exception):
    """A chat template does not accept this conversation, e.g. its order of roles."""


def plain_text(text: Text) -> str:
    """Return a text behind the words of its context, for models that know no template."""
    return BETWEEN_TURNS.join(turn.content for turn in text.turns)


@dataclass
class Tokens:
    """Token ids of many texts, end to end: text i is ``ids[starts[i]:starts[i + 1]]``."""

    ids: np.ndarray
    starts: np.ndarray


@dataclass
class Rendered:
    """One text for the model."""

    text: str
    own: int
    """where the item's own text begins, 0 for an item without context"""


class Renderer:
    """Applies an encoder's template and tokenizer."""

    def __init__(self, name: str, tokenizer: Any, config: EncoderConfig) -> None:
        """Raises EncoderError where the template does not fit."""
        self.name = name
        self.tokenizer = tokenizer
        self.tokenizer.truncation_side = config.truncation_side
        self.config = config
        self.is_chat = config.template == CHAT
        self.pattern = config.template or PLAIN
        if self.is_chat and not tokenizer.chat_template:
            raise EncoderError(
                f"embed.{name}.template = 'chat', but its tokenizer has no chat template; use a "
                f"pattern"
            )
        if not self.is_chat and not (
            "{context}" in self.pattern and self.pattern.endswith("{text}")
        ):
            raise EncoderError(
                f"embed.{name}.template = {self.pattern!r} must be 'chat', or hold {{context}} "
                f"and end with {{text}}"
            )

    def render(self, text: Text) -> Rendered:
        """Return the one string of a text: its turns in their roles, or its words by a pattern.

        Raises RefusedByTemplate.
        """
        if self.is_chat:
            whole = self._chat(text)
            return Rendered(whole, max(whole.rfind(text.text.strip()), 0) if text.context else 0)
        if not text.context:
            return Rendered(text.text, 0)
        words = BETWEEN_TURNS.join(turn.content for turn in text.context)
        before = self.pattern.removesuffix("{text}").replace("{context}", words)
        return Rendered(before + text.text, len(before))

    def _chat(self, text: Text) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in text.turns]
        try:
            whole: str = self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception as error:  # a template can raise whatever an expression can
            roles = ", ".join(turn.role for turn in text.turns)
            raise RefusedByTemplate(
                f"the chat template does not accept the roles {roles[:200]}: "
                f"{str(error) or type(error).__name__}"
            ) from error
        return whole

    def tokenise(self, texts: list[Rendered]) -> tuple[Tokens, np.ndarray, int]:
        """Return the tokens, which texts were cut, (n,) bool, and how many lost their own end."""
        pieces: list[np.ndarray] = []
        truncated = np.zeros(len(texts), bool)
        own_cut = 0
        longest = self.config.max_length
        for start in range(0, len(texts), AT_ONCE):
            # the whole text is tokenised, since only then is it known whether anything was cut
            chunk = texts[start : start + AT_ONCE]
            batch = self.tokenizer(
                [r.text for r in chunk], add_special_tokens=not self.is_chat, verbose=False
            )
            for place, ids in enumerate(batch["input_ids"], start=start):
                if len(ids) > longest:
                    truncated[place] = True
                    ids, is_own = self._cut(texts[place], len(ids) - longest)
                    own_cut += is_own
                pieces.append(np.asarray(ids, dtype=np.int32))
        starts = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])
        return Tokens(np.concatenate(pieces or [np.empty(0, np.int32)]), starts), truncated, own_cut

    def _cut(self, rendered: Rendered, excess: int) -> tuple[list[int], bool]:
        """Return the ids that are kept, and whether an item behind a context lost its own end."""
        special = not self.is_chat
        if not rendered.own:
            settings = {
                "truncation": True,
                "max_length": self.config.max_length,
                "add_special_tokens": special,
            }
            ids: list[int] = self.tokenizer(rendered.text, **settings)["input_ids"]
            return ids, False
        if not self.tokenizer.is_fast:
            raise EncoderError(
                f"encoder {self.name} has no fast tokenizer, which cutting a prompt needs"
            )
        read = self.tokenizer(
            rendered.text,
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            verbose=False,
        )
        is_special = np.array(read["special_tokens_mask"], bool)
        is_context = ~is_special & (np.array(read["offset_mapping"])[:, 1] <= rendered.own)
        keep = np.ones(len(is_special), bool)
        keep[np.flatnonzero(is_context)[:excess]] = False
        excess -= int((~keep).sum())
        if excess:
            keep[np.flatnonzero(keep & ~is_special)[-excess:]] = False
        return np.array(read["input_ids"])[keep].tolist(), excess > 0
