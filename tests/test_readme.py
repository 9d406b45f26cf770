"""The README promises only what is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

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
