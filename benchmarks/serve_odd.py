"""What odd, huge and long requests do to ``pal serve`` and to those who ask beside them.

python benchmarks/serve_odd.py EXPORT [seconds]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from serve import TOKEN, Served, served

from pal.reward import RewardModel

CONNECTIONS, ONE_ROW_CLIENTS, USERS, ANSWERS = 128, 16, 12, 512
HUGE = 8 << 20
SCORE, REWARD, ADAPT = "/v1/score", "/get_reward", "/v1/users/u/adapt"
Body = bytes | Callable[[int], dict[str, Any]]


def rows(count: int, letters: int) -> Callable[[int], dict[str, Any]]:
    """Return a maker of requests of so many rows whose texts no other request has."""

    def body(number: int) -> dict[str, Any]:
        texts = [text(number * count + row, letters) for row in range(count)]
        return {"prompts": [f"question {one}" for one in texts], "responses": texts}

    return body


def text(number: int, letters: int) -> str:
    words = random.Random(number)
    return " ".join(str(words.randrange(10**5)) for _ in range(max(1, letters // 6)))


def answers(count: int, letters: int) -> Callable[[int], dict[str, Any]]:
    def body(number: int) -> dict[str, Any]:
        places = range(2 * number * count, 2 * (number + 1) * count, 2)
        return {
            "answers": [
                {"prompt": "p", "chosen": text(one, letters), "rejected": text(one + 1, letters)}
                for one in places
            ]
        }

    return body


def mixed(number: int) -> dict[str, Any]:
    """Return rows of which every second one is odd."""
    odd: list[Any] = [5, None, "", "\ud800", {"a": 1}, [{"role": 1}], "x" * 300_000]
    responses = [other for one in odd for other in (one, text(number, 20))]
    users: list[Any] = [True, "nobody", [1], {"9": 1}, {"0": 1}, None, 7]
    return {"prompts": [None] * 14, "responses": responses, "users": users * 2}


WRONG: dict[str, bytes] = {
    "a list of numbers": b"[" + b"0," * (HUGE // 2 - 2) + b"0]",
    "a list of lists": b"[" + b"[]," * (HUGE // 3 - 2) + b"0]",
    "rows that are numbers": b'{"prompts":[%s0],"responses":[]}' % (b"0," * (HUGE // 2 - 20)),
    "answers that are numbers": b'{"answers":[%s0]}' % (b"0," * (HUGE // 2 - 20)),
    "brackets that never close": b"[" * HUGE,
    "a text that never ends": b'"' + b"a" * (HUGE - 1),
    "quotes": b'"' * HUGE,
    "escaped quotes": b'"' + b'\\"' * (HUGE // 2 - 1),
    "objects within objects": b'{"a":' * (HUGE // 5),
    "many keys": b"{%s}" % b",".join(b'"%d":0' % n for n in range(HUGE // 12)),
    "no JSON": b"x" * HUGE,
}
"""8 MB each"""
KINDS: dict[str, tuple[str, Body]] = {
    "one row": (SCORE, rows(1, 20)),
    "64 rows": (SCORE, rows(64, 20)),
    "64 long rows": (SCORE, rows(64, 1000)),
    "OpenRLHF": (REWARD, lambda n: {"query": [text(n, 20)], "labels": [n]}),
    "odd rows": (SCORE, mixed),
    "8 answers": (ADAPT, answers(8, 20)),
    "an 8 MB row": (REWARD, lambda n: {"query": ["word " * (HUGE // 5 - 10)]}),
    "too many rows": (REWARD, lambda n: {"query": ["q"] * 5000}),
    "no lists": (SCORE, lambda n: {"prompts": "a", "responses": 5}),
    "no JSON": (SCORE, b"{"),
    "too large": (SCORE, b" " * (HUGE + 1)),
    "not found": ("/nowhere", b"{}"),
    **{f"8 MB: {name}": (SCORE, body) for name, body in WRONG.items()},
}
SHARE = {"one row": 30, "64 rows": 4, "odd rows": 4, "OpenRLHF": 4}
"""how often a kind is asked for where the others are once"""


@dataclass
class Met:
    """What clients met."""

    statuses: Counter[int] = field(default_factory=Counter)
    by_kind: dict[str, Counter[int]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    unanswered: int = 0

    def percentiles(self) -> str:
        p50, p99 = np.percentile(np.array(self.seconds) * 1000, [50, 99])
        return f"{p50:.0f} ms, {p99:.0f} ms"


def session(address: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        address,
        headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=600),
    )


async def ask(http: aiohttp.ClientSession, path: str, body: Body, number: int) -> tuple[int, bytes]:
    raw = body if isinstance(body, bytes) else json.dumps(body(number)).encode()
    async with http.post(path, data=raw) as reply:
        return reply.status, await reply.read()


async def campaign(address: str, seconds: float) -> Met:
    """Ask for everything at once over many connections."""
    met = Met()
    kinds = list(KINDS)
    weights = [SHARE.get(kind, 1) for kind in kinds]
    until = time.perf_counter() + seconds

    async def one(number: int, http: aiohttp.ClientSession) -> None:
        choice = random.Random(number)
        while time.perf_counter() < until:
            kind = choice.choices(kinds, weights)[0]
            path, body = KINDS[kind]
            try:
                status, _ = await ask(http, path, body, number)
            except (aiohttp.ClientError, TimeoutError) as error:
                print(kind, repr(error))
                met.unanswered += 1
                continue
            met.statuses[status] += 1
            met.by_kind.setdefault(kind, Counter())[status] += 1
            number += CONNECTIONS

    async with session(address) as http:
        await asyncio.gather(*[one(number, http) for number in range(CONNECTIONS)])
    return met


async def one_row_clients(address: str, go_on: Callable[[], bool], label: int) -> Met:
    met = Met()
    body = rows(1, 20)

    async def one(number: int, http: aiohttp.ClientSession) -> None:
        while go_on():
            began = time.perf_counter()
            status, _ = await ask(http, SCORE, body, number)
            met.statuses[status] += 1
            met.seconds.append(time.perf_counter() - began)
            number += ONE_ROW_CLIENTS

    async with session(address) as http:
        places = range(label * 10**6, label * 10**6 + ONE_ROW_CLIENTS)
        await asyncio.gather(*[one(number, http) for number in places])
    return met


@dataclass
class Beside:
    """One-row requests with and without users who are learned beside them."""

    without: Met
    beside: Met
    users: str
    """how long it took to learn them"""

    def row(self, letters: int) -> str:
        ratio = np.percentile(self.beside.seconds, 99) / np.percentile(self.without.seconds, 99)
        rates = [len(met.seconds) for met in (self.without, self.beside)]
        return (
            f"| {letters} | {self.without.percentiles()} | {self.beside.percentiles()} | "
            f"{ratio:.2f} | {rates[0]:,}, {rates[1]:,} | {self.users} |"
        )


async def learn(address: str, bodies: list[bytes]) -> Counter[int]:
    """Learn users at once."""
    async with session(address) as http:
        asked = [ask(http, f"/v1/users/u{n}/adapt", raw, n) for n, raw in enumerate(bodies)]
        return Counter(status for status, _ in await asyncio.gather(*asked))


async def users_beside(address: str, letters: int, seconds: float, to_the_end: bool) -> Beside:
    """Measure one-row requests alone, and while users are learned: to the end, or for a time."""

    def until(seconds: float) -> Callable[[], bool]:
        end = time.perf_counter() + seconds
        return lambda: time.perf_counter() < end

    body = answers(ANSWERS, letters)  # as many as a request may have
    bodies = [json.dumps(body(number)).encode() for number in range(2 * USERS)]
    await one_row_clients(address, until(2.0), letters + 1)
    without = await one_row_clients(address, until(seconds), letters + 2)
    began = time.perf_counter()
    learning = asyncio.create_task(learn(address, bodies[:USERS]))
    go_on = (lambda: not learning.done()) if to_the_end else until(seconds)
    beside = await one_row_clients(address, go_on, letters + 3)
    if not to_the_end:
        learning.cancel()
        return Beside(without, beside, f"more than {seconds:.0f} s")
    taken = time.perf_counter() - began
    assert learning.result() == {200: USERS}
    began = time.perf_counter()
    await learn(address, bodies[USERS:])
    return Beside(without, beside, f"{taken:.0f} s, alone {time.perf_counter() - began:.0f} s")


async def wrong_json(address: str) -> list[str]:
    """Return a line of a table for each wrong body."""
    lines = []
    async with session(address) as http:
        for name, raw in WRONG.items():
            path = ADAPT if name.startswith("answers") else SCORE
            began = time.perf_counter()
            status, reply = await ask(http, path, raw, 0)
            seconds = time.perf_counter() - began
            lines.append(f"| {name} | {status} | {seconds:.2f} s | {len(reply):,} bytes |")
    return lines


async def huge_row(server: Served) -> str:
    """Return what a row of 8 MB costs beside a small one."""
    body: dict[str, Any] = {"query": ["word " * (HUGE // 5 - 20), "small"]}
    async with session(server.address) as http:
        before = peak_megabytes(server)
        began = time.perf_counter()
        _, reply = await ask(http, REWARD, lambda n: body, 0)
        seconds = time.perf_counter() - began
    found = json.loads(reply)
    assert found["rewards"][0] is None
    assert found["rewards"][1] is not None
    more = peak_megabytes(server) - before
    return f"{seconds:.2f} s, {more:.0f} MB more at most; reason: {found['errors']['0']}"


def peak_megabytes(server: Served) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("export", help="folder of an export")
    parser.add_argument("seconds", nargs="?", type=float, default=30.0, help="of each load")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with served(arguments.export) as server:
        wrong = asyncio.run(wrong_json(server.address))
        huge = asyncio.run(huge_row(server))
        beside = {
            letters: asyncio.run(
                users_beside(server.address, letters, arguments.seconds, letters == 20)
            )
            for letters in (20, 1000)
        }
        before = peak_megabytes(server)
        met = asyncio.run(campaign(server.address, arguments.seconds))
        after = peak_megabytes(server)
    assert all(set(one.beside.statuses) == {200} for one in beside.values())
    metadata = RewardModel.from_pretrained(arguments.export, device="cpu").metadata
    table = "\n".join(one.row(letters) for letters, one in beside.items())
    kinds = "\n".join(
        f"| {kind} | {', '.join(f'{code}: {n:,}' for code, n in sorted(found.items()))} |"
        for kind, found in sorted(met.by_kind.items())
    )
    failed = sum(count for code, count in met.statuses.items() if code >= 500)
    written = f"""# Odd, huge and long requests

{date.today()}, {os.cpu_count()} cores ({platform.machine()}), encoder {metadata.encoder.name}, \
head {metadata.train.head}; loopback, the client on the same cores; \
load average {os.getloadavg()[0]:.1f}.
`python benchmarks/serve_odd.py EXPORT {arguments.seconds:.0f}`

{USERS} users learned at once from {ANSWERS} answers each, beside {ONE_ROW_CLIENTS} clients of one \
row of 20 letters ({arguments.seconds:.0f} s without the users, then beside them):

| letters of an answer | p50, p99 without | p50, p99 beside | ratio of p99 | requests | the users \
took |
|---|---|---|---|---|---|
{table}

Wrong JSON of 8 MB:

| body | status | answered in | reply |
|---|---|---|---|
{chr(10).join(wrong)}

A row of 8 MB beside a small one: {huge}.

{CONNECTIONS} connections of mixed requests for {arguments.seconds:.0f} s: \
{sum(met.statuses.values()):,} answers, {failed} of them 5xx, {met.unanswered} requests without an \
answer, {after - before:.0f} MB more memory at most.

| request | statuses |
|---|---|
{kinds}
"""
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "serve_odd.md").write_text(written, encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
