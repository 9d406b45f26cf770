"""Rewards over HTTP are offline scoring's, under load and at the end, for those who may ask."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from pal import pipeline
from pal.config import Config, ServeConfig
from pal.errors import RewardError
from pal.reward import RewardModel
from pal.reward.export import Choice
from pal.reward.server.app import build_app
from pal.reward.server.serve import run_server
from pal.reward.server.service import Service

TOKEN = "a-token-for-tests"
USERS = [f"seen-{number:05d}" for number in range(6)]


@pytest.fixture(scope="module")
def exported(configure: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported")
    settings = {"store_dtype": "float32", "max_length": 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        config = configure(
            {"train.head": "pal-a"} | {f"embed.tiny-text.{key}": v for key, v in settings.items()}
        )
        pipeline.embed(config)
        pipeline.train(config, "run")
        return place / pipeline.export(config, "run", Choice(), "model").dir


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run ``pal serve`` on a free port of the loopback and yield its address."""
    command = [
        sys.executable,
        "-m",
        "pal",
        "serve",
        "--model",
        str(folder),
        "--port",
        "0",
        "--token",
        TOKEN,
        *options,
    ]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        assert process.stderr is not None
        seen = ""
        while (found := re.search(r"http://\S+:\d+", seen)) is None:
            line = process.stderr.readline()
            assert line, f"the server ended: {seen}"
            seen += line
        yield found.group(), process
    finally:
        process.terminate()
        try:
            process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def client(address: str, token: str | None = TOKEN, **settings: Any) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=address, headers=headers, timeout=30, trust_env=False, **settings)


def test_the_routes_answer_as_offline_scoring_does(exported: Path) -> None:
    model = RewardModel.from_pretrained(exported, device="cpu")
    prompts, responses = [f"question {n}" for n in range(5)], [f" answer {n}" for n in range(5)]
    users = [USERS[0], USERS[1], {"0": 0.3, "1": 0.7}, None, USERS[2]]
    wanted = model.score(prompts, responses, users)
    with serving(exported) as (address, process), client(address) as http:
        host, port = address.removeprefix("http://").split(":")
        socket.create_connection(
            (host, int(port))
        ).close()  # what is announced can be reached at once
        reply = http.post(
            "/v1/score", json={"prompts": prompts, "responses": responses, "users": users}
        )
        assert reply.json()["rewards"] == pytest.approx(wanted, abs=1e-5)
        labels = [USERS[0], json.dumps({"user_id": USERS[1], "label": 3}), "", "nobody"]
        queries = [p + r for p, r in zip(prompts[:4], responses[:4], strict=True)]
        reply = http.post(
            "/get_reward", json={"query": queries, "prompts": prompts[:4], "labels": labels}
        )
        body = reply.json()
        offline = model.score(prompts[:4], responses[:4], [USERS[0], USERS[1], None, None])
        assert body["rewards"] == pytest.approx(offline, abs=1e-5)
        assert all(0.0 <= score <= 1.0 for score in body["scores"])
        assert body["extra_logs"] == {"pal_user_known": [1.0, 1.0, 1.0, 0.0]}
        empty = http.post("/get_reward", json={"query": [], "prompts": [], "labels": []})
        assert empty.json() == {"rewards": [], "scores": [], "extra_logs": {"pal_user_known": []}}

        answers = [{"prompt": f"thing {n}", "chosen": " No", "rejected": " Yes"} for n in range(8)]
        assert http.post("/v1/users/new/adapt", json={"answers": answers}).json()["answers"] == 8
        row = {"prompts": ["thing 1"], "responses": [" No"], "users": ["new"]}
        adapted = http.post("/v1/score", json=row).json()
        assert adapted["unknown_users"] == 0
        assert http.get("/health").json()["status"] == "ok"
        metrics = http.get("/metrics").text
        assert 'pal_requests_total{code="200",path="/v1/users/{user}/adapt"} 1.0' in metrics
        assert re.search(r"^pal_users_adapted 1\.0$", metrics, re.M)
        assert "new" not in metrics.replace("pal_users_adapted", "")
        assert set(http.get("/openapi.json").json()["paths"]) >= {
            "/get_reward",
            "/v1/score",
            "/v1/users/{user}/adapt",
        }

        for path, content, status in (
            ("/v1/score", b"{not json", 422),
            ("/v1/score", b'{"prompts": ["a"]}', 422),
            ("/v1/score", b'{"prompts": ["a"], "responses": []}', 422),
            ("/v1/score", b'{"prompts": ["a"], "responses": [""], "users": {"9": 1}}', 422),
            ("/v1/score", b'{"prompts": ["a", "b"], "responses": ["x", "y"], "users": ["u"]}', 422),
            ("/v1/score", b'{"prompts": ["a"], "responses": ["\\ud800"]}', 422),
            ("/get_reward", b" " * (50 << 20), 413),
            ("/nowhere", b"{}", 404),
            ("/v1/users/u/adapt", b"{}", 422),
            (
                "/v1/score",
                json.dumps({"prompts": ["p"] * 2000, "responses": ["r"] * 2000}).encode(),
                413,
            ),
        ):
            assert (
                http.post(
                    path, content=content, headers={"content-type": "application/json"}
                ).status_code
                == status
            )
        chunks = http.post("/v1/score", content=(b" " * (1 << 20) for _ in range(50)))
        assert chunks.status_code == 413
        for token in (None, "wrong", TOKEN + "x"):
            with client(address, token) as stranger:
                assert stranger.post("/v1/score", json=row).status_code == 401
                assert stranger.post("/get_reward", json={"query": []}).status_code == 401
                assert stranger.get("/metrics").status_code == 401
                assert stranger.get("/health").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM or process.returncode == 0
    with (
        serving(exported) as (address, _),
        client(address) as http,
    ):  # the adapted user is still known
        again = http.post("/v1/score", json=row).json()
        assert again["rewards"] == pytest.approx(adapted["rewards"], abs=1e-6)
        assert again["unknown_users"] == 0
        assert http.delete("/v1/users/new").json()["forgotten"]
        assert http.post("/v1/score", json=row).json()["unknown_users"] == 1
        assert http.delete("/v1/users/new").status_code == 404


