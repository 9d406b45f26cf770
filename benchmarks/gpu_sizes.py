"""What the parts of gpu.py share: options, what a part has found so far, rates, own data."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pal.train.probe import choose_device

Table = list[list[str]]
SIZE, SMALL = 8192, 256


def options_of(description: str | None) -> argparse.Namespace:
    """Return what gpu.py tells a part."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    found = parser.parse_args()
    found.out = found.out.resolve()
    choose_device(found.device)  # before its first product
    return found


@dataclass
class Found:
    """The tables of a part, written whenever a row is added."""

    out: Path
    tables: list[tuple[str, Table]] = field(default_factory=list)

    def table(self, told: str, *columns: str) -> None:
        self.tables.append((told, [list(columns)]))

    def row(self, *cells: object) -> None:
        self.tables[-1][1].append([str(cell) for cell in cells])
        self.out.write_text(json.dumps(self.tables), encoding="utf-8")
        print(*cells, sep=" | ", flush=True)


def fastest_rate(device: str, dtype: torch.dtype, small: bool) -> float:
    """Return the operations per second of a square product."""
    from pal.embed.peak import matrix_rate

    return matrix_rate(device, dtype, SMALL if small else SIZE)


def wait_for(device: str) -> None:
    """Wait until a device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: str, times: int = 1) -> float:
    """Return the seconds of some work, the fastest of a few."""
    found = []
    for _ in range(times):
        wait_for(device)
        began = time.perf_counter()
        work()
        wait_for(device)
        found.append(time.perf_counter() - began)
    return min(found)


def timed_shards(runner: Any, tasks: Sequence[Any]) -> tuple[list[Any], float]:
    """Encode a shard and then, timed, the others, as stage one does: reading, copying and writing
    included. Return their receipts and the seconds."""
    for _ in runner.run(tasks[:1]):
        pass
    began = time.perf_counter()
    receipts = list(runner.run(tasks[1:]))
    return receipts, time.perf_counter() - began
