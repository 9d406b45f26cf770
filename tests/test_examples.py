"""The examples run as they stand, here with a small encoder and little training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_rank_for_two_users_prints_two_rankings() -> None:
    small = ["encoder=tiny-text", "train.epochs=1", "data.demo.users=6", "data.demo.pairs_per_user=10"]
    done = subprocess.run(
        [sys.executable, REPOSITORY / "examples/rank_for_two_users.py", *small], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["seen-00000", "seen-00001"]
    assert len(lines) == 8