def test_odd_requests_are_refused_and_counted(exported: Path) -> None:
    service = Service(RewardModel.from_pretrained(exported, device="cpu"), ServeConfig(), TOKEN)
    message = {"role": "user", "content": 5}
    answer = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with TestClient(build_app(service), raise_server_exceptions=False) as http:
        http.headers["Authorization"] = f"Bearer {TOKEN}"
        for path, body in (
            ("/v1/score", {"prompts": [[message]], "responses": ["r"]}),
            ("/get_reward", {"query": ["a"], "labels": [{"user_id": [1]}]}),
            ("/get_reward", {"query": ["a"], "labels": [1.5]}),
            ("/v1/users/u/adapt", {"answers": [{**answer, "label": math.nan}]}),
            ("/v1/score", {"prompts": ["p"], "responses": ["r"], "users": [math.inf]}),
        ):
            content = json.dumps(body)  # with NaN, which is no JSON but is read as such
            reply = http.post(path, content=content, headers={"content-type": "application/json"})
            assert reply.status_code == 422, (body, reply.text)
        deep = http.post("/get_reward", json={"query": ["a"], "labels": ['{"a":' * 100_000]})
        assert deep.json()["extra_logs"] == {"pal_user_known": [0.0]}
        assert (
            http.post("/v1/users/a%2Fb/adapt", json={"answers": [answer]}).json()["user"] == "a/b"
        )
        assert http.post("/v1/users/7/adapt", json={"answers": [answer]}).json()["user"] == "7"
        known = http.post(
            "/get_reward", json={"query": ["a"] * 3, "labels": [7, {"user_id": "a/b"}, "7"]}
        ).json()
        assert known["extra_logs"] == {"pal_user_known": [1.0, 1.0, 1.0]}
        service.model.score_rows = lambda rows, vectors: [][0]  # type: ignore[method-assign, misc, index]
        assert (
            http.post("/v1/score", json={"prompts": ["p"], "responses": ["r"]}).status_code == 500
        )
        assert 'pal_requests_total{code="500",path="/v1/score"} 1.0' in http.get("/metrics").text
    assert service.metrics.accepted == service.metrics.answered


