"""Everything that is claimed of a GPU, in one command of under nine minutes.

    python benchmarks/gpu.py FILE [--parts text images heads sweep equal] [--seconds 530]

Needs a GPU, Python 3.12, torch, transformers, lightning and the packages that pal itself needs; no
network. Models have random weights of the real shapes, so nothing here says how good they are. The
table goes to FILE after every part, so what ended the run early loses only the rest. A trial on a
CPU, with models and data of no size:

    python benchmarks/gpu.py FILE --device cpu --small
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from gpu_sizes import fastest_rate

from pal.evaluate.report import as_markdown

HERE = Path(__file__).resolve().parent
PARTS = {
    "text": ("Stage one, texts", "gpu_text.py", 210),
    "images": ("Stage one, images", "gpu_images.py", 100),
    "heads": ("An epoch", "gpu_heads.py", 90),
    "sweep": ("A sweep", "gpu_sweep.py", 90),
    "equal": ("What a GPU gives is what a CPU gives", "gpu_equal.py", 60),
}
"""title, script and most seconds of each part"""
ABSENT = {"flash_attn": "FlashAttention-2", "vllm": "vLLM"}
"""peers that are measured where they are installed, and named where they are not"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a trial of the script")
    parser.add_argument("--seconds", type=float, default=530.0, help="of all parts")
    options = parser.parse_args()
    out, ends = options.file.resolve(), time.monotonic() + options.seconds
    out.parent.mkdir(parents=True, exist_ok=True)
    sections = [head(options.device, options.small)]
    out.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    failed = 0
    for part in options.parts:
        began = time.monotonic()
        text, is_whole = run(part, options.device, options.small, min(ends - began, PARTS[part][2]))
        failed += not is_whole
        sections.append(f"## {PARTS[part][0]}\n\n{text}\n\n{time.monotonic() - began:.0f} s.")
        out.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
        print(sections[-1], flush=True)
    return 1 if failed else 0


def head(device: str, small: bool) -> str:
    """Return the top of the page: the machine, what it can do, and what is not on it."""
    is_gpu = device.startswith("cuda")
    card = torch.cuda.get_device_name() if is_gpu else platform.machine()
    rates = [
        f"{name} {fastest_rate(device, dtype, small) / 1e12:.3g}"
        for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32))
    ]
    missing = [name for module, name in ABSENT.items() if importlib.util.find_spec(module) is None]
    import transformers

    trial = "**A trial: models and data of no size, these figures say nothing.** " if small else ""
    absent = f" Not installed there, so not measured: {', '.join(missing)}." if missing else ""
    return (
        f"# On a GPU\n\n{trial}{datetime.now(UTC):%Y-%m-%d}, `python benchmarks/gpu.py FILE`, "
        f"{card}, {os.cpu_count()} CPU cores, torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Weights are random, of the real shapes. Products of square "
        f"matrices of random numbers reach {' and '.join(rates)} TFLOP/s (float32 without TF32); "
        "`share` is the operations that the "
        f"weights of a model need for the real tokens, over time and the bfloat16 rate.{absent}"
    )


def run(part: str, device: str, small: bool, seconds: float) -> tuple[str, bool]:
    """Run a part in a process of its own; return its tables, and whether it went through."""
    if seconds < 1:
        return "Not run: the time was up.", False
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.json"
        command = [sys.executable, str(HERE / PARTS[part][1]), str(found), "--device", device]
        try:
            code = subprocess.run(
                [*command, *(["--small"] if small else [])], timeout=seconds, check=False
            ).returncode
            ended = "" if code == 0 else f"\n\nIt ended with exit code {code}."
        except subprocess.TimeoutExpired:
            ended = "\n\nThe time was up."
        tables = json.loads(found.read_text()) if found.exists() else []
    text = "\n\n".join(f"{told}\n\n{as_markdown(table)}" for told, table in tables)
    return text + ended, not ended


if __name__ == "__main__":
    raise SystemExit(main())
