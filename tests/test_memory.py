"""What a sweep over a large cache costs in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LARGE = [
    "--dataset", "simulated", "--encoder", "identity", "--set", "data.simulated.dim=1024",
    "--set", "data.simulated.users=2500", "--set", "embed.identity.store_dtype=float16",
]  # fmt: skip
SWEEP = [
    "--set", "sweep.k=[1,2]", "--set", "sweep.seed=[0,1]", "--set", "train.mlp=mlp2-relu-dropout0",
    "--set", "train.latent_dim=16", "--set", "train.epochs=1",
]  # fmt: skip
ALLOWED = 1.5e9


@pytest.mark.slow
def test_a_sweep_needs_its_cache_once_and_no_more_than_a_fixed_amount(tmp_path: Path) -> None:
    def pal(*arguments: str) -> dict[str, object]:
        command = [sys.executable, "-m", "pal", *arguments, "--json"]
        done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout)

    folder = tmp_path / str(pal("embed", *LARGE)["dir"])
    cache = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
    assert cache > 2e9
    sweep = [sys.executable, "-m", "pal", "sweep", *LARGE, *SWEEP]
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *sweep], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
    )
    peak = int(done.stdout) * 1024
    print(f"cache {cache / 1e9:.2f} GB, peak {peak / 1e9:.2f} GB")
    assert peak < cache + ALLOWED
