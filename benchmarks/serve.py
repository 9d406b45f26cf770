"""Requests per second and latency of ``pal serve`` over 64 connections, beside the same model scoring in batches.

python benchmarks/serve.py EXPORT [seconds]
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path

import httpx
import numpy as np

from pal.reward import RewardModel

CONNECTIONS, TOKEN = 64, "benchmark"


def body(number: int) -> dict[str, list[str]]:
    return {"prompts": [f"question {number}"], "responses": [f" answer {number % 1000}"]}


async def load(address: str, seconds: float) -> tuple[list[float], Counter[int], float]:
    """Return latencies of answered requests, statuses, and the time it took."""
    latencies: list[float] = []
    statuses: Counter[int] = Counter()
    began = time.perf_counter()

    async def one(number: int, http: httpx.AsyncClient) -> None:
        while time.perf_counter() - began < seconds:
            sent = time.perf_counter()
            reply = await http.post("/v1/score", json=body(number))
            statuses[reply.status_code] += 1
            if reply.status_code == 200:
                latencies.append(time.perf_counter() - sent)
            number += CONNECTIONS

    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, limits=limits, timeout=60, trust_env=False) as http:
        await asyncio.gather(*[one(number, http) for number in range(CONNECTIONS)])
    return latencies, statuses, time.perf_counter() - began


def main() -> None:
    folder, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 30.0
    command = [sys.executable, "-m", "pal", "serve", "--model", folder, "--port", "0", "--token", TOKEN]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    seen = ""
    while (found := re.search(r"http://\S+:\d+", seen)) is None:
        line = server.stderr.readline()
        assert line, seen
        seen += line
    try:
        asyncio.run(load(found.group(), 2.0))  # warm up
        latencies, statuses, took = asyncio.run(load(found.group(), seconds))
    finally:
        server.terminate()
        server.wait(timeout=60)
    model = RewardModel.from_pretrained(folder, device="cpu")
    bodies = [body(number) for number in range(2048)]
    model.score(["warm"] * 64, ["up"] * 64)
    began = time.perf_counter()
    model.score([b["prompts"][0] for b in bodies], [b["responses"][0] for b in bodies])
    offline = len(bodies) / (time.perf_counter() - began)
    served = len(latencies) / took
    p50, p99 = np.percentile(np.array(latencies) * 1000, [50, 99])
    facts = model.facts
    text = f"""# Serving

{date.today()}, {os.cpu_count()} cores ({platform.machine()}), encoder {facts["encoder"]["name"]}, head \
{facts["train"]["head"]}; {CONNECTIONS} connections of one row each on the loopback for {took:.0f} s, the client on \
the same cores; load average {os.getloadavg()[0]:.1f}.
`python benchmarks/serve.py EXPORT {seconds:.0f}`

| | |
|---|---|
| answered | {len(latencies):,} |
| statuses | {", ".join(f"{code}: {count:,}" for code, count in sorted(statuses.items()))} |
| served rows/s | {served:.1f} |
| p50, p99 latency | {p50:.0f} ms, {p99:.0f} ms |
| floor: the same model offline, rows/s | {offline:.1f} |
| served / offline | {served / offline:.2f} |
"""
    Path(__file__).with_name("results").joinpath("serve.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
