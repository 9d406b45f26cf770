"""Chats that a tokenizer has written as one text, read back into turns.

A policy's prompt reaches a reward server as text, inside the chat template of the policy. A reward
model has a template of its own, so it must know who said what. Two kinds of formats do that:
``Family``, known by the marks that many models share, and ``TokenizerFormat``, which finds out how
one tokenizer writes a chat and believes only what that tokenizer writes again letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pal.errors import RewardError
from pal.items import Conversation, Turn

BEGINNINGS = ("<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "<bos>", "<s>")
"""what may stand before the first turn"""
ENDS_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "</s>", "<eos>")
"""what models write when they have finished"""
MARK = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>]{1,40}｜>|\[/?INST\]|</?(start|end)_of_turn>|<</?SYS>>"
)
"""what a plain text does not hold"""
STARTED = re.compile(r"\s*(<think>\s*(</think>\s*)?)?")
"""what templates write behind the header of an answer"""


@dataclass(frozen=True)
class Opened:
    """A prompt that was read: the turns, and where the answer begins."""

    turns: Conversation
    opening: str
    """the header of the answer, with which the prompt ends"""


class ChatFormat(Protocol):
    """One way to write a chat as text."""

    @property
    def ends(self) -> Sequence[str]:
        """What may end an answer."""

    def read(self, prompt: str) -> Opened | None:
        """Return the turns of a prompt, None if it is not in this format."""

    def answer(self, text: str) -> str:
        """Return an answer without what the format itself puts before it."""


@dataclass(frozen=True)
class Family:
    """A format that is known by its marks."""

    name: str
    header: re.Pattern[str]
    """begins a turn; its group ``role`` says whose"""
    ends: tuple[str, ...]
    roles: Mapping[str, str] = field(default_factory=dict)
    """our word for a role, where the format has another"""
    defaults: tuple[str, ...] = ()
    """system messages that templates add by themselves, as patterns"""
    is_spaced: bool = False
    """whether blanks round the content belong to the format"""

    def read(self, prompt: str) -> Opened | None:
        start = len(prompt) - len(_without_beginning(prompt))
        headers = list(self.header.finditer(prompt, start))
        if not headers or headers[0].start() != start:
            return None
        stops = [*(header.start() for header in headers[1:]), len(prompt)]
        turns = []
        for header, stop in zip(headers, stops, strict=True):
            content, rest = _cut(prompt[header.end() : stop], self.ends)
            if rest.strip():
                return None
            content = content.strip() if self.is_spaced else content
            turns.append(Turn(self.roles.get(header["role"], header["role"]), content))
        last = turns.pop()
        if last.role != "assistant" or not STARTED.fullmatch(last.content):
            return None
        return Opened(tuple(self._given(turns)), prompt[headers[-1].start() :])

    def _given(self, turns: Sequence[Turn]) -> Iterator[Turn]:
        """Yield the turns that the caller gave, without what templates add."""
        for number, turn in enumerate(turns):
            content = turn.content
            if number == 0 and turn.role == "system":
                for pattern in self.defaults:
                    content = re.sub(rf"\A(?:{pattern})", "", content)
                if not content.strip():
                    continue
            yield Turn(turn.role, content)

    def answer(self, text: str) -> str:
        return text.lstrip(" ") if self.is_spaced else text  # tokenizers add a second one


CHATML = Family(
    "ChatML",
    re.compile(r"<\|im_start\|>(?P<role>[a-z_]+)\n"),
    ("<|im_end|>", "<|endoftext|>"),
    defaults=(
        r"You are a helpful assistant\.?\Z",
        r"You are Qwen, created by Alibaba Cloud\. You are a helpful assistant\.\Z",
        r"You are a helpful AI assistant named SmolLM, trained by Hugging Face\Z",
    ),
)
LLAMA_3 = Family(
    "Llama 3",
    re.compile(r"<\|start_header_id\|>(?P<role>[a-z_]+)<\|end_header_id\|>\n\n"),
    ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"),
    defaults=(r"Cutting Knowledge Date: [^\n]*\nToday Date: [^\n]*\n\n",),
)
GEMMA = Family(
    "Gemma",
    re.compile(r"(?:<start_of_turn>|<\|turn>)(?P<role>[a-z]+)\n"),
    ("<end_of_turn>", "<turn|>", "<eos>"),
    {"model": "assistant"},
)
MISTRAL = Family(
    "Mistral",
    re.compile(r"\s*\[(?P<role>INST|/INST|SYSTEM_PROMPT)\]"),
    ("[/SYSTEM_PROMPT]", "</s>"),
    {"INST": "user", "/INST": "assistant", "SYSTEM_PROMPT": "system"},
    is_spaced=True,
)
ZEPHYR = Family(
    "Zephyr",
    re.compile(r"<\|(?P<role>system|user|assistant)\|>\n"),
    ("</s>", "<|end|>", "<|endoftext|>"),
)
FAMILIES = (CHATML, LLAMA_3, GEMMA, MISTRAL, ZEPHYR)

SYSTEM, FIRST, ANSWER, SECOND = "xqzsystemzqx", "xqzfirstzqx", "xqzanswerzqx", "xqzsecondzqx"
"""words to ask a template with, which no template holds"""


class TokenizerFormat:
    """How one tokenizer writes chats: what stands before, between and behind the contents."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises RewardError for a tokenizer without a chat template that takes a user's turn."""
        self.tokenizer = tokenizer
        user, answer, later = Turn("user", FIRST), Turn("assistant", ANSWER), Turn("user", SECOND)
        alone = self._written((user,))
        if alone is None or alone.count(FIRST) != 1:
            raise RewardError(
                f"the tokenizer {tokenizer.name_or_path} has no chat template that takes a user's "
                "turn; name the policy's own as serve.policy, or leave it out where prompts are "
                "plain text"
            )
        self.before, self.opening = alone.split(FIRST)
        long = _between(self._written((user, answer, later)), FIRST, ANSWER, SECOND)
        self.turned, self.closed = long[1:3] if long else (self.opening, "")
        system = _between(self._written((Turn("system", SYSTEM), user)), SYSTEM, FIRST)
        self.system = system[:2] if system else None
        marks = sorted({*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}, key=len)
        closing = [mark for mark in marks if self.closed.lstrip().startswith(mark)]
        self.ends = [mark for mark in (*closing[-1:], tokenizer.eos_token) if mark]

    def read(self, prompt: str) -> Opened | None:
        if not prompt.endswith(self.opening):
            return None
        body = prompt[: len(prompt) - len(self.opening)]
        for turns in self._candidates(body):
            if self._written(turns) == prompt:
                return Opened(turns, self.opening)
        return None

    def answer(self, text: str) -> str:
        return text.lstrip(" ") if self.turned == f"{self.opening} " else text

    def _candidates(self, body: str) -> Iterator[Conversation]:
        if body.startswith(self.before):
            yield tuple(self._alternating(body.removeprefix(self.before)))
        if self.system is not None and body.startswith(self.system[0]):
            system, _, rest = body.removeprefix(self.system[0]).partition(self.system[1])
            yield (Turn("system", system), *self._alternating(rest))

    def _alternating(self, text: str) -> Iterator[Turn]:
        first, *later = text.split(self.turned)
        yield Turn("user", first)
        for part in later:
            answer, _, user = part.partition(self.closed)
            yield from (Turn("assistant", answer), Turn("user", user))

    def _written(self, turns: Conversation) -> str | None:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            whole: str = self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template raises what it likes at roles that it does not take
            return None
        return whole


def plain_end(text: str, ends: Sequence[str]) -> str:
    """Return an answer up to where the model has said that it is finished."""
    return _cut(text, ends)[0]


def _without_beginning(prompt: str) -> str:
    for mark in BEGINNINGS:
        if prompt.startswith(mark):
            return prompt.removeprefix(mark)
    return prompt


def _cut(text: str, ends: Sequence[str]) -> tuple[str, str]:
    """Return what stands before the first of some marks, and what stands behind it."""
    places = [(place, end) for end in ends if (place := text.find(end)) >= 0]
    if not places:
        return text, ""
    place, end = min(places)
    return text[:place], text[place + len(end) :]


def _between(text: str | None, *words: str) -> list[str] | None:
    """Return what stands before, between and behind some words, None unless they are all there."""
    parts = []
    for word in words:
        if text is None or text.count(word) != 1:
            return None
        before, text = text.split(word)
        parts.append(before)
    return [*parts, text or ""]
