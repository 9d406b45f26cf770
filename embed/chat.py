"""Chat templates of models, which are programs of others: what they see, and how long they run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from jinja2 import Environment, TemplateError

from pal.errors import EncoderError
from pal.items import Turn

MOST_LINES = 2_000_000
"""of a template's own code that run for one conversation, less than a second; counted, so that the
same conversation is refused on every machine"""
TODAY = "2024-07-26"
"""what a template takes for today, whenever it is: the day that the templates of Llama 3 fall back
to. Part of the specification, since many templates write the date into the system turn"""
CLOCK = "strftime_now"
"""the function of transformers' by which a template asks for the day"""
PARTS = {
    "%Y": "2024", "%y": "24", "%m": "07", "%-m": "7", "%B": "July", "%b": "Jul", "%d": "26",
    "%-d": "26", "%A": "Friday", "%a": "Fri", "%j": "208", "%H": "00", "%I": "12", "%M": "00",
    "%S": "00", "%p": "AM", "%F": TODAY,
}  # fmt: skip
STOPPED_CLOCK = (
    f"{{% macro {CLOCK}(day) %}}{{{{ day"
    + "".join(f" | replace('{code}', '{value}')" for code, value in PARTS.items())
    + " }}{% endmacro %}{{ '' }}"
)
"""in front of a template: hides the real clock"""
OF_TEMPLATES = "<template>"
"""the file name that Jinja gives to a template's code"""


class RefusedByTemplate(Exception):
    """A chat template does not accept this conversation, e.g. its order of roles."""


def require_bounded(name: str, template: str | Mapping[str, str]) -> None:
    """Raise EncoderError for a template with powers, one of which can take hours by itself."""
    for source in [template] if isinstance(template, str) else template.values():
        try:
            tokens = list(Environment(autoescape=True).lex(source))  # only read, never rendered
        except TemplateError:  # told by whoever renders it
            continue
        if any(kind == "operator" and text == "**" for _, kind, text in tokens):
            raise EncoderError(
                f"the chat template of encoder {name} computes powers, which can take hours; "
                f"remove them, or set embed.{name}.template to a pattern"
            )


def render(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """Return a conversation as its tokenizer's template writes it; raises RefusedByTemplate."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]

    def write() -> str:
        template = tokenizer.get_chat_template()
        if CLOCK in template:
            template = STOPPED_CLOCK + template
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template)
        return text

    try:
        return _within(MOST_LINES, write)
    except Exception as error:  # a template can raise whatever an expression can
        roles = ", ".join(turn.role for turn in turns)
        raise RefusedByTemplate(
            f"the chat template does not accept the roles {roles[:200]}: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _within(most: int, call: Callable[[], str]) -> str:
    """Return what ``call`` does; raises TimeoutError once so many lines of templates have run."""
    lines = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != OF_TEMPLATES:
            return None
        lines += 1
        if lines > most:
            raise TimeoutError(f"it runs for more than {most:,} lines")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        return call()
    finally:
        sys.settrace(before)
