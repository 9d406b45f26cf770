"""Sections of a page of results: a script makes some of them anew and keeps the others."""

from __future__ import annotations

from pathlib import Path


def sections_of(page: Path) -> dict[str, str]:
    """Return the sections of a page by their titles, in their order; none where there is no
    page."""
    told = page.read_text(encoding="utf-8") if page.is_file() else ""
    pieces = [piece.partition("\n") for piece in told.split("\n## ")[1:]]
    return {title: text.strip() for title, _, text in pieces}
