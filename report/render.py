"""From a page to one HTML file that asks nobody for anything.

Jinja2 escapes every text. The page has no script, and its own policy (Content-Security-Policy)
forbids any, and any request: a text that got through would still do nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pal
from pal.errors import EvaluationError
from pal.files import atomic_file
from pal.report.page import Page, Section, Table

MARK = b'<meta name="generator" content="pal report">'
"""what says that a page is ours"""
TEMPLATE, STYLE = "page.html", "style.css"


def as_html(page: Page) -> str:
    """Return a page as HTML, where its numbers come from at its end."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    sections = [
        (f"part-{number}", section)
        for number, section in enumerate([*page.sections, *_sources(page)])
    ]
    return environment.from_string(_text(TEMPLATE)).render(
        page=page,
        sections=sections,
        style=_text(STYLE),
        made_by=f"pal {pal.__version__}",
        told_apart=_numbering(),
    )


def write_page(path: Path, page: Page) -> None:
    """Write a page; raises EvaluationError where the file is somebody else's."""
    if path.exists() and not _is_ours(path):
        raise EvaluationError(
            f"{path} exists and is no page of pal report, so it is not replaced; remove it "
            "yourself or choose another --out"
        )
    html = as_html(page)
    with atomic_file(path) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="backslashreplace")


def _sources(page: Page) -> list[Section]:
    if not page.sources:
        return []
    rows = [(one.what, one.file, one.digest, one.command) for one in page.sources]
    header = ("what", "file", "digest", "made by")
    return [
        Section(
            "Where every number comes from",
            [Table("Files that were read, each checked against its digest.", header, rows)],
        )
    ]


def _numbering() -> Callable[[str], str]:
    """Return a function that gives each text a number if it was there before: boxes that scroll
    are landmarks, which a screen reader lists by name."""
    seen: Counter[str] = Counter()

    def told_apart(text: str) -> str:
        seen[text] += 1
        return text if seen[text] == 1 else f"{text} ({seen[text]})"

    return told_apart


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as stream:
        return MARK in stream.read(1000)


def _text(name: str) -> str:
    return (files("pal.report") / name).read_text(encoding="utf-8")
