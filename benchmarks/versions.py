"""Do the oldest and the newest versions that pyproject.toml allows work? Tested in clean folders.

    python benchmarks/versions.py [lowest highest] [--python python3.13] [--keep FOLDER]

writes one file for each environment and Python into benchmarks/results/versions/, and a table of
all that are there into docs/results/versions.md. Needs uv (https://docs.astral.sh/uv), about 6 GB
of disk for each environment with CUDA's libraries, and minutes to download them.

lowest     every package that pyproject.toml names in its oldest allowed version, those that they
           need in their newest (uv's resolution lowest-direct)
highest    everything in its newest version

The wheel is built from the files that git knows, and installed with its extras; the tests import it
and nothing of the checkout. The tools of the tests are the newest in both. A Python of another
system runs this script there, with the same folder of results.
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
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "results" / "versions.md"
RESULTS = REPOSITORY / "benchmarks" / "results" / "versions"
RESOLUTIONS = {"lowest": "lowest-direct", "highest": "highest"}
EXTRAS = "offline,optuna,ray,serve,tensorboard,wandb"
"""without those that decide versions of the others (trl) and that no test imports (docs)"""
TOOLS = ("accelerate", "aiohttp", "httpx", "hypothesis", "pytest")
"""what tests import and nothing else brings; accelerate spreads a model over devices"""
TESTS = (
    "tests/test_config.py", "tests/test_cache.py", "tests/test_loggers.py", "tests/test_serve.py",
    "tests/test_embed.py", "tests/test_encoders.py", "tests/test_train.py",
)  # fmt: skip
"""where what we use of other packages is used: about a quarter of an hour on two busy cores"""


@dataclass(frozen=True)
class Tested:
    """What came out in one environment."""

    name: str
    python: str
    date: str
    tests: list[str]
    """files of tests"""
    versions: dict[str, str]
    """of the packages that pyproject.toml names, by name"""
    passed: int
    skipped: int
    failed: list[str]
    """names of tests"""
    seconds: float

    def save(self) -> None:
        """Write it for the table; a result of the same name and Python is replaced."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        file = RESULTS / f"{self.name}-{self.python}.json"
        file.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def saved() -> list[Tested]:
    """Return what was ever saved, the oldest versions and the oldest Python first."""
    files = RESULTS.glob("*.json")
    found = [Tested(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return sorted(found, key=lambda one: (one.name != "lowest", numbers(one.python)))


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


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


def make_environment(name: str, python: str, folder: Path, wheel: Path) -> Path:
    """Return the folder of commands of an environment, made anew.

    What the wheel needs is read from pyproject.toml: what a wheel names itself counts as indirect
    for uv, and would be taken in its newest version.
    """
    uv("venv", "--quiet", "--clear", "--python", python, folder)
    made = folder / "bin" / "python"
    install = ("pip", "install", "--quiet", "--python", made)
    extras = [f"--extra={extra}" for extra in EXTRAS.split(",")]
    resolution = f"--resolution={RESOLUTIONS[name]}"
    uv(*install, resolution, "--requirements", REPOSITORY / "pyproject.toml", *extras)
    uv(*install, "--no-deps", wheel)
    uv(*install, *TOOLS)
    uv("pip", "check", "--python", made)
    return folder / "bin"


def tested(name: str, commands: Path, tests: Sequence[str]) -> Tested:
    """Run the tests with the commands of an environment; warnings are none of its errors."""
    report = commands.parent / "tests.xml"
    report.unlink(missing_ok=True)
    # not python -m pytest: that would put the checkout before the wheel
    command = [commands / "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]
    command.append("--continue-on-collection-errors")
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
    return Tested(
        name=name,
        python=version_of(commands / "python"),
        date=datetime.now(UTC).date().isoformat(),
        tests=[Path(test).stem for test in tests],
        versions={package: found[package] for package in named_packages() if package in found},
        passed=passed,
        skipped=skipped,
        failed=failed,
        seconds=float(suite.get("time", 0)),
    )


def version_of(python: Path) -> str:
    """Return the three numbers of a Python."""
    asked = [python, "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def page(results: Sequence[Tested]) -> str:
    """Return the table as Markdown, an environment a column."""
    lines = [
        "# Oldest and newest versions",
        "",
        "Written by `python benchmarks/versions.py`, a column for each environment. `lowest` has "
        "every package that pyproject.toml names in its oldest allowed version and what those need "
        "in the newest, `highest` everything in the newest. The wheel was installed with the "
        f"extras {EXTRAS.replace(',', ', ')}. The tests that are run by default are a choice, of a "
        "quarter of an hour on two busy cores; `--tests tests` runs all.",
        "",
        row("", [one.name for one in results]),
        "|---|" + "---|" * len(results),
        row("Python", [one.python for one in results]),
        row("date", [one.date for one in results]),
        row("tests passed", [one.passed for one in results]),
        row("skipped", [one.skipped for one in results]),
        row("failed", [len(one.failed) for one in results]),
        row("seconds", [round(one.seconds) for one in results]),
    ]
    for package in dict.fromkeys(name for one in results for name in one.versions):
        lines.append(row(package, [one.versions.get(package, "-") for one in results]))
    lines.append("")
    for tests in dict.fromkeys(tuple(one.tests) for one in results):
        whose = ", ".join(f"{o.name} {o.python}" for o in results if tuple(o.tests) == tests)
        lines += [f"Tests of {whose}: {', '.join(tests)}.", ""]
    for one in results:
        lines += [f"Failed with {one.name}, {one.python}: `{name}`\n" for name in one.failed]
    return "\n".join(lines).rstrip() + "\n"


def row(title: str, cells: Sequence[object]) -> str:
    return " | ".join([f"| {title}".rstrip(), *map(str, cells)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="lowest, highest; default: both")
    parser.add_argument("--python", default=sys.executable, help="which Python; default: this one")
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
        failed = False
        for name in names:
            commands = make_environment(name, asked.python, folder / name, wheel)
            result = tested(name, commands, asked.tests)
            result.save()
            failed |= bool(result.failed)
    by_hand = PAGE.read_text(encoding="utf-8").partition("\n## ")  # stays below the table
    PAGE.write_text(page(saved()) + "".join(by_hand[1:]), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
    sys.exit(failed)


if __name__ == "__main__":
    main()
