"""What makes pages of texts that stand elsewhere: no sentence is written twice.

    <!-- include README.md: Start -->      a section of a file, without its heading
    <!-- include README.md: (beginning) -->   what stands before its second heading
    <!-- include embed/README.md -->       a whole file, without its first heading
    <!-- docstring train/heads/pal_a.py -->   what a module says of itself
    <!-- notebook docs/notebooks/audit.ipynb -->   its cells with their outputs

Paths count from the root of the repository. Links to files that are pages become links to the
pages, other files of the repository are named; a link to nothing stops the build.
"""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "index.md",
    "data/README.md": "datasets.md",
    "embed/README.md": "encoders.md",
    "cache/README.md": "cache.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""pages that show files from outside of docs/"""
INCLUDE = re.compile(
    r"^<!-- (include|docstring|notebook) ([\w./-]+?)(?:: (.+?))? -->$", re.MULTILINE
)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


class BrokenLink(Exception):
    """A page names a file, or a section, that is not there."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs for each page."""
    return expanded(markdown, page.file.src_uri)


def on_post_page(output: str, **_: Any) -> str:
    """Called by MkDocs for each page as HTML: whoever has no mouse can scroll its code, and the
    theme's dialog has a name."""
    dialog = 'data-md-component="search" role="dialog"'
    named = output.replace(dialog, f'{dialog} aria-label="Search"')
    return re.sub(r"<pre(?=[ >])(?![^>]*tabindex)", '<pre tabindex="0"', named)


def expanded(markdown: str, page: str) -> str:
    """Return a page (its path in docs/) with what it includes, every link as the site needs it;
    raises BrokenLink."""
    parts: list[str] = []
    end = 0
    for found in INCLUDE.finditer(markdown):
        parts.append(with_links(markdown[end : found.start()], DOCS / page, page))
        kind, name, section = found.groups()
        parts.append(included(kind, name, section, page))
        end = found.end()
    return "".join([*parts, with_links(markdown[end:], DOCS / page, page)])


def included(kind: str, name: str, section: str | None, page: str) -> str:
    """Return what a comment asks for; raises BrokenLink where it is not there."""
    path = ROOT / name
    if not path.is_file():
        raise BrokenLink(f"{page} includes {name}, which is not there")
    text = path.read_text(encoding="utf-8")
    if kind == "notebook":
        return notebook(json.loads(text), path, page)
    if kind == "docstring":
        told = ast.get_docstring(ast.parse(text))
        if not told:
            raise BrokenLink(f"{page} includes {name}, which says nothing of itself")
        return "\n\n".join(map(as_markdown, told.split("\n\n")))
    body = text.partition("\n")[2] if section is None else section_of(text, section)
    if body is None:
        raise BrokenLink(f"{page} includes {name}: {section}, a heading that is not there")
    return with_links(body, path, page)


def notebook(content: dict[str, Any], path: Path, page: str) -> str:
    """Return the cells of an executed notebook, which stands in ``path``; raises BrokenLink where
    a cell failed or was not executed."""
    told = content["metadata"]["pal"]
    name, date, seconds = path.name, told["executed"], told["seconds"]
    parts: list[str] = []
    heading = ""
    for cell in content["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(with_links(text, path, page))
            heading = re.findall(r"^#+ (.+)$", text, re.MULTILINE)[:1] or heading
            continue
        if cell["execution_count"] is None:
            raise BrokenLink(f"{page} shows {name}, of which a cell was not executed")
        parts += [
            _fenced("python", text),
            *(_output(one, heading[0], name) for one in cell["outputs"]),
        ]
    head, _, rest = parts[0].partition("\n")
    made = f"Executed on {date} in {seconds} s: [{name}]({name}). `make notebooks` makes it anew."
    return "\n\n".join([head, made, rest.strip(), *parts[1:]])


def _output(output: dict[str, Any], heading: str, name: str) -> str:
    if output["output_type"] == "error":
        raise BrokenLink(f"{name} ends in {output['ename']}: {output['evalue']}")
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="{heading}" src="data:image/png;base64,{picture}">'
    return _fenced("text", "".join(output.get("text") or data["text/plain"]))


def _fenced(language: str, text: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"


def as_markdown(paragraph: str) -> str:
    """Return a paragraph of a docstring: equations, which are indented or set in columns, as
    code."""
    first = paragraph.partition("\n")[0]
    if first.startswith("    ") or re.search(r"\S {3,}\S", first):
        return f"```text\n{dedent(paragraph)}\n```"
    pieces = paragraph.split("``")
    pieces[::2] = [piece.replace("<", "&lt;") for piece in pieces[::2]]
    return "``".join(pieces)


def section_of(text: str, title: str) -> str | None:
    """Return what stands below a heading, up to the next one of its level."""
    plain = FENCE.sub(lambda block: " " * len(block.group()), text)  # a comment is no heading
    if title == "(beginning)":
        first, second = (one.start() for one in list(re.finditer("^#", plain, re.MULTILINE))[:2])
        return text[text.index("\n", first) : second]
    begin = re.search(rf"^(#+) {re.escape(title)}$", plain, re.MULTILINE)
    if begin is None:
        return None
    after = re.search(rf"^#{{1,{len(begin[1])}}} ", plain[begin.end() :], re.MULTILINE)
    return text[begin.end() : None if after is None else begin.end() + after.start()]


def with_links(markdown: str, source: Path, page: str) -> str:
    """Return a text that stands in ``source`` with its links as ``page`` needs them."""
    pieces = FENCE.split(markdown)
    return "".join(
        piece if piece.startswith("```") else LINK.sub(lambda one: _link(one, source, page), piece)
        for piece in pieces
    )


def _link(found: re.Match[str], source: Path, page: str) -> str:
    text, target = found.groups()
    path, _, anchor = target.partition("#")
    if not path or ":" in path:
        return found.group()
    there = Path(os.path.normpath(source.parent / path))
    if not there.exists() or not there.is_relative_to(ROOT):
        raise BrokenLink(f"{source.relative_to(ROOT)} links {target}, which is not there")
    name = there.relative_to(ROOT).as_posix()
    if there.is_relative_to(DOCS) and there.suffix == ".md":
        own = there.relative_to(DOCS).as_posix()
    elif name in PAGES:
        own = PAGES[name]
    else:
        return f"`{name}`" if text.strip("`") in (name, path, there.name) else f"{text} (`{name}`)"
    away = os.path.relpath(own, Path(page).parent)
    return f"[{text}]({away}{'#' + anchor if anchor and name not in PAGES else ''})"
