"""The tests of tests/test_gpu.py on a device: features, heads, adapted users and rewards are those
of the CPU.

    python benchmarks/gpu_equal.py OUT.json [--device cuda] [--small]
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from gpu_sizes import Found, options_of

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> int:
    options = options_of(__doc__)
    found = Found(options.out)
    found.table("`pytest tests/test_gpu.py`", "device", "tests", "what pytest says")
    name = "cuda" if options.device.startswith("cuda") else "cpu"
    chosen = ["-k", f"{name} and llama" if options.small else name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    with tempfile.TemporaryDirectory() as folder:  # what lies in a checkout would hide pal's parts
        ran = subprocess.run(
            [*command, str(REPOSITORY / "tests" / "test_gpu.py"), "-c",
             str(REPOSITORY / "pyproject.toml")],
            cwd=folder, env=os.environ, capture_output=True, text=True, check=False,
        )  # fmt: skip
    print(ran.stdout[-4000:], ran.stderr[-2000:])
    last = ran.stdout.strip().splitlines()[-1] if ran.stdout.strip() else "nothing"
    count = re.search(r"(\d+) passed", last)
    found.row(options.device, count[1] if count else "0", last.strip("= "))
    return ran.returncode


if __name__ == "__main__":
    raise SystemExit(main())
