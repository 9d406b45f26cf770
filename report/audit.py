"""An audit on a page: its verdict, its numbers, its groups and what they disagree about.

The verdict comes from the audit's record; tables and pictures come from its own page, whose seals
the record names. Of that page's Markdown only headings, tables, lists and backslashes are read:
texts in it are texts of people, and no link or picture that one of them writes becomes one. A cell
that is nothing but a picture of the audit's own shows that picture: texts of people cannot look
like one, for their brackets stand behind backslashes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pal.audit.record import AuditRecord, Verdict
from pal.errors import EvaluationError
from pal.report.page import (
    Block,
    Bullets,
    Cell,
    Page,
    Picture,
    Source,
    Table,
    Text,
    Thumbnail,
    Tone,
)
from pal.report.subjects import Subject

if TYPE_CHECKING:
    from markdown_it.token import Token

TONES: dict[Verdict, Tone] = {"plural": "good", "none seen": "plain", "cannot tell": "warning"}
PICTURES = {
    "users.png": "People where their own tastes put them, groups in colours.",
    "null.png": "The statistics of this dataset beside those that chance gives under one taste.",
}
THUMBNAIL = re.compile(r"!\[((?:[^\[\]\\]|\\.)*)\]\(([\w.-]+)\)")
"""a cell of audit.md that is a picture: its words and its file"""
HEADINGS = 2
"""level of the parts of audit.md; its title is level 1"""


def add_audit(page: Page, audit: Subject) -> AuditRecord:
    """Add an audit and return its record; raises EvaluationError where it is unfinished or cannot
    be trusted."""
    record = AuditRecord.read(audit.folder)
    sentence = record.sentence[:1].upper() + record.sentence[1:]
    blocks: list[Block] = [Text(sentence, TONES[record.verdict])]
    if record.untrained:
        told = "The encoder has random weights (untrained): this says nothing about people."
        blocks.append(Text(told, "warning"))
    page.add(f"Audit {audit.name}: {record.verdict}", blocks)
    thumbnails = {
        name: _base64(audit.folder, name, seal)
        for name, seal in record.files.items()
        if name.endswith(".jpg")
    }
    for name in record.files:
        if name.endswith(".md"):
            text = _sealed(audit.folder, name, record.files[name]).decode("utf-8", "replace")
            for part in parts_of(text, thumbnails):
                page.add(part.title, part.blocks, 3)
    pictures = [
        Picture(
            PICTURES.get(name, name),
            PICTURES.get(name, name),
            png=_base64(audit.folder, name, seal),
        )
        for name, seal in record.files.items()
        if name.endswith(".png")
    ]
    page.add("Pictures of the audit", pictures, 3)
    command = f"pal audit --dataset {record.dataset}"
    command += " --no-features" if record.encoder is None else f" --encoder {record.encoder}"
    file = str(audit.folder / AuditRecord.file)
    seal = next(iter(record.files.values()), "")[:16]
    page.cite(Source(f"audit {audit.name}", file, seal, f"{command} --name {record.name}"))
    return record


@dataclass
class Part:
    """A heading of a page in Markdown, and what is below it."""

    title: str
    blocks: list[Block]


def parts_of(markdown: str, thumbnails: Mapping[str, str]) -> list[Part]:
    """Return the parts of a page in Markdown below its first heading, as blocks of plain text;
    ``thumbnails``: files that cells may show, as base64."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("zero").enable(["heading", "table", "list", "escape"])
    parts: list[Part] = []
    tokens = iter(reader.parse(markdown))
    caption = ""
    for token in tokens:
        if token.type == "heading_open":
            title = next(tokens).content
            if int(token.tag[1:]) >= HEADINGS:
                parts.append(Part(title, []))
                caption = ""
        elif not parts:
            continue
        elif token.type == "table_open":
            header, *rows = _cells(tokens, thumbnails)
            names = [name for name in header if isinstance(name, str)]
            blocks = parts[-1].blocks
            if blocks and isinstance(blocks[-1], Text) and blocks[-1].text.endswith(":"):
                caption = blocks[-1].text.rstrip(":")
                blocks.pop()
            table = Table.of(f"{caption or parts[-1].title}.", names, rows)
            blocks.append(replace(table, is_named_above=not caption))
            caption = ""
        elif token.type == "bullet_list_open":
            parts[-1].blocks.append(Bullets(list(_texts(tokens, "bullet_list_close"))))
        elif token.type == "inline" and not re.fullmatch(r"!\[.*\]\([\w.-]+\)", token.content):
            parts[-1].blocks.append(Text(_plain(token)))
    return [part for part in parts if part.blocks]


def _cells(tokens: Iterator[Token], thumbnails: Mapping[str, str]) -> Sequence[list[Cell]]:
    rows: list[list[Cell]] = []
    for token in tokens:
        if token.type == "table_close":
            break
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(_cell(token, thumbnails))
    return rows


def _cell(inline: Token, thumbnails: Mapping[str, str]) -> Cell:
    found = THUMBNAIL.fullmatch(inline.content)
    if found is None or found[2] not in thumbnails:
        return _plain(inline)
    return Thumbnail(re.sub(r"\\(.)", r"\1", found[1]), thumbnails[found[2]])


def _texts(tokens: Iterator[Token], end: str) -> Iterator[str]:
    for token in tokens:
        if token.type == end:
            return
        if token.type == "inline":
            yield _plain(token)


def _plain(inline: Token) -> str:
    """Return the text of a part of a page as it was before Markdown."""
    return "".join(child.content for child in inline.children or ())


def _base64(folder: Path, name: str, seal: str) -> str:
    return base64.b64encode(_sealed(folder, name, seal)).decode()


def _sealed(folder: Path, name: str, seal: str) -> bytes:
    """Return the bytes of a file of a folder whose record names its SHA-256; raises
    EvaluationError."""
    path = folder / name
    try:
        raw = path.read_bytes() if path.parent.samefile(folder) else b""
    except OSError:
        raw = b""
    if hashlib.sha256(raw).hexdigest() != seal:
        raise EvaluationError(
            f"{path} is damaged or missing; run pal audit --name {folder.name} again"
        )
    return raw
