"""The dependency rule, and what the command line loads before it has anything to do."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
OPEN_TO_ALL = {
    "cells", "chance", "cluster", "config", "dataset", "errors", "files", "hub", "items", "memory",
    "names", "outline", "probe", "records", "rows", "users",
}  # fmt: skip


def table_of_contributing() -> dict[str, set[str]]:
    """Return what each room may import, as the table of CONTRIBUTING.md says."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)/` \| [^|]+ \| ([^|]*) ?\|$", text, flags=re.MULTILINE)
    return {
        room: {name.strip() for name in allowed.split(",") if name.strip()}
        for room, allowed in rows
        if room != "pal"
    }


KNOWS = table_of_contributing()


def code_of(folder: str) -> list[Path]:
    """Return the files of code of a room, without the bytes that lie in subfolders of some."""
    packages = [path.parent for path in (REPOSITORY / folder).rglob("__init__.py")]
    return [file for package in packages for file in package.glob("*.py")]


def imported_folders(file: Path) -> set[str]:
    """Return the subpackages of pal that a file imports."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            assert node.module is not None
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names if node.module == "pal"]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("pal.")}


def test_the_table_names_every_room() -> None:
    rooms = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert set(KNOWS) == rooms - {"pal"}


@pytest.mark.parametrize("folder", KNOWS)
def test_folder_imports_only_what_it_may_know(folder: str) -> None:
    allowed = KNOWS[folder] | {folder} | OPEN_TO_ALL
    for file in code_of(folder):
        assert imported_folders(file) <= allowed, file


def test_pal_knows_rooms_only_where_the_user_comes_in() -> None:
    """Only the pipeline, the command line and the doctor open rooms.

    The settings of a dataset live with its source, so pal.config.data looks there, late.
    """
    doors = {"pipeline.py", "doctor.py", "__main__.py"}
    rooms = set(KNOWS)
    for file in (REPOSITORY / "pal").glob("*.py"):
        if file.name not in doors:
            assert not imported_folders(file) & (rooms | {"cli", "pipeline"}), file
    for file in (REPOSITORY / "pal" / "config").glob("*.py"):
        allowed = {"data"} if file.name == "data.py" else set()
        assert imported_folders(file) & rooms <= allowed, file


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = (REPOSITORY / "pyproject.toml").read_text()
    for folder in KNOWS:
        for package in (REPOSITORY / folder).rglob("__init__.py"):
            name = ".".join(["pal", *package.parent.relative_to(REPOSITORY).parts])
            assert f'"{name}"' in listed, f"{name} would vanish from the wheel"


def printed(program: str, folder: Path | None = None) -> str:
    """Return what a program prints in a process of its own."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.strip()


def test_help_loads_no_heavy_library() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from pal.cli import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "heavy = ('torch', 'transformers', 'lightning', 'polars', 'pyarrow', 'numpy', 'pydantic'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    assert printed(program) == "[]"


def test_only_training_step_by_step_loads_lightning() -> None:
    """It takes seconds, which nobody waits for who evaluates, adapts, audits, sweeps or solves a
    head."""
    program = (
        "import sys; import pal.audit.report, pal.evaluate.adaptation, pal.evaluate.evaluation, "
        "pal.report.write, pal.reward.export, pal.sweep.run, pal.train.fit, pal.train.together; "
        "print([name for name in ('lightning', 'torchmetrics') if name in sys.modules])"
    )
    assert printed(program) == "[]"


def test_a_sweep_in_stacks_loads_no_library_that_takes_longer_than_its_steps(
    tmp_path: Path,
) -> None:
    program = (
        "import sys; from pal import pipeline; from pal.config import load; "
        "set_ = {'dataset': 'simulated', 'encoder': 'identity', 'data.simulated.users': 20, "
        "'train.epochs': 2, 'sweep.head': ['pal-a'], 'sweep.k': [1, 2], 'sweep.together': 2}; "
        "config = load(None, (), set_).config; pipeline.embed(config, tell=lambda _: None); "
        "summary = pipeline.sweep(config, report=lambda _: None); assert summary.failed == 0; "
        "slow = ('lightning', 'torchmetrics', 'torch._dynamo', 'sympy', 'scipy.stats'); "
        "print([name for name in slow if name in sys.modules])"
    )
    assert printed(program, tmp_path) == "[]"


def test_no_head_of_shapes_alone_loads_the_compiler_or_sympy() -> None:
    """Every head that is read from a file is built so first; the import would take a second."""
    program = (
        "import sys, torch; from pal.config import TrainConfig; "
        "from pal.train.build import build_head, heads; torch.set_default_device('meta'); "
        "[build_head(TrainConfig(head=name), 8, 3) for name in heads()]; "
        "print([name for name in ('torch._dynamo', 'sympy') if name in sys.modules])"
    )
    assert printed(program) == "[]"