def test_a_store_that_is_none_and_an_empty_token(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RewardModel.from_pretrained(exported, device="cpu")
    Path("text").write_text("no database" * 100)
    for store in ("text", "nowhere/users.sqlite"):
        with pytest.raises(RewardError, match=f"cannot keep users in {store}"):
            Service(model, ServeConfig(store=Path(store)), None)
    told: list[str] = []
    served: list[Any] = []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda self, sockets: served.append(sockets[0].close())
    )
    run_server(model, ServeConfig(host="0.0.0.0", port=0), "", told.append)
    assert served
    assert told[0].startswith("bearer token, for this run only: ")


async def load(address: str, connections: int, seconds: float) -> dict[str, Any]:
    """Ask over many connections at once, each for a user of its own, until the time is over."""
    answers: list[tuple[str, str, str, float]] = []
    statuses: Counter[int] = Counter()
    broken = 0
    until = time.monotonic() + seconds

    async def one(number: int, http: aiohttp.ClientSession) -> None:
        nonlocal broken
        turn = 0
        while time.monotonic() < until:
            turn += 1
            user = USERS[number % len(USERS)]
            prompt, response = f"question {number} {turn % 7}", f" answer {turn % 5}"
            body = {"prompts": [prompt], "responses": [response], "users": [user]}
            try:
                async with http.post("/v1/score", json=body) as reply:
                    answer = await reply.json()
            except aiohttp.ClientConnectorError:
                return  # the server takes no one any more
            except aiohttp.ClientError:
                broken += 1
                return
            statuses[reply.status] += 1
            if reply.status == 200:
                answers.append((prompt, response, user, answer["rewards"][0]))

    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(
        address, headers=headers, connector=aiohttp.TCPConnector(limit=0)
    ) as http:
        await asyncio.gather(*[one(number, http) for number in range(connections)])
    return {"answers": answers, "statuses": statuses, "broken": broken}


def require_offline(exported: Path, answers: list[tuple[str, str, str, float]]) -> None:
    model = RewardModel.from_pretrained(exported, device="cpu")
    unique = sorted({answer[:3] for answer in answers})
    scores = model.score([a[0] for a in unique], [a[1] for a in unique], [a[2] for a in unique])
    wanted = dict(zip(unique, scores, strict=True))
    assert [answer[3] for answer in answers] == pytest.approx(
        [wanted[answer[:3]] for answer in answers], abs=1e-5
    )


@pytest.mark.parametrize("seconds", [3.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_many_connections_get_their_own_answers(exported: Path, seconds: float) -> None:
    with serving(exported) as (address, _):
        result = asyncio.run(load(address, 64, seconds))
    assert set(result["statuses"]) <= {200, 429}
    assert result["broken"] == 0
    assert len({answer[2] for answer in result["answers"]}) == len(USERS)
    require_offline(exported, result["answers"])


def test_a_full_queue_is_429_and_loses_nothing(exported: Path) -> None:
    with serving(exported, "--set", "serve.queue=4", "--set", "serve.max_batch=2") as (address, _):
        result = asyncio.run(load(address, 64, 2.0))
    assert set(result["statuses"]) == {200, 429}
    require_offline(exported, result["answers"])


def test_a_terminated_server_answers_what_it_accepted(exported: Path) -> None:
    async def end_it(process: subprocess.Popen[str]) -> None:
        await asyncio.sleep(1.5)
        process.send_signal(signal.SIGTERM)

    async def both(address: str, process: subprocess.Popen[str]) -> dict[str, Any]:
        result, _ = await asyncio.gather(load(address, 64, 6.0), end_it(process))
        return result

    with serving(exported) as (address, process):
        result = asyncio.run(both(address, process))
        assert process.stderr is not None
        told = re.search(r"(\d+) requests accepted, (\d+) answered", process.stderr.read())
    assert told is not None
    assert int(told[1]) == int(told[2]) == sum(result["statuses"].values())  # and all of it arrived
    assert set(result["statuses"]) <= {200, 429}
    assert result["statuses"][200] > 0
    require_offline(exported, result["answers"])
