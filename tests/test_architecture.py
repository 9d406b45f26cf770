"""The dependency rule, and what the command line loads before it has anything to do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
OPEN_TO_ALL = {"chance", "config", "errors", "files", "tables"}
KNOWS: dict[str, set[str]] = {
    "data": set(),
    "cache": set(),
    "embed": {"data", "cache"},
    "train": {"cache"},
    "evaluate": {"train", "cache"},
    "reward": {"train", "embed"},
}


def imported_folders(file: Path) -> set[str]:
    """Return the subpackages of pal that a file imports."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "pal"]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("pal.")}


@pytest.mark.parametrize("folder", KNOWS)
def test_folder_imports_only_what_it_may_know(folder: str) -> None:
    allowed = KNOWS[folder] | {folder} | OPEN_TO_ALL
    for file in (REPOSITORY / folder).rglob("*.py"):
        if file.relative_to(REPOSITORY / folder).parts[0] in {"raw"}:
            continue
        assert imported_folders(file) <= allowed, file


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = (REPOSITORY / "pyproject.toml").read_text()
    for folder in KNOWS:
        for package in (REPOSITORY / folder).rglob("__init__.py"):
            name = ".".join(["pal", *package.parent.relative_to(REPOSITORY).parts])
            assert f'"{name}"' in listed, f"{name} would vanish from the wheel"


def test_help_loads_no_heavy_library() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from pal.cli import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "heavy = ('torch', 'transformers', 'lightning', 'polars', 'pyarrow', 'numpy', 'pydantic'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
