"""Do the oldest and the newest versions that pyproject.toml allows work? Tested in clean folders.

    python benchmarks/versions.py [lowest highest] [--keep FOLDER] [--tests tests/test_train.py ...]

writes docs/results/versions.md. Needs uv (https://docs.astral.sh/uv), about 6 GB of disk for each
environment with CUDA's libraries, and minutes to download them.

lowest     every package that pyproject.toml names in its oldest allowed version, those that they
           need in their newest (uv's resolution lowest-direct)
highest    everything in its newest version

The wheel is built from the files that git knows, and installed with its extras; the tests import it
and nothing of the checkout. The tools of the tests are the newest in both.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "results" / "versions.md"
RESOLUTIONS = {"lowest": "lowest-direct", "highest": "highest"}
EXTRAS = "offline,optuna,ray,serve,tensorboard,wandb"
"""without those that decide versions of the others (trl) and that no test imports (docs)"""
TOOLS = ("accelerate", "aiohttp", "httpx", "hypothesis", "pytest")
"""what tests import and nothing else brings; accelerate spreads a model over devices"""
TESTS = (
    "tests/test_cli.py", "tests/test_config.py", "tests/test_data.py", "tests/test_cache.py",
    "tests/test_embed.py", "tests/test_encoders.py", "tests/test_heads.py", "tests/test_train.py",
    "tests/test_loggers.py", "tests/test_stack.py", "tests/test_sweep.py",
    "tests/test_evaluate.py", "tests/test_adapt.py", "tests/test_audit.py",
    "tests/test_report.py", "tests/test_reward.py", "tests/test_serve.py",
    "tests/test_first_hour.py",
)  # fmt: skip


@dataclass(frozen=True)
class Tested:
    """What came out in one environment."""

    name: str
    versions: dict[str, str]
    """of the packages that pyproject.toml names, by name"""
    passed: int
    skipped: int
    failed: list[str]
    """names of tests"""
    seconds: float


def named_packages() -> list[str]:
    """Return the packages that pyproject.toml names, with all extras, in its order."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    chosen = [project["optional-dependencies"][extra] for extra in EXTRAS.split(",")]
    lines = [*project["dependencies"], *(line for extra in chosen for line in extra)]
    names = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    return [name.lower().replace("_", "-") for name in names]


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the files that git knows."""
    copy = folder / "source"
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, copy / name)
    uv("build", "--wheel", "--out-dir", folder / "dist", copy)
    return next((folder / "dist").glob("*.whl"))


def uv(*words: object) -> str:
    """Run uv and return what it prints; ends the program where it fails."""
    command = [sys.executable, "-m", "uv", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def make_environment(name: str, folder: Path, wheel: Path) -> Path:
    """Return the folder of commands of an environment, made anew.

    What the wheel needs is read from pyproject.toml: what a wheel names itself counts as indirect
    for uv, and would be taken in its newest version.
    """
    uv("venv", "--quiet", "--clear", "--python", sys.executable, folder)
    python = folder / "bin" / "python"
    install = ("pip", "install", "--quiet", "--python", python)
    extras = [f"--extra={extra}" for extra in EXTRAS.split(",")]
    resolution = f"--resolution={RESOLUTIONS[name]}"
    uv(*install, resolution, "--requirements", REPOSITORY / "pyproject.toml", *extras)
    uv(*install, "--no-deps", wheel)
    uv(*install, *TOOLS)
    uv("pip", "check", "--python", python)
    return folder / "bin"


def tested(name: str, commands: Path, tests: Sequence[str]) -> Tested:
    """Run the tests with the commands of an environment; warnings are none of its errors."""
    report = commands.parent / "tests.xml"
    report.unlink(missing_ok=True)
    # not python -m pytest: that would put the checkout before the wheel
    command = [commands / "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([*command, f"--junitxml={report}", *tests], cwd=REPOSITORY, env=environment)
    if not report.is_file():
        sys.exit(f"{name}: pytest wrote no report")
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    failed, skipped = [], 0
    for case in suite.iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            file = case.get("classname", "").removeprefix("tests.")
            failed.append(f"{file}::{case.get('name')}")
        skipped += case.find("skipped") is not None
    passed = int(suite.get("tests", 0)) - len(failed) - skipped
    listed = uv("pip", "list", "--format=json", "--python", commands / "python")
    found = {one["name"].lower().replace("_", "-"): one["version"] for one in json.loads(listed)}
    versions = {package: found[package] for package in named_packages() if package in found}
    return Tested(name, versions, passed, skipped, failed, float(suite.get("time", 0)))


def page(results: Sequence[Tested], tests: Sequence[str]) -> str:
    """Return the table as Markdown."""
    now = datetime.now(UTC).date().isoformat()
    python = ".".join(map(str, sys.version_info[:3]))
    lines = [
        "# Oldest and newest versions",
        "",
        f"`python benchmarks/versions.py {' '.join(one.name for one in results)}`, {now}, Python "
        f"{python}. `lowest` has every package that pyproject.toml names in its oldest allowed "
        "version and what those need in the newest, `highest` everything in the newest. The wheel "
        f"was installed with the extras {EXTRAS.replace(',', ', ')}.",
        "",
        "| | " + " | ".join(one.name for one in results) + " |",
        "|---|" + "---|" * len(results),
        "| tests passed | " + " | ".join(str(one.passed) for one in results) + " |",
        "| skipped | " + " | ".join(str(one.skipped) for one in results) + " |",
        "| failed | " + " | ".join(str(len(one.failed)) for one in results) + " |",
        "| seconds | " + " | ".join(f"{one.seconds:.0f}" for one in results) + " |",
    ]
    for package in dict.fromkeys(name for one in results for name in one.versions):
        lines.append(
            f"| {package} | " + " | ".join(o.versions.get(package, "-") for o in results) + " |"
        )
    lines += ["", f"Tests: {', '.join(Path(test).stem for test in tests)}.", ""]
    for one in results:
        lines += [f"Failed with {one.name}: `{name}`\n" for name in one.failed]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="lowest, highest; default: both")
    parser.add_argument("--keep", type=Path, help="folder for the environments, which stay there")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="files of tests")
    asked = parser.parse_args()
    names = asked.names or list(RESOLUTIONS)
    if unknown := set(names) - set(RESOLUTIONS):
        parser.error(f"no environment is called {', '.join(unknown)}; {', '.join(RESOLUTIONS)} are")
    if importlib.util.find_spec("uv") is None:
        sys.exit("this needs uv: pip install uv, or make versions")
    with TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        wheel = build_wheel(Path(temporary))
        results = []
        for name in names:
            commands = make_environment(name, folder / name, wheel)
            results.append(tested(name, commands, asked.tests))
    PAGE.write_text(page(results, asked.tests), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
    sys.exit(any(one.failed for one in results))


if __name__ == "__main__":
    main()
