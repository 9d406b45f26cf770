"""Every test runs in an empty working directory, with no network and small settings at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from pal.config import Config, load

REPOSITORY = Path(__file__).resolve().parents[1]
PERSONA = REPOSITORY.parent / "shared" / "persona"

SMALL: dict[str, Any] = {
    "encoder": "tiny-text",
    "train.epochs": 2,
    "data.demo.limit": 200,
    "data.demo.groups": 1,
}
SMALL_GROUPS = {
    "users": 6, "unseen_users": 4, "validation_users": 2,
    "pairs_per_user": 10, "validation_pairs_per_user": 5, "test_pairs_per_user": 5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def configure() -> Callable[..., Config]:
    """Return a function that resolves small settings with dotted keys on top:
    ``configure({"train.k": 3})``."""

    def build(options: dict[str, Any] | None = None) -> Config:
        sizes = {
            f"data.{name}.{key}": value
            for name in ("demo", "persona", "simulated")
            for key, value in SMALL_GROUPS.items()
        }
        return load(None, (), {**SMALL, **sizes, **(options or {})}).config

    return build


@pytest.fixture
def persona_source() -> Path:
    if not PERSONA.is_dir():
        pytest.skip(f"persona statements are not at {PERSONA}")
    return PERSONA


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not PERSONA.is_dir():
        terminalreporter.write_line(
            f"The tests on real persona statements were skipped: nothing at {PERSONA}."
        )
