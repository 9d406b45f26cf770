"""Rows per second and latency of ``pal serve``, beside the same model scoring in batches.

python benchmarks/serve.py EXPORT [seconds]

Each kind of load and the scoring offline take turns, so that whatever else the machine does
concerns all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import aiohttp
import numpy as np

from pal.reward import RewardModel

TOKEN = "benchmark"
ROUNDS, OFFLINE_ROWS = 4, 1024
SHAPES = {"64 connections, 1 row a request": (64, 1), "8 connections, 64 rows a request": (8, 64)}
"""how callers differ: many users at once, or a trainer that sends its rollouts"""


@dataclass
class Load:
    """What a client met."""

    latencies: list[float]
    statuses: Counter[int]
    seconds: float

    def add(self, other: Load) -> None:
        self.latencies += other.latencies
        self.statuses += other.statuses
        self.seconds += other.seconds

    def row(self, rows: int, offline: float) -> str:
        served = len(self.latencies) * rows / self.seconds
        p50, p99 = np.percentile(np.array(self.latencies) * 1000, [50, 99])
        statuses = ", ".join(f"{code}: {count:,}" for code, count in sorted(self.statuses.items()))
        return f"{statuses} | {served:.0f} | {p50:.0f} ms, {p99:.0f} ms | {served / offline:.2f}"


def body(label: str, number: int, rows: int) -> dict[str, list[str]]:
    """Return texts that no other request has, so that nothing is encoded once for two rows."""
    texts = range(number * rows, (number + 1) * rows)
    return {
        "prompts": [f"question {label}{n}" for n in texts],
        "responses": [f" answer {n}" for n in texts],
    }


@dataclass
class Served:
    """A ``pal serve`` of its own process."""

    address: str
    process: subprocess.Popen[bytes]


@contextmanager
def served(folder: str, *options: str) -> Iterator[Served]:
    """Run ``pal serve`` on an export until the block ends."""
    with tempfile.TemporaryDirectory() as place, open(f"{place}/log", "w+b") as log:
        command = [sys.executable, "-m", "pal", "serve", "--model", folder, "--port", "0"]
        store = f"serve.store={place}/users.sqlite"
        process = subprocess.Popen(
            [*command, "--token", TOKEN, "--set", store, *options], stderr=log
        )
        try:
            while (found := re.search(rb"http://\S+:\d+", Path(log.name).read_bytes())) is None:
                assert process.poll() is None, Path(log.name).read_text()
                time.sleep(0.1)
            yield Served(found.group().decode(), process)
        finally:
            process.terminate()
            process.wait(timeout=60)
            print(Path(log.name).read_text(), file=sys.stderr)


async def load(address: str, label: str, seconds: float, connections: int, rows: int) -> Load:
    found = Load([], Counter(), 0.0)
    began = time.perf_counter()

    async def one(number: int, http: aiohttp.ClientSession) -> None:
        while time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            async with http.post("/v1/score", json=body(label, number, rows)) as reply:
                await reply.read()
            found.statuses[reply.status] += 1
            if reply.status == 200:
                found.latencies.append(time.perf_counter() - sent)
            number += connections

    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(
        address, headers=headers, connector=aiohttp.TCPConnector(limit=0)
    ) as http:
        await asyncio.gather(*[one(number, http) for number in range(connections)])
    found.seconds = time.perf_counter() - began
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", help="folder of an export")
    parser.add_argument("seconds", nargs="?", type=float, default=30.0, help="of each kind of load")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    folder, seconds = arguments.export, arguments.seconds
    loads = {name: Load([], Counter(), 0.0) for name in SHAPES}
    model = RewardModel.from_pretrained(folder, device="cpu")
    offline_seconds = 0.0
    with served(folder) as server:
        for turn in range(-1, ROUNDS):  # the first warms up
            for name, (connections, rows) in SHAPES.items():
                length = seconds / ROUNDS if turn >= 0 else 2.0
                label = f"{turn} {connections} "
                found = asyncio.run(load(server.address, label, length, connections, rows))
                if turn >= 0:
                    loads[name].add(found)
                texts = body(f"{label}offline ", 0, OFFLINE_ROWS if turn >= 0 else 64)
                began = time.perf_counter()
                model.score(texts["prompts"], texts["responses"])
                offline_seconds += time.perf_counter() - began if turn >= 0 else 0.0
    offline_rows = OFFLINE_ROWS * ROUNDS * len(SHAPES)
    offline = offline_rows / offline_seconds
    rows_of_table = "\n".join(
        f"| {name} | {found.row(SHAPES[name][1], offline)} |" for name, found in loads.items()
    )
    metadata = model.metadata
    text = f"""# Serving

{date.today()}, {os.cpu_count()} cores ({platform.machine()}), encoder {metadata.encoder.name}, \
head {metadata.train.head}; loopback, {seconds:.0f} s each, the client on the same cores; \
load average {os.getloadavg()[0]:.1f}.
Every text is new. The floor is the same model scoring {offline_rows:,} rows offline, in turns \
with the loads: {offline:.0f} rows/s.
`python benchmarks/serve.py EXPORT {seconds:.0f}`

| | statuses | rows/s | p50, p99 latency | served / offline |
|---|---|---|---|---|
{rows_of_table}
"""
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "serve.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
