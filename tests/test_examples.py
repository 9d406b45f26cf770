"""The examples run as they stand, here with a small encoder and little training."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


class Run:
    """Runs an example as a program, in this process: another one would load the libraries anew."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, example: str, *arguments: str) -> list[str]:
        """Return the lines that it prints."""
        place = str(REPOSITORY / "examples" / example)
        self.monkeypatch.setattr("sys.argv", [place, *arguments])
        runpy.run_path(place, run_name="__main__")
        return self.capsys.readouterr().out.splitlines()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capsys)


def test_rank_for_two_users_prints_two_rankings(run: Run) -> None:
    small = [
        "encoder=tiny-text",
        "train.epochs=1",
        "data.demo.users=6",
        "data.demo.limit=300",
        "data.demo.validation_pairs_per_user=10",
        "data.demo.test_pairs_per_user=10",
        "data.demo.pairs_per_user=10",
    ]
    lines = run("rank_for_two_users.py", *small)
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == [
        "seen-00000",
        "seen-00001",
    ]
    assert len(lines) == 8


def test_opposed_users_rank_statements_in_opposite_orders(run: Run, persona_source: Path) -> None:
    small = [
        "train.epochs=20",
        "data.persona.limit=80",
        "data.persona.users=20",
        "data.persona.unseen_users=2",
        "data.persona.validation_users=2",
        "data.persona.pairs_per_user=80",
        "data.persona.validation_pairs_per_user=5",
        "data.persona.test_pairs_per_user=5",
        "embed.minilm.max_length=64",
    ]
    told = run("rewards_for_opposed_users.py", str(persona_source), *small)
    lines = [line for line in told if line.startswith(" ")]
    assert len(lines) == 16
    newcomer, opposite = (
        {line[10:].strip(): float(line[:10]) for line in lines[part : part + 8]} for part in (0, 8)
    )
    for statement in ("I enjoy going to art museums", "I love painting"):
        assert newcomer[statement] > 0 > opposite[statement]
    assert newcomer["I have no interest in art"] < 0 < opposite["I have no interest in art"]
