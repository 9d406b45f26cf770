"""The wheel, built and installed in a clean environment outside the checkout, runs the demo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_runs_the_demo_in_a_clean_environment(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--outdir",
            str(tmp_path / "dist"),
            str(REPOSITORY),
        ],
        check=True,
    )
    wheel = next((tmp_path / "dist").glob("*.whl"))
    venv.create(tmp_path / "clean", with_pip=True)
    binaries = tmp_path / "clean" / "bin"
    pins = ["--constraint", str(REPOSITORY / "constraints.txt")]
    subprocess.run([binaries / "pip", "install", "--quiet", *pins, f"{wheel}[offline]"], check=True)
    done = subprocess.run(
        [binaries / "pal", "demo", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    accuracy = {
        (run["head"], run["k"]): run["test_seen"]["macro_accuracy"]
        for run in json.loads(done.stdout)["runs"]
    }
    for head in ("pal-a", "pal-b"):
        assert accuracy[head, 3] > accuracy[head, 1] + 0.15


def test_the_oldest_versions_that_are_allowed_are_those_that_were_tested() -> None:
    """If this fails: make versions, or allow what the table has."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested_extras = ("offline", "optuna", "ray", "serve", "tensorboard", "wandb")
    extras = [project["optional-dependencies"][extra] for extra in tested_extras]
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    plain = [line.partition(";")[0].lower().replace("_", "-") for line in lines]
    allowed = dict(line.split(">=") for line in plain)
    page = (REPOSITORY / "docs" / "results" / "versions.md").read_text(encoding="utf-8")
    table = page.partition("\nTests ")[0]
    rows = re.findall(r"^\| ([\w-]+) \| (\d[\w.]*) \|", table, re.MULTILINE)
    tested = {name: padded(version) for name, version in rows if name in allowed}
    assert tested == {name: padded(version) for name, version in allowed.items()}


def padded(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in version.split(".")]
    return (*numbers, *[0] * (3 - len(numbers)))
