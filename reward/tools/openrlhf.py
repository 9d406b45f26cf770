"""What OpenRLHF's client sends, read as a prompt and a response.

``query`` is the decoded prompt and answer with all special tokens, of a long prompt only the end;
``prompts`` has the prompt as the trainer's dataset wrote it, in the policy's chat template if it
has one. Decoding may add and drop blanks and may normalise letters, so the two are compared without
blanks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pal.errors import RewardError, shown
from pal.items import Conversation, is_unicode
from pal.reward.tools.chat_formats import (
    ENDS_OF_TEXT,
    FAMILIES,
    MARK,
    ChatFormat,
    TokenizerFormat,
    plain_end,
)

WORDS = re.compile(r"\S+")
FORMATS = ", ".join(family.name for family in FAMILIES)


class NotRecognised(RewardError):
    """A query that is in no format that can be read, so that a reward would be of something
    else."""


@dataclass(frozen=True)
class Asked:
    """What is to be rewarded."""

    prompt: Any
    """chat messages, a plain text or None"""
    response: Any
    is_cut: bool = False
    """whether the client has cut the beginning of the prompt; the reward is for the whole one"""


class QueryReader:
    """Reads queries of one policy."""

    def __init__(self, tokenizer: Any = None) -> None:
        """``tokenizer`` is the policy's; None: the format is recognised by its marks.

        Raises RewardError for a tokenizer without a chat template.
        """
        self.tokenizer = tokenizer
        self.formats: list[ChatFormat] = [*FAMILIES]
        if tokenizer is not None:
            self.formats.insert(0, TokenizerFormat(tokenizer))

    @classmethod
    def of_policy(cls, policy: str | None) -> QueryReader:
        """Return the reader for a policy's folder or Hub repository; raises RewardError where it
        has no tokenizer."""
        if policy is None:
            return cls()
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(policy)
        except Exception as error:  # transformers raises many kinds
            raise RewardError(
                f"serve.policy = {policy!r} has no tokenizer that can be loaded "
                f"({type(error).__name__}); name the policy's folder or Hub repository"
            ) from error
        return cls(tokenizer)

    def read(self, query: Any, prompt: Any = None) -> Asked:
        """Return prompt and response of a query; raises NotRecognised.

        What is no text is left as it is, for the row to be refused by itself.
        """
        if not all(isinstance(text, str) and is_unicode(text) for text in (query, prompt or "")):
            return Asked(prompt, query)
        if not prompt:
            return self._of_query_alone(query)
        for one in self.formats:
            opened = one.read(prompt)
            if opened is not None:
                answer, is_cut = self._behind(query, prompt, opened.opening)
                answer = plain_end(one.answer(answer), one.ends)
                return Asked(_messages(opened.turns), answer, is_cut)
        self._require_plain(prompt)
        answer, is_cut = self._behind(query, prompt, "")
        return Asked(prompt, plain_end(answer, self._ends_of_text()), is_cut)

    def _of_query_alone(self, query: str) -> Asked:
        """Read a query without its prompt: of a chat the last turn is the answer, a plain text is
        one as a whole."""
        for one in FAMILIES:
            headers = list(one.header.finditer(query))
            opened = one.read(query[: headers[-1].end()]) if headers else None
            if opened is not None:
                answer = one.answer(query[headers[-1].end() :])
                return Asked(_messages(opened.turns), plain_end(answer, one.ends))
        answer = plain_end(query, self._ends_of_text())
        self._require_plain(answer)
        return Asked(None, answer)

    def _ends_of_text(self) -> tuple[str, ...]:
        own = getattr(self.tokenizer, "eos_token", None)
        return (own, *ENDS_OF_TEXT) if own else ENDS_OF_TEXT

    def _require_plain(self, prompt: str) -> None:
        """Raise NotRecognised for a text with marks of a chat."""
        found = MARK.search(prompt)
        if found is None:
            return
        policy = getattr(self.tokenizer, "name_or_path", None)
        remedy = (
            f"it is not what serve.policy = {policy!r} writes; name the policy that is trained"
            if policy
            else "name the policy's folder with --set serve.policy=FOLDER"
        )
        raise NotRecognised(
            f"a prompt holds {shown(found.group())} and is in none of the chat formats that are "
            f"recognised ({FORMATS}): {remedy}"
        )

    def _behind(self, query: str, prompt: str, opening: str) -> tuple[str, bool]:
        """Return what follows the prompt, or the end of it, in a query, and whether only that end
        is there."""
        if query.startswith(prompt):
            return query[len(prompt) :], False
        found = _squeezed(query.lstrip("\ufffd"))  # of a letter that was cut in two
        for written in self._decoded(prompt):
            wanted = _squeezed(written)
            size = _overlap(wanted, found)
            if size and size >= len(_squeezed(opening)):
                answer = _after(query.lstrip("\ufffd"), size)
                blanks = written[len(written.rstrip()) :]
                return _without_start(answer, blanks), size < len(wanted)
        raise NotRecognised(
            f"the query {shown(query, 60)} begins neither with its prompt nor with the end of it; "
            "send prompts and queries of the same rows, as OpenRLHF does"
        )

    def _decoded(self, prompt: str) -> Iterator[str]:
        """Yield how a prompt may look after it was encoded and decoded."""
        yield prompt
        if self.tokenizer is not None:
            ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            yield self.tokenizer.decode(ids, skip_special_tokens=False)
        for form in ("NFC", "NFKC"):
            yield unicodedata.normalize(form, prompt)


def _messages(turns: Conversation) -> list[dict[str, str]] | None:
    return [{"role": turn.role, "content": turn.content} for turn in turns] or None


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _after(text: str, size: int) -> str:
    """Return what follows the first ``size`` letters that are no blanks."""
    for word in WORDS.finditer(text):
        length = word.end() - word.start()
        if size <= length:
            return text[word.start() + size :]
        size -= length
    return ""


def _without_start(text: str, blanks: str) -> str:
    """Return a text without the blanks with which the prompt ended, as many as there are."""
    for blank in blanks:
        if not text.startswith(blank):
            break
        text = text[1:]
    return text


def _overlap(prompt: str, query: str) -> int:
    """Return the length of the longest end of a prompt with which a query begins, by Knuth, Morris
    and Pratt: a stranger's texts must not cost the square of their length."""
    if query.startswith(prompt):
        return len(prompt)
    query = query[: len(prompt)]
    shorter = [0] * len(query)  # of each beginning: its longest own end that is a beginning too
    size = 0
    for place in range(1, len(query)):
        while size and query[place] != query[size]:
            size = shorter[size - 1]
        size += query[place] == query[size]
        shorter[place] = size
    size = 0
    for letter in prompt:
        while size and (size == len(query) or letter != query[size]):
            size = shorter[size - 1]
        size += bool(query) and letter == query[size]
    return size
