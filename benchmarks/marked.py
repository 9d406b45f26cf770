"""Parts of a page of docs/results that scripts write: each stands between two marks."""

from __future__ import annotations


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- end of {name} -->"


def part_of(text: str, name: str) -> str:
    """Return what stands between the two marks."""
    begin, end = marks(name)
    return text.partition(begin)[2].partition(end)[0]


def between(text: str, name: str, body: str) -> str:
    """Return a page with another part between its two marks."""
    begin, end = marks(name)
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{body}\n\n{end}{rest.partition(end)[2]}"
