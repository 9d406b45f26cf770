"""The README promises only what is there."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from pal.cli.app import app

REPOSITORY = Path(__file__).resolve().parents[1]


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(
        re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE)
    )
    named = set(re.findall(r"make ([a-z-]+)", (REPOSITORY / "README.md").read_text()))
    assert named
    assert named <= targets


def test_every_file_the_readme_names_exists() -> None:
    text = (REPOSITORY / "README.md").read_text()
    for path in re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(
        r"`((?:benchmarks|examples|docs)/[\w./-]+)`", text
    ):
        assert (REPOSITORY / path).exists(), path


def test_bare_make_lists_the_targets() -> None:
    listing = subprocess.run(
        ["make", "-s"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    for target in ("demo", "embed", "train", "test", "check"):
        assert re.search(rf"^{target}\b", listing, flags=re.MULTILINE)


def test_options_of_train_do_not_reach_embed_but_settings_do() -> None:
    arguments = "--head pal-a --k 1 --set train.epochs=2 --set data.demo.groups=2"
    dry = ["make", "-n", "--old-file=.venv/ready", "train", f"ARGS={arguments}"]
    commands = subprocess.run(
        dry, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    embed, train = (
        next(line for line in commands if f"pal {name} " in line) for name in ("embed", "train")
    )
    assert "--head" not in embed
    assert embed.endswith("--set train.epochs=2 --set data.demo.groups=2")
    assert train.endswith(arguments)


def own_data() -> tuple[str, list[str]]:
    """Return the settings and the three commands of the README's section on own data."""
    text = (REPOSITORY / "README.md").read_text()
    section = text[text.index("Your own answers") :]
    settings, commands = re.findall(r"```(?:yaml)?\n(.*?)```", section, flags=re.DOTALL)[:2]
    return settings, [line.partition("#")[0].strip() for line in commands.splitlines()]


def write_own_data(settings: str) -> None:
    """Write files of 24 people with the columns that the README names."""
    people, things = range(24), range(40)
    columns = {
        name: line.split("# ")[1].split(":")[0].split(",")
        for name in ("town", "chats")
        for line in settings.splitlines()
        if line.strip().startswith(f"{name}:")
    }
    votes = [[p, f"Statement {n}.", ("agree", "disagree")[(p + n) % 2]]
             for p, n in itertools.product(people, things)]  # fmt: skip
    stars = [[p, f"Question {n // 2}?", f"Answer {n}.", 1 + (p + n) % 5]
             for p, n in itertools.product(people, things)]  # fmt: skip
    for file, header, rows in (
        ("votes.csv", columns["town"], votes),
        ("stars.csv", columns["chats"], stars),
    ):
        with open(file, "w", newline="") as stream:
            csv.writer(stream).writerows([header, *rows])
    pairs = [
        {"user_id": p, "prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"}
        for p, n in itertools.product(people, things)
    ]
    Path("answers.jsonl").write_text("\n".join(map(json.dumps, pairs)))


@pytest.mark.parametrize("name", ["answers", "town", "chats"])
def test_the_three_commands_for_own_data_work(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**12))
    settings, commands = own_data()
    assert [command.split()[0] for command in commands] == ["pal", "make", "make"]
    write_own_data(settings)
    chosen = {**yaml.safe_load(settings), "encoder": "tiny-text", "train": {"epochs": 1}}
    Path("pipeline.yaml").write_text(yaml.safe_dump(chosen))
    for command in commands:
        arguments = shlex.split(command.replace("town", name))
        if arguments[0] == "make":
            dry = ["make", "-n", "-s", "--old-file=.venv/ready", *arguments[1:],
                   "ENCODER=tiny-text"]  # fmt: skip
            # variables that were given to `make test` are not for this one
            alone = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
            printed = subprocess.run(
                dry, cwd=REPOSITORY, env=alone, capture_output=True, text=True, check=True
            ).stdout
            arguments = shlex.split(
                next(line for line in printed.splitlines() if f"pal {arguments[1]} " in line)
            )
        done = CliRunner().invoke(app, arguments[1:])
        assert done.exit_code == 0, (command, done.output, done.exception)
    (run,) = Path("runs").iterdir()
    assert run.name.startswith(f"{name}-tiny-text-")
