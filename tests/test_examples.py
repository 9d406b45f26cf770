"""The examples run as they stand, here with a small encoder and little training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_rank_for_two_users_prints_two_rankings() -> None:
    small = [
        "encoder=tiny-text",
        "train.epochs=1",
        "data.demo.users=6",
        "data.demo.pairs_per_user=10",
    ]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "examples/rank_for_two_users.py", *small],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == [
        "seen-00000",
        "seen-00001",
    ]
    assert len(lines) == 8


def test_opposed_users_rank_statements_in_opposite_orders(persona_source: Path) -> None:
    example = REPOSITORY / "examples/rewards_for_opposed_users.py"
    small = [
        "train.epochs=20",
        "data.persona.limit=120",
        "data.persona.users=20",
        "data.persona.unseen_users=2",
        "data.persona.validation_users=2",
        "data.persona.pairs_per_user=80",
        "data.persona.validation_pairs_per_user=10",
        "data.persona.test_pairs_per_user=10",
        "embed.minilm.max_length=64",
    ]
    done = subprocess.run(
        [sys.executable, example, persona_source, *small], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(" ")]
    assert len(lines) == 16
    newcomer, opposite = (
        {line[10:].strip(): float(line[:10]) for line in lines[part : part + 8]} for part in (0, 8)
    )
    for statement in ("I enjoy going to art museums", "I love painting"):
        assert newcomer[statement] > 0 > opposite[statement]
    assert newcomer["I have no interest in art"] < 0 < opposite["I have no interest in art"]
