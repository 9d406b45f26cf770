"""The site promises only what is there: links, commands, imports, and the code that it shows."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import typer
import yaml

from pal.cli.app import app

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md") if path.name != "log.md")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def hooks() -> Iterator[ModuleType]:
    sys.path.insert(0, str(DOCS))
    try:
        yield importlib.import_module("hooks")
    finally:
        sys.path.remove(str(DOCS))


def nav(entries: list[object]) -> Iterator[str]:
    for entry in entries:
        assert isinstance(entry, dict)
        for value in entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from nav(value)


def named_pages() -> list[str]:
    return list(nav(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]))


def test_the_site_has_every_page_once() -> None:
    named = named_pages()
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert len(named) == len(set(named))
    assert set(named) == there


def test_every_include_and_link_leads_somewhere(hooks: ModuleType) -> None:
    for page in named_pages():
        text = hooks.expanded((DOCS / page).read_text(encoding="utf-8"), page)
        assert "<!-- include" not in text
        assert "<!-- docstring" not in text
        for target in re.findall(r"\]\(([^()\s:#]+\.md)[^()\s]*\)", BLOCK.sub("", text)):
            assert (DOCS / page).parent.joinpath(target).resolve().is_file(), (page, target)


@pytest.mark.parametrize(
    "wrong",
    [
        "[a](nowhere.md)",
        "[a](../../outside.md)",
        "<!-- include README.md: No such heading -->",
        "<!-- include nowhere.md -->",
        "<!-- docstring tests/conftest.txt -->",
    ],
)
def test_what_leads_nowhere_stops_the_build(hooks: ModuleType, wrong: str) -> None:
    with pytest.raises(hooks.BrokenLink):
        hooks.expanded(f"# A page\n\n{wrong}\n", "index.md")


def test_links_of_included_texts_lead_where_they_led(hooks: ModuleType) -> None:
    asked = "[a](docs/design/005-sweeps.md) [b](data/README.md#images) [Makefile](Makefile)"
    found = hooks.with_links(asked, REPOSITORY / "README.md", "results/persona.md")
    assert found == "[a](../design/005-sweeps.md) [b](../datasets.md) `Makefile`"
    code = "```\n[a](nowhere)\n```"
    assert hooks.with_links(code, REPOSITORY / "README.md", "index.md") == code


def cell(outputs: list[dict[str, object]], count: int | None = 1) -> dict[str, object]:
    return {"cell_type": "code", "source": "1\n", "execution_count": count, "outputs": outputs}


def test_a_notebook_is_shown_with_what_came_out(hooks: ModuleType) -> None:
    text = {"cell_type": "markdown", "source": ["# A title\n", "\n", "See [a](../api.md)."]}
    printed = {"output_type": "stream", "text": ["```\n", "two\n"]}
    drawn = {"output_type": "display_data", "data": {"image/png": "ab\nc=", "text/plain": "x"}}
    made = {"pal": {"executed": "2026-11-26", "seconds": 3}}
    content = {"metadata": made, "cells": [text, cell([printed, drawn])]}
    place = DOCS / "notebooks" / "audit.ipynb"
    shown = hooks.notebook(content, place, "notebooks/audit.md")
    assert shown.startswith("# A title\n\nExecuted on 2026-11-26 in 3 s: [audit.ipynb]")
    assert "See [a](../api.md)." in shown
    assert "````python\n1\n````\n\n````text\n```\ntwo\n````" in shown
    assert '<img alt="A title" src="data:image/png;base64,abc=">' in shown
    failed = {"output_type": "error", "ename": "ValueError", "evalue": "no"}
    for wrong, told in ((cell([failed]), "ValueError: no"), (cell([], None), "not executed")):
        with pytest.raises(hooks.BrokenLink, match=told):
            hooks.notebook({**content, "cells": [text, wrong]}, place, "notebooks/audit.md")


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    for path in [*(DOCS / page for page in PAGES), REPOSITORY / "README.md"]:
        for language, code in BLOCK.findall(path.read_text(encoding="utf-8")):
            if language == kind:
                yield path.name, code


def test_python_on_pages_imports_what_there_is() -> None:
    seen = 0
    for page, code in blocks("python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pal"):
                module = importlib.import_module(str(node.module))
                for name in node.names:
                    seen += 1
                    if not hasattr(module, name.name):
                        importlib.import_module(f"{node.module}.{name.name}")
            elif isinstance(node, ast.Import):
                for name in node.names:
                    if name.name.startswith("pal."):
                        assert importlib.util.find_spec(name.name), (page, name.name)
    assert seen > 3


def test_both_stages_in_python_run(capsys: pytest.CaptureFixture[str]) -> None:
    code = next(code for page, code in blocks("python") if page == "api.md")
    exec(compile(code, "api.md", "exec"), {})
    assert 0.4 < float(capsys.readouterr().out.strip()) <= 1.0
    assert Path("runs/mine/head.json").is_file()


def test_commands_on_pages_have_the_options_that_are_typed() -> None:
    root = typer.main.get_command(app)
    seen = 0
    for page, code in blocks(""):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] != "pal":
                continue
            seen += 1
            command, rest = root, words[1:]
            while isinstance(command, click.Group) or hasattr(command, "commands"):
                assert rest, (page, line)
                command = command.commands[rest.pop(0)]
            known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}
            typed = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert typed <= known, (page, line)
    assert seen > 20


@pytest.mark.slow
def test_the_site_is_built_and_asks_nobody(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    for page in tmp_path.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"', html)
        loaded += re.findall(
            r'<link[^>]*rel="(?:stylesheet|icon|preconnect)"[^>]*href="([^"]+)"', html
        )
        assert not [one for one in loaded if one.startswith(("http", "//"))], page
    assert "sum_k w_k G_k" in (tmp_path / "heads.html").read_text(encoding="utf-8")
    assert "from_pretrained" in (tmp_path / "api.html").read_text(encoding="utf-8")
