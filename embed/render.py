"""From texts to token ids: the template, and what is cut where a text is too long for the model.

A text with context (a prompt before a response) loses its context first, from its start; the text
itself only if it is too long alone, and then at its end. What a chat template writes around the
turns is never cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pal.config import EncoderConfig
from pal.embed.chat import RefusedByTemplate, require_bounded
from pal.embed.chat import render as render_chat
from pal.embed.shorten import shortened
from pal.errors import EncoderError
from pal.items import BETWEEN_TURNS, Text

AT_ONCE = 4096
CHAT = "chat"
PLAIN = "{context}" + BETWEEN_TURNS + "{text}"


def plain_text(text: Text) -> str:
    """Return a text behind the words of its context, for models that know no template."""
    return BETWEEN_TURNS.join(turn.content for turn in text.turns)


@dataclass
class Tokens:
    """Token ids of many texts, end to end: text i is ``ids[starts[i]:starts[i + 1]]``."""

    ids: np.ndarray
    starts: np.ndarray
    types: np.ndarray | None = None
    """the kind of each token, where the tokenizer tells kinds apart in a single text (XLNet)"""


@dataclass
class Rendered:
    """One text for the model."""

    text: str
    fixed: int = 0
    """where its words begin, behind an instruction"""
    own: int = 0
    """where the item's own text begins, 0 for an item without context and in a chat"""
    item: Text = field(default=Text(""), compare=False)
    """what was rendered"""


class Renderer:
    """Applies an encoder's template and tokenizer."""

    def __init__(self, name: str, tokenizer: Any, config: EncoderConfig) -> None:
        """Raises EncoderError where the template does not fit."""
        self.name = name
        self.tokenizer = tokenizer
        self.tokenizer.truncation_side = config.truncation_side
        self.config = config
        self.is_chat = config.template == CHAT
        self.instruction = config.instruction or ""
        self.pattern = config.template or PLAIN
        if self.is_chat:
            self._require_chat()
        elif not ("{context}" in self.pattern and self.pattern.endswith("{text}")):
            raise EncoderError(
                f"embed.{name}.template = {self.pattern!r} must be 'chat', or hold {{context}} "
                f"and end with {{text}}"
            )

    def _require_chat(self) -> None:
        if not self.tokenizer.chat_template:
            raise EncoderError(
                f"embed.{self.name}.template = 'chat', but its tokenizer has no chat template; use "
                f"a pattern"
            )
        if self.instruction:
            raise EncoderError(
                f"embed.{self.name}.instruction has no place in a chat template; remove it, or set "
                f"embed.{self.name}.template to a pattern"
            )
        require_bounded(self.name, self.tokenizer.chat_template)

    def render(self, text: Text) -> Rendered:
        """Return the one string of a text: its turns in their roles, or its words by a pattern.

        Raises RefusedByTemplate.
        """
        if self.is_chat:
            return Rendered(render_chat(self.tokenizer, text.turns), item=text)
        fixed, before = len(self.instruction), self.instruction
        if not text.context:
            return Rendered(before + text.text, fixed, item=text)
        words = BETWEEN_TURNS.join(turn.content for turn in text.context)
        before += self.pattern.removesuffix("{text}").replace("{context}", words)
        return Rendered(before + text.text, fixed, len(before), text)

    def tokenise(self, texts: list[Rendered]) -> tuple[Tokens, np.ndarray, int]:
        """Return the tokens, which texts were cut, (n,) bool, and how many lost their own end.

        Raises RefusedByTemplate for a conversation that cannot be made short enough.
        """
        pieces: list[np.ndarray] = []
        kinds: list[np.ndarray] = []
        truncated = np.zeros(len(texts), bool)
        own_cut = 0
        longest = self.config.max_length
        for start in range(0, len(texts), AT_ONCE):
            # the whole text is tokenised, since only then is it known whether anything was cut
            chunk = texts[start : start + AT_ONCE]
            batch = self._read([r.text for r in chunk])
            types = batch.get("token_type_ids") or [None] * len(chunk)
            for place, (ids, kind) in enumerate(
                zip(batch["input_ids"], types, strict=True), start=start
            ):
                if len(ids) > longest:
                    truncated[place] = True
                    ids, kind, is_own = self._cut(texts[place], len(ids) - longest)
                    own_cut += is_own
                pieces.append(np.asarray(ids, dtype=np.int32))
                kinds.append(np.asarray(kind or [0] * len(ids), dtype=np.int32))
        starts = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])
        found = np.concatenate(kinds or [np.empty(0, np.int32)])
        tokens = Tokens(
            np.concatenate(pieces or [np.empty(0, np.int32)]),
            starts,
            found if found.any() else None,
        )
        return tokens, truncated, own_cut

    def length(self, text: Text) -> int:
        """Return how many tokens a text has, uncut; raises RefusedByTemplate."""
        return len(self._read([self.render(text).text])["input_ids"][0])

    def _read(self, texts: list[str], **options: Any) -> Any:
        special = not self.is_chat  # a chat template writes its own marks
        return self.tokenizer(texts, add_special_tokens=special, verbose=False, **options)

    def _cut(self, rendered: Rendered, excess: int) -> tuple[list[int], list[int] | None, bool]:
        """Return the ids that are kept, their kinds, and whether an item behind a context lost its
        own end."""
        if self.is_chat or not self.tokenizer.is_fast:
            item = shortened(self, rendered.item, self.config.max_length)
            read = self._read([self.render(item).text])
            types = read.get("token_type_ids") or [None]
            is_own = bool(item.context) and item.text != rendered.item.text
            return read["input_ids"][0], types[0], is_own
        if not rendered.own and not rendered.fixed:
            read = self._read([rendered.text], truncation=True, max_length=self.config.max_length)
            types = read.get("token_type_ids") or [None]
            return read["input_ids"][0], types[0], False
        return self._cut_tokens(rendered, excess)

    def _cut_tokens(
        self, rendered: Rendered, excess: int
    ) -> tuple[list[int], list[int] | None, bool]:
        """Leave tokens out, those of the context first, and never marks or the instruction."""
        read = self._read(
            [rendered.text], return_offsets_mapping=True, return_special_tokens_mask=True
        )
        ids, ends = np.array(read["input_ids"][0]), np.array(read["offset_mapping"][0])[:, 1]
        is_word = ~np.array(read["special_tokens_mask"][0], bool) & (ends > rendered.fixed)
        keep = np.ones(len(ids), bool)
        keep[np.flatnonzero(is_word & (ends <= rendered.own))[:excess]] = False
        excess -= int((~keep).sum())
        if excess:
            rest = np.flatnonzero(keep & is_word)
            from_left = not rendered.own and self.config.truncation_side == "left"
            keep[rest[:excess] if from_left else rest[-excess:]] = False
        if keep.sum() > self.config.max_length:
            raise RefusedByTemplate(
                f"the instruction and the marks alone are longer than max_length = "
                f"{self.config.max_length} tokens"
            )
        types = read.get("token_type_ids")
        kinds = None if types is None else np.array(types[0])[keep].tolist()
        return ids[keep].tolist(), kinds, bool(rendered.own) and excess > 0


__all__ = ["CHAT", "RefusedByTemplate", "Rendered", "Renderer", "Tokens", "plain_text"]
