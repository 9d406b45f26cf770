"""Rewards over HTTP are offline scoring's, under load and at the end, for those who may ask."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from pal.config import EncoderConfig, ServeConfig, TrainConfig
from pal.embed.encoder import locate
from pal.errors import PalWarning, RewardError
from pal.reward import RewardModel
from pal.reward.export import Choice, export
from pal.reward.model import Row
from pal.reward.server.app import build_app
from pal.reward.server.batching import AnswersJob, RowsJob, Turns
from pal.reward.server.body import DEEPEST, MOST_VALUES, parse
from pal.reward.server.mailbox import Mailbox
from pal.reward.server.metrics import Metrics
from pal.reward.server.serve import Server, listen, run_server
from pal.reward.server.service import Service
from pal.reward.server.users import UserStore
from pal.reward.server.worker import MOST_THREADS, Full, Worker, _answer, _fail, threads_for
from pal.train.build import build_head, resolve
from pal.train.run_record import RunRecord, TrainedHead

TOKEN = "a-token-for-tests"
USERS = [f"seen-{number:05d}" for number in range(6)]
DIGESTS = Path(".digests.json")
JSON = {"content-type": "application/json"}
ANSWER = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a random head on a small random encoder."""
    place = tmp_path_factory.mktemp("exported")
    config = EncoderConfig(model="random:bert", store_dtype="float32", max_length=64)
    train = resolve(TrainConfig(head="pal-a", k=2))
    torch.manual_seed(0)
    head = build_head(train, 64, len(USERS)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        record = RunRecord(
            run="run",
            dataset="made",
            view="prompt+response",
            item_text="{response}",
            encoder="tiny",
            untrained=True,
            seed=0,
            dim=64,
            params=0,
            params_per_user=0,
            seconds=0.0,
            best_epoch=0,
            split_digest="s",
            pairs_digest="p",
            cache_fingerprint="c",
            encoder_spec=locate("tiny", config, DIGESTS).spec,
            train=train,
            users=USERS,
            files={},
        )
        model = RewardModel.of(TrainedHead(head, record), config, DIGESTS)
        export(model, Choice(), place / "model")
    return place / "model"


@pytest.fixture
def model(exported: Path) -> RewardModel:
    return RewardModel.from_pretrained(exported, device="cpu", check=False)


@contextmanager
def asking(model: RewardModel, **options: Any) -> Iterator[TestClient]:
    """Yield a client of the application, without a server."""
    app = build_app(Service(model, ServeConfig(**options), None))
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as http:
        yield http


@dataclass
class Running:
    """A server in a thread of this process."""

    address: str
    place: tuple[str, int]
    service: Service
    server: Server
    thread: threading.Thread

    def raw(self, sent: bytes, seconds: float = 5.0) -> bytes:
        """Send bytes and return what comes until the server closes; raises TimeoutError."""
        with socket.create_connection(self.place, timeout=seconds) as connection:
            connection.sendall(sent)
            return everything(connection)


def everything(connection: socket.socket) -> bytes:
    found = b""
    while True:
        try:
            more = connection.recv(1 << 16)
        except ConnectionResetError:
            return found
        if not more:
            return found
        found += more


def wait_until(is_so: Callable[[], bool], seconds: float = 5.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextmanager
def running(model: RewardModel, token: str | None = None, **options: Any) -> Iterator[Running]:
    service = Service(model, ServeConfig(**options), token)
    server, listener = Server.of(service), listen("127.0.0.1", 0)
    place = listener.getsockname()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Running(f"http://127.0.0.1:{place[1]}", place, service, server, thread)
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run ``pal serve`` on a free port of the loopback and yield its address."""
    command = [sys.executable, "-m", "pal", "serve", "--model", str(folder), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--token", TOKEN, *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
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
        finally:
            assert process.stderr is not None
            process.stderr.close()


def client(address: str, token: str | None = TOKEN, **settings: Any) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=address, headers=headers, timeout=30, trust_env=False, **settings)


# --- what is answered ------------------------------------------------------------------------


def test_answers_are_encoded_once_for_a_hundred_users(model: RewardModel) -> None:
    texts = [f"answer {number}" for number in range(8)]
    users = [*USERS, *(f"stranger-{number}" for number in range(100 - len(USERS)))]
    body = {
        "prompts": ["question"] * 800,
        "responses": texts * 100,
        "users": [user for user in users for _ in texts],
    }
    with asking(model) as http:
        found = http.post("/v1/score", json=body).json()["rewards"]
        assert "pal_items_encoded 8.0" in http.get("/metrics").text
    rewards = [found[start : start + 8] for start in range(0, 800, 8)]
    for user, own in zip([USERS[0], USERS[1], None], [*rewards[:2], rewards[-1]], strict=True):
        assert own == pytest.approx(model.score("question", texts, user), abs=1e-6)
    assert rewards[0] != rewards[1] != rewards[-1]


def test_the_routes_answer_as_offline_scoring_does(model: RewardModel) -> None:
    prompts, responses = [f"question {n}" for n in range(5)], [f" answer {n}" for n in range(5)]
    users = [USERS[0], USERS[1], {"0": 0.3, "1": 0.7}, None, USERS[2]]
    wanted = model.score(prompts, responses, users)
    with running(model) as live, client(live.address, None) as http:
        reply = http.post(
            "/v1/score", json={"prompts": prompts, "responses": responses, "users": users}
        )
        assert reply.json() == {
            "rewards": pytest.approx(wanted, rel=1e-5),
            "errors": {},
            "unknown_users": 0,
        }
        labels = [USERS[0], json.dumps({"user_id": USERS[1], "label": 3}), "", "nobody"]
        queries = [p + r for p, r in zip(prompts[:4], responses[:4], strict=True)]
        reply = http.post(
            "/get_reward", json={"query": queries, "prompts": prompts[:4], "labels": labels}
        )
        body = reply.json()
        offline = model.score(prompts[:4], responses[:4], [USERS[0], USERS[1], None, None])
        assert body["rewards"] == pytest.approx(offline, rel=1e-5)
        assert body["scores"] == pytest.approx(torch.tensor(offline).sigmoid().tolist(), abs=1e-5)
        assert body["extra_logs"] == {
            "pal_user_known": [1.0, 1.0, 1.0, 0.0],
            "pal_prompt_cut": [0.0] * 4,
        }
        assert body["errors"] == {}

        answers = [{"prompt": f"thing {n}", "chosen": " No", "rejected": " Yes"} for n in range(8)]
        assert http.post("/v1/users/new/adapt", json={"answers": answers}).json()["answers"] == 8
        row = {"prompts": ["thing 1"], "responses": [" No"], "users": ["new"]}
        adapted = http.post("/v1/score", json=row).json()
        assert adapted["unknown_users"] == 0
        assert http.get("/health").json() == {"status": "ok", "waiting": 0}
        metrics = http.get("/metrics").text
        assert 'pal_requests_total{code="200",path="/v1/users/{user}/adapt"} 1.0' in metrics
        assert re.search(r"^pal_users_adapted 1\.0$", metrics, re.M)
        assert "new" not in metrics.replace("pal_users_adapted", "")
        documented = http.get("/openapi.json").json()
        assert set(documented["paths"]) >= {"/get_reward", "/v1/score", "/v1/users/{user}/adapt"}
        body_of_score = documented["components"]["schemas"]["ScoreRequest"]["properties"]
        assert body_of_score["responses"]["items"]["description"] == "a text or chat messages"
        assert http.delete("/v1/users/new").json() == {"user": "new", "forgotten": True}
        assert http.post("/v1/score", json=row).json()["unknown_users"] == 1
        assert http.delete("/v1/users/new").status_code == 404


@pytest.mark.parametrize("rows", [9, 64, 100])
def test_a_request_of_many_rows_is_answered_as_a_whole(model: RewardModel, rows: int) -> None:
    prompts, responses = [f"q {n}" for n in range(rows)], [f"a {n}" for n in range(rows)]
    users = [USERS[n % 2] for n in range(rows)]
    wanted = model.score(prompts, responses, users)
    with asking(model) as http:
        body = {"prompts": prompts, "responses": responses, "users": users}
        assert http.post("/v1/score", json=body).json()["rewards"] == pytest.approx(
            wanted, rel=1e-5
        )


def head(path: str, length: int, method: str = "POST", **headers: str) -> bytes:
    """Return the head of a request whose body has so many bytes."""
    named = {"Host": "localhost", "Content-Type": "application/json", **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in named.items())]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


ODD_ROWS: list[tuple[Any, Any, Any, str]] = [
    (5, "r", None, "a text is a string or a list"),
    ([{"role": "user", "content": 5}], "r", None, "the content of a message"),
    ("p", {"text": "r"}, None, "a text is a string or a list"),
    ("p", None, None, "a response is missing"),
    ("p", "", None, "the text is empty"),
    ("p", "\ud800", None, "half of a surrogate pair"),
    ("p", "r" * 5000, None, "more than the 4,096 of serve.max_row_bytes"),
    ("p", "é" * 2049, None, "more than the 4,096 of serve.max_row_bytes"),
    ("p", "r", True, "ids are texts or whole numbers"),
    ("p", "r", [1], "ids are texts or whole numbers"),
    ("p", "r", "HUGE", "ids are texts or whole numbers"),
    ("p", "r", {"9": 1}, "no prototype with a weight"),
    ("p", "r", {"x" * 5000: 1}, "no prototype with a weight"),
]


def test_a_row_that_cannot_be_scored_costs_only_itself(model: RewardModel) -> None:
    wanted = model.score(["p", "p"], ["r", "r"], [None, USERS[0]])
    rows = [("p", "r", None), *(row[:3] for row in ODD_ROWS), ("p", "r", USERS[0])]
    last = len(rows) - 1
    with asking(model, max_row_bytes=4096) as http:
        prompts, responses, users = ([row[part] for row in rows] for part in range(3))
        content = text_of({"prompts": prompts, "responses": responses, "users": users})
        reply = http.post("/v1/score", content=content, headers=JSON)
        assert reply.status_code == 200
        found = reply.json()
        assert [found["rewards"][0], found["rewards"][last]] == pytest.approx(wanted, rel=1e-4)
        assert found["rewards"][1:last] == [None] * len(ODD_ROWS)
        assert found["unknown_users"] == 0
        for number, odd in enumerate(ODD_ROWS, start=1):
            assert odd[3] in found["errors"][str(number)]
        assert max(map(len, found["errors"].values())) <= 300
        assert set(found["errors"]) == {str(number) for number in range(1, last)}

        content = text_of({"query": responses, "labels": users})
        found = http.post("/get_reward", content=content, headers=JSON).json()
        failed = [reward is None for reward in found["rewards"]]
        # no prompts are sent here, labels that are objects without user_id name nobody, and an
        # answer without a word is rewarded as silence
        assert failed == [*[False] * 3, *[True] * 2, False, *[True] * 6, *[False] * 3]
        assert [score is None for score in found["scores"]] == failed
        assert found["extra_logs"]["pal_user_known"] == [float(not one) for one in failed]
        assert {int(number) for number in found["errors"]} == {
            number for number, is_failed in enumerate(failed) if is_failed
        }
        metrics = http.get("/metrics").text
        assert "pal_rows_failed_total 21.0" in metrics
    with asking(model, reward_of_failed=-5.0) as http:
        found = http.post("/get_reward", json={"query": [None, "q"]}).json()
        assert found["rewards"][0] == -5.0
        assert found["scores"][0] == pytest.approx(1 / (1 + math.exp(5)))
        assert set(found["errors"]) == {"0"}


def text_of(body: Any) -> str:
    """Return the JSON text of a body, with a number of 5,000 digits for HUGE."""
    return json.dumps(body).replace('"HUGE"', "9" * 5000)


def test_images_are_bytes_and_have_a_largest_size(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_images = model.metadata.model_copy(update={"modality": "image"})
    monkeypatch.setattr(model, "is_image", True)
    monkeypatch.setattr(model, "reader", replace(model.reader, record=of_images))
    with asking(model, max_image_bytes=8) as http:
        sent = ["/etc/hostname", "aGVsbG8gd29ybGQ=", "é", 5]
        body = {"prompts": [None] * 4, "responses": sent}
        found = http.post("/v1/score", json=body).json()
        assert found["rewards"] == [None] * 4
        assert "11 bytes, more than the 8 of serve.max_image_bytes" in found["errors"]["1"]
        for number in "023":
            assert "in base64" in found["errors"][number]
        answers = {"answers": [{**ANSWER, "chosen": "aGVsbG8gd29ybGQ=", "rejected": "aGVs"}]}
        reply = http.post("/v1/users/u/adapt", json=answers)
        assert reply.status_code == 422
        assert reply.json()["detail"].startswith("answer 0 cannot be read: it has 11 bytes")
        assert http.post("/get_reward", json={"query": ["q"]}).status_code == 422
        assert http.post("/get_reward", json={"query": []}).json()["rewards"] == []


def test_an_empty_request_has_an_empty_answer(model: RewardModel) -> None:
    with asking(model) as http:
        body: dict[str, Any] = {"prompts": [], "responses": [], "users": []}
        empty = {"rewards": [], "errors": {}, "unknown_users": 0}
        assert http.post("/v1/score", json=body).json() == empty
        assert http.post("/v1/score", json={**body, "users": "u"}).json() == empty
        assert http.post("/get_reward", json={"query": []}).json() == {
            "rewards": [],
            "scores": [],
            "extra_logs": {"pal_user_known": [], "pal_prompt_cut": []},
            "errors": {},
        }


LONG = 2 << 20
SCORE, REWARD, ADAPT = "/v1/score", "/get_reward", "/v1/users/u/adapt"


def answers_of(*answers: Any) -> bytes:
    return json.dumps({"answers": answers}).encode()


WRONG_BODIES: dict[str, tuple[str, bytes, int]] = {
    "no JSON": (SCORE, b"{not json", 422),
    "nothing": (SCORE, b"", 422),
    "not UTF-8": (SCORE, b'{"prompts": ["\xff"]}', 422),
    "UTF-16": (SCORE, '{"prompts": []}'.encode("utf-16"), 422),
    "a byte order mark": (SCORE, b'\xef\xbb\xbf{"prompts": []}', 422),
    "NaN": (SCORE, b'{"prompts": ["a"], "responses": ["b"], "users": [NaN]}', 422),
    "infinity": (ADAPT, b'{"answers": [-Infinity]}', 422),
    "a number": (SCORE, b"1" * 5000, 422),
    "a text": (SCORE, b'"' + b"a" * LONG + b'"', 422),
    "no rows": (SCORE, b'{"prompts": ["a"]}', 422),
    "other counts": (SCORE, b'{"prompts": ["a"], "responses": []}', 422),
    "too few users": (SCORE, b'{"prompts":["",""],"responses":["",""],"users":["u"]}', 422),
    "a text for a list": (SCORE, b'{"prompts": "a", "responses": "b"}', 422),
    "nulls for lists": (REWARD, b'{"query": ["a"], "prompts": null}', 422),
    "too many rows": (REWARD, json.dumps({"query": ["q"] * 2000}).encode(), 413),
    "deep": (REWARD, b'{"query":' + b"[" * LONG, 422),
    "just too deep": (REWARD, b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), 422),
    "many numbers": (SCORE, b"[" + b"0," * (LONG // 2) + b"0]", 413),
    "many lists": (SCORE, b"[" + b"[]," * (LONG // 3) + b"0]", 413),
    "many wrong rows": (REWARD, json.dumps({"query": [[0]] * 40_000}).encode(), 413),
    "many keys": (SCORE, json.dumps({str(n) * 9: n for n in range(40_000)}).encode(), 422),
    "a long key": (ADAPT, answers_of({"k" * LONG: 1}), 422),
    "a text without an end": (SCORE, b'"' + b'\\"' * (LONG // 2), 422),
    "quotes": (SCORE, b'"' * (LONG // 8), 422),
    "wrong answers": (ADAPT, answers_of(*[1] * 512), 422),
    "too many answers": (ADAPT, answers_of(*[ANSWER] * 513), 422),
    "no answers": (ADAPT, answers_of(), 422),
    "half an answer": (ADAPT, answers_of({"chosen": "a"}), 422),
    "an odd label": (ADAPT, answers_of({**ANSWER, "label": 2}), 422),
    "an odd text": (ADAPT, answers_of({**ANSWER, "chosen": 5}), 422),
    "an empty text": (ADAPT, answers_of(ANSWER, {**ANSWER, "chosen": ""}), 422),
    "too large": (REWARD, b" " * ((8 << 20) + 1), 413),
}


def test_wrong_bodies_are_refused_shortly(model: RewardModel) -> None:
    with asking(model) as http:
        for name, (path, content, status) in WRONG_BODIES.items():
            reply = http.post(path, content=content, headers=JSON)
            assert reply.status_code == status, (name, reply.text[:300])
            assert len(reply.content) < 2000, name
            assert reply.json()["detail"], name
        row = http.post("/v1/score", json={"prompt": "p", "response": "r"}).json()["detail"]
        assert row[0]["msg"] == "Field required: a list, with an entry for each row's prompt"
        chunks = http.post("/v1/score", content=(b" " * (1 << 20) for _ in range(9)), headers=JSON)
        assert chunks.status_code == 413
        good = {"prompts": ["p"], "responses": ["," * (MOST_VALUES + 1) + '[{"\\' * 9]}
        found = http.post("/v1/score", json=good).json()  # brackets in a text are no values
        assert "serve.max_row_bytes" in found["errors"]["0"]
        odd = http.post("/get_reward", json={"query": ["a"], "labels": ['{"a":' * 10_000]})
        assert odd.json()["extra_logs"] == {"pal_user_known": [0.0], "pal_prompt_cut": [0.0]}
        assert 'code="500"' not in http.get("/metrics").text


def test_bodies_of_many_values_are_read_beside_the_event_loop(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: dict[int, str] = {}

    def read(raw: bytes) -> Any:
        readers[len(raw)] = threading.current_thread().name
        return parse(raw)

    monkeypatch.setattr("pal.reward.server.body.parse", read)
    long = {"prompts": ["p"], "responses": ["r " * 30_000]}
    many = {"answers": [ANSWER] * 512}
    assert len(json.dumps(many)) < len(json.dumps(long))  # and yet takes longer to read
    with asking(model) as http:
        for path, body in ((SCORE, long), (ADAPT, many)):
            assert http.post(path, json=body).status_code == 200
    one, other = (readers[size] for size in sorted(readers))
    assert one.startswith("aside")
    assert not other.startswith("aside")


def test_users_are_one_by_path_number_and_text(model: RewardModel) -> None:
    with asking(model) as http:
        for path, name in (("a%2Fb", "a/b"), ("7", "7"), ("a%00b", "a\0b"), ("%C3%A9%0D", "é\r")):
            reply = http.post(f"/v1/users/{path}/adapt", json={"answers": [ANSWER]})
            assert reply.json()["user"] == name
        labels = [7, {"user_id": "a/b"}, "7", "a\0b", "é\r", 8]
        known = http.post("/get_reward", json={"query": ["a"] * 6, "labels": labels}).json()
        assert known["extra_logs"]["pal_user_known"] == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
        assert http.delete("/v1/users/a%00b").status_code == 200
        for path, status in (("x" * 10_000, 422), ("%20", 422), ("%ff", 400), ("%ed%a0%80", 400)):
            reply = http.post(f"/v1/users/{path}/adapt", json={"answers": [ANSWER]})
            assert reply.status_code == status
            assert len(reply.content) < 300
            assert http.delete(f"/v1/users/{path}").status_code == status


def test_an_error_of_ours_is_500_and_counted(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(model, ServeConfig(), None)
    app = build_app(service)
    with TestClient(app, "http://localhost", raise_server_exceptions=False) as http:
        with monkeypatch.context() as patch:
            patch.setattr(model, "score_rows", lambda rows, vectors: [][0])
            body = {"prompts": ["p"] * 70, "responses": ["r"] * 70}
            assert http.post("/v1/score", json=body).status_code == 500
        assert http.post("/v1/score", json=body).status_code == 200  # the thread goes on
        assert 'pal_requests_total{code="500",path="/v1/score"} 1.0' in http.get("/metrics").text
        assert http.get("/health").json() == {"status": "ok", "waiting": 0}
    assert service.metrics.accepted == service.metrics.answered


# --- who may ask -----------------------------------------------------------------------------


def test_who_may_ask_is_settled_before_the_body_is_read(model: RewardModel) -> None:
    right = {"Authorization": f"Bearer {TOKEN}", "Connection": "close"}
    long, mine = 8 << 20, {"allowed_hosts": ["me.example"]}
    for options, token, asked, status in (
        ({}, TOKEN, head("/v1/score", long), 401),
        ({}, TOKEN, head("/v1/score", long, Authorization="Bearer wrong"), 401),
        ({}, TOKEN, head("/v1/score", long, Authorization=f"Basic {TOKEN}"), 401),
        ({}, TOKEN, head("/v1/score", long, Authorization=f"Bearer {TOKEN}x"), 401),
        ({}, TOKEN, head("/nowhere", long), 401),
        ({}, TOKEN, head("/metrics", 0, "GET"), 401),
        ({}, TOKEN, head("/health", 0, "GET"), 200),
        ({}, TOKEN, head("/metrics", 0, "GET", **right, Host="any.example"), 200),
        ({}, TOKEN, head("/v1/score", long + 1, **right), 413),
        ({}, TOKEN, head("/v1/score", long, **{**right, "Content-Type": "text/plain"}), 415),
        ({}, TOKEN, head("/v1/score", long, Origin="http://evil.example", **right), 403),
        ({}, None, head("/v1/score", long, Host="evil.example"), 421),
        ({}, None, head("/v1/score", long, Host="localhost.evil.example:8000"), 421),
        ({}, None, head("/health", 0, "GET", Host="evil.example"), 421),
        ({}, None, head("/health", 0, "GET", Host="LOCALHOST.:8000"), 200),
        ({}, None, head("/health", 0, "GET", Host="[::1]:8000"), 200),
        ({}, None, head("/health", 0, "GET", Origin="http://localhost"), 200),
        ({}, None, head("/health", 0, "GET", Origin="null"), 403),
        ({}, None, head("/health", 0, "GET", Origin="http://localhost:3000"), 403),
        ({}, None, head("/v1/users/u", 0, "DELETE", Origin="http://evil.example"), 403),
        ({}, None, b"GET /health HTTP/1.0\r\n\r\n", 200),
        (mine, None, head("/health", 0, "GET", Host="me.example"), 200),
        (mine, TOKEN, head("/metrics", 0, "GET", **right, Host="me.example:80"), 200),
        (mine, TOKEN, head("/metrics", 0, "GET", **right, Host="a.example"), 421),
    ):  # fmt: skip
        app = build_app(SimpleNamespace(**fields_of(model, options, token)))  # type: ignore[arg-type]
        reply = asyncio.run(reply_of(app, asked))
        assert reply == status, asked


def fields_of(model: RewardModel, options: Any, token: str | None) -> dict[str, Any]:
    """Return what the application asks of a service before it scores."""
    return {
        "model": model,
        "settings": ServeConfig(**options),
        "token": token,
        "metrics": Metrics(),
        "is_running": True,
        "questions": [],
        "worker": SimpleNamespace(turns=SimpleNamespace(waiting=0)),
    }


async def reply_of(app: Any, asked: bytes) -> int:
    """Return the status of a reply to a request whose body never comes."""
    import h11

    parser = h11.Connection(h11.SERVER)
    parser.receive_data(asked)
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    scope = {
        "type": "http",
        "http_version": request.http_version.decode(),
        "method": request.method.decode(),
        "path": request.target.decode(),
        "raw_path": request.target,
        "query_string": b"",
        "headers": [(key.lower(), value) for key, value in request.headers],
    }
    statuses: list[int] = []

    async def receive() -> Any:
        raise AssertionError("the body was asked for")

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receive, send)
    return statuses[0]


def test_no_token_is_made_up_but_on_other_addresses(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    served: list[Any] = []
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda self, sockets: served.append(sockets[0].close())
    )
    run_server(model, ServeConfig(host="0.0.0.0", port=0), "", told.append)
    assert served
    assert told[0].startswith("bearer token, for this run only: ")


def test_what_is_kept_from_collections_is_freed_at_the_end(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[int] = []

    def run(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        sockets[0].close()
        frozen.append(gc.get_freeze_count())
        raise KeyboardInterrupt  # as uvicorn ends after a Ctrl-C

    monkeypatch.setattr(uvicorn.Server, "run", run)
    with pytest.raises(KeyboardInterrupt):
        run_server(model, ServeConfig(port=0), None)
    assert frozen[0] > 0
    assert gc.get_freeze_count() == 0


# --- connections -----------------------------------------------------------------------------


def test_slow_clients_are_ended(model: RewardModel) -> None:
    limits = {"head_seconds": 0.3, "body_seconds": 0.3, "idle_seconds": 0.3}
    health = head("/health", 0, "GET")
    with running(model, **limits) as live:

        def dripping(beginning: bytes, drop: bytes) -> bytes:
            with socket.create_connection(live.place, timeout=5) as connection:
                connection.sendall(beginning)
                began = time.monotonic()
                while time.monotonic() - began < 5:
                    try:
                        connection.sendall(drop)
                    except OSError:
                        break
                    time.sleep(0.02)
                else:
                    raise AssertionError("it drips for ever")
                try:
                    return everything(connection)
                except OSError:
                    return b""

        def unread() -> bytes:
            with socket.socket() as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(5)
                connection.connect(live.place)
                for _ in range(500):
                    try:
                        connection.sendall(head("/metrics", 0, "GET") * 10)
                    except ConnectionError:
                        return b""
                    time.sleep(0.01)
            raise AssertionError("replies wait for ever")

        with ThreadPoolExecutor() as pool:
            found = [
                pool.submit(live.raw, b""),  # says nothing
                pool.submit(live.raw, health),  # and nothing more
                pool.submit(live.raw, b"GET /hea"),
                pool.submit(live.raw, head("/v1/score", 100) + b"{"),
                pool.submit(dripping, health[:-2], b"X: y\r\n"),
                pool.submit(dripping, head("/v1/score", 8 << 20), b" "),
                pool.submit(dripping, head("/v1/score", 9 << 20), b" "),  # was refused already
                pool.submit(unread),
            ]
            silent, idle, begun, half, *_ = [one.result(timeout=20) for one in found]
        assert silent == b""
        assert idle.startswith(b"HTTP/1.1 200")
        assert begun.startswith(b"HTTP/1.1 408") == half.startswith(b"HTTP/1.1 408") == True  # noqa: E712
        with client(live.address, None) as http:
            assert http.get("/health").status_code == 200
        wait_until(lambda: not live.server.server_state.tasks)


def test_other_ways_of_asking(model: RewardModel) -> None:
    body = json.dumps({"prompts": ["p"], "responses": ["r"]}).encode()
    one = head("/v1/score", len(body)) + body
    last = head("/v1/score", len(body), Connection="close") + body
    with running(model) as live:
        reply = live.raw(one * 5 + last)  # pipelined
        assert len(re.findall(rb"HTTP/1\.1 200", reply)) == 6
        old = live.raw(b"POST /v1/score HTTP/1.0\r\ncontent-type: application/json\r\n"
                       b"content-length: %d\r\n\r\n%s" % (len(body), body))  # fmt: skip
        assert old.startswith(b"HTTP/1.1 200")
        assert b'"rewards":[' in old
        told = live.raw(head("/health", 0, "HEAD", Connection="close"))
        assert told.startswith(b"HTTP/1.1 200")
        assert told.endswith(b"\r\n\r\n")
        for asked, status in (
            (head("/nowhere", 0, "GET", Connection="close"), 404),
            (head("/v1/score", 0, "GET", Connection="close"), 405),
            (head("/v1/score", 0, "PUT", Connection="close"), 405),
            (head("/metrics", 0, "HEAD", Connection="close"), 405),
            (head("/v1/score", 0, "OPTIONS", Connection="close"), 405),
            (b"GET /health HTTP/1.1\r\n\r\n", 400),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50, 400),  # TLS
            (head("/health", 0, "GET", X="y" * 1_000_000), 400),
            (head("/health", 0, "GET", Upgrade="websocket", Connection="upgrade, close"), 200),
        ):
            assert live.raw(asked).startswith(b"HTTP/1.1 %d" % status), asked[:80]


def test_a_body_that_stops_being_http_is_no_error_of_ours(
    model: RewardModel, caplog: pytest.LogCaptureFixture
) -> None:
    chunked = {"Transfer-Encoding": "chunked", "Host": "localhost"}
    with running(model, TOKEN) as live:
        for path, headers in (
            ("/v1/score", {}),  # refused while the rest arrives
            ("/v1/score", {"Authorization": f"Bearer {TOKEN}"}),  # its body is waited for
            ("/docs", {}),
        ):
            for method in ("GET", "POST"):
                lines = [f"{method} {path} HTTP/1.1", "Content-Type: application/json"]
                lines += [f"{key}: {value}" for key, value in (chunked | headers).items()]
                asked = "\r\n".join([*lines, "", ""]).encode() + b"1\r\n[\r\n"
                assert live.raw(asked + b"no length\r\n")[9:12] in (b"400", b"401", b"200", b"405")
                with socket.create_connection(live.place, timeout=5) as connection:
                    connection.sendall(asked)
                    time.sleep(0.05)  # the reply, where there is one, comes before
                    connection.sendall(b"no length\r\n")
                    assert everything(connection).startswith(b"HTTP/1.1 ")
        wait_until(lambda: not live.server.server_state.tasks)
        told = live.service.metrics.text()
    assert 'code="5' not in told
    assert [one.message for one in caplog.records if one.levelno >= logging.ERROR] == []


# --- the model's thread ----------------------------------------------------------------------


def rows_job(costs: list[int]) -> RowsJob:
    rows: Any = [Row(None, None)] * len(costs)  # type: ignore[arg-type]
    return RowsJob(rows, torch.zeros(len(costs), 2), costs)


@settings(deadline=None)
@given(
    jobs=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=30), max_size=12),
    max_rows=st.integers(1, 20),
    max_cost=st.integers(1, 100),
)
def test_all_requests_take_turns(jobs: list[list[int]], max_rows: int, max_cost: int) -> None:
    turns = Turns(max_rows, max_cost)
    made = [rows_job(costs) for costs in jobs]
    for job in made:
        turns.put(job)
    taken: Counter[int] = Counter()
    served_in: dict[int, int] = {}
    batches = 0
    while turns.jobs:
        parts = turns.next_batch()
        batches += 1
        costs = [cost for part in parts for cost in part.job.costs[part.rows]]
        assert 1 <= len(costs) <= max_rows
        assert sum(costs) <= max_cost or len(costs) == 1
        for part in parts:
            number = made.index(part.job)
            assert part.rows.start == taken[number]  # in order, each once
            taken[number] = part.rows.stop
            served_in.setdefault(number, batches)
    assert taken == {number: len(costs) for number, costs in enumerate(jobs)}
    # nobody's first row waits for more than a turn of each of those before
    assert all(batch <= 8 * (number + 1) for number, batch in served_in.items())


@pytest.mark.parametrize("cost", [40, 3000, 20_000])
def test_a_short_request_does_not_wait_for_a_long_one(cost: int) -> None:
    turns = Turns(64, 16_384)
    long, short, cancelled = rows_job([cost] * 1000), rows_job([40]), rows_job([40] * 5)
    for job in (long, short, cancelled):
        turns.put(job)
    cancelled.future.cancel()
    batches = [[part.job for part in turns.next_batch()] for _ in range(2)]
    assert batches[0][0] is long
    assert short in batches[0] or short is batches[1][0]
    while turns.jobs:
        assert all(part.job is long for part in turns.next_batch())
    assert turns.waiting == 1001  # those that were given out, none of those given up


def test_many_long_requests_share_a_batch() -> None:
    turns = Turns(64, 16_384)
    for _ in range(20):
        turns.put(rows_job([40] * 1000))
    short = rows_job([40])
    turns.put(short)
    batches = [[part.job for part in turns.next_batch()] for _ in range(3)]
    assert short in batches[2]  # not in the 21st


class Log:
    """A model that keeps a list of what it was asked to do."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.waits = lambda: False

    def score_rows(self, rows: Any, vectors: Any) -> Any:
        time.sleep(0.002)
        self.done.append("rows")
        return torch.zeros(len(rows)), {}


class Asked:
    """A user's answers, of which so many items are encoded."""

    def __init__(self, log: Log, items: int) -> None:
        self.log, self.encoded = log, 0
        self.costs = [40] * items

    def encode(self, count: int) -> None:
        time.sleep(0.0002 * count)
        self.log.done.append(f"{count} items")
        self.encoded += count

    def solve(self) -> torch.Tensor:
        return torch.tensor([self.encoded])


def test_answers_are_encoded_between_batches_and_come_to_an_end() -> None:
    log = Log()
    worker = Worker(log, ServeConfig(queue=10_000, max_wait_ms=0), Metrics())  # type: ignore[arg-type]
    rows = [rows_job([40] * 64) for _ in range(60)]
    users: list[Any] = [Asked(log, 100) for _ in range(2)]
    for job in rows:
        worker.submit_rows(job)
    learned = [worker.submit_answers(AnswersJob(asked, asked.costs)) for asked in users]
    assert (worker.turns.waiting, worker.items_waiting) == (3840, 200)
    worker.start()
    assert [int(found.result(timeout=10)) for found in learned] == [100, 100]
    for job in rows:
        assert job.future.result(timeout=10).rewards.shape == (64,)
    worker.stop()
    assert (worker.turns.waiting, worker.items_waiting) == (0, 0)
    begun = log.done[: len(log.done) - log.done[::-1].index("rows")]  # while rows waited
    assert begun[0] == "rows"
    assert "items" in begun[1]
    for one, other in pairwise(begun):
        assert "rows" in (one, other)  # never two slices behind each other
    sizes = [int(done.split()[0]) for done in begun if done != "rows"]
    assert max(sizes) <= 20  # of 0.2 ms each, beside batches of 2 ms


def test_a_full_queue_of_answers_keeps_no_rows_out(model: RewardModel) -> None:
    worker = Worker(model, ServeConfig(queue=4, adapt_queue=1024), Metrics())
    log = Log()
    asked: Any = Asked(log, 1024)
    worker.submit_answers(AnswersJob(asked, asked.costs))
    with pytest.raises(Full):
        worker.submit_answers(AnswersJob(asked, [40, 40]))
    worker.submit_rows(rows_job([40] * 3))
    with pytest.raises(Full):
        worker.submit_rows(rows_job([40] * 2))
    with asking(model, adapt_queue=2) as http:
        reply = http.post("/v1/users/u/adapt", json={"answers": [ANSWER] * 2})
        assert (reply.status_code, "retry-after" in reply.headers) == (413, False)  # no use
        assert http.post("/v1/users/u/adapt", json={"answers": [ANSWER]}).status_code == 200


def test_a_user_learned_in_slices_is_the_user_learned_at_once(model: RewardModel) -> None:
    from pal.reward.adaptation import Questionnaire
    from pal.reward.model import Answer

    answers = [Answer(f"thing {n}", f"a {n}", f"b {n % 3}", (n % 3) / 2) for n in range(9)]
    wanted = model.adapt(answers)
    asked = Questionnaire(model, answers)
    for size in (1, 4, 1, 2, 100):
        asked.encode(size)
    assert torch.allclose(asked.solve(), wanted, atol=1e-4)


def test_batches_of_several_threads_give_each_request_its_own_rows(model: RewardModel) -> None:
    """Parts of one request are ready in any order."""

    class Numbers:
        """A model whose rewards are the users' numbers."""

        def score_rows(self, rows: Any, vectors: Any) -> Any:
            time.sleep(0.002 * (int(vectors[0, 0]) % 3))
            numbers = vectors[:, 0].tolist()
            odd = {place: "odd" for place, number in enumerate(numbers) if number == 100}
            return vectors[:, 0].clone(), odd

    worker = Worker(Numbers(), ServeConfig(queue=10_000), Metrics(), threads=3)  # type: ignore[arg-type]
    jobs = []
    for size in (100, 1, 37, 64, 5):
        job = rows_job([40] * size)
        job.vectors = torch.arange(100.0, 100.0 + size)[:, None]
        worker.submit_rows(job)
        jobs.append(job)
    worker.start()
    for job in jobs:
        found = job.future.result(timeout=10)
        assert torch.equal(found.rewards, job.vectors[:, 0])
        assert found.failures.get(0) == "odd"
    assert worker.is_running
    worker.stop()
    assert (worker.turns.waiting, worker.busy, worker.is_running) == (0, 0, False)


def test_a_request_whose_parts_fail_at_once_ends_no_thread() -> None:
    """Whoever comes second finds that the first is about to answer."""
    future: Future[int] = Future()
    future.set_running_or_notify_cancel()  # another thread is between claiming and answering
    _fail(future, ValueError("the same"))
    _answer(future, 1)
    assert not future.done()


def test_rows_wait_for_others_while_another_thread_is_busy() -> None:
    """Rows at the model are not on their way to a batch."""
    begun, go = threading.Event(), threading.Event()
    sizes: list[int] = []

    class Slow:
        def score_rows(self, rows: Any, vectors: Any) -> Any:
            if len(rows) == 8:
                begun.set()
                go.wait(10)
            sizes.append(len(rows))
            return torch.zeros(len(rows)), {}

    settings = ServeConfig(max_batch=8, max_wait_ms=400)
    threads = torch.get_num_threads()
    worker = Worker(Slow(), settings, Metrics(), threads=2)  # type: ignore[arg-type]
    worker.start()
    first = rows_job([40] * 8)
    worker.submit_rows(first)
    assert begun.wait(10)
    later = [rows_job([40]) for _ in range(4)]
    for job in later:
        worker.submit_rows(job)
        time.sleep(0.01)
    for job in later:
        job.future.result(timeout=10)
    go.set()
    first.future.result(timeout=10)
    worker.stop()
    assert sizes == [4, 8]
    found: list[int] = []
    new = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    new.start()
    new.join()
    assert found == [threads]  # what a worker's threads had is theirs


def test_what_is_left_of_a_full_batch_waits_for_nothing() -> None:
    """A thread that is woken for a share of it does not begin to wait anew."""

    class Quick:
        def score_rows(self, rows: Any, vectors: Any) -> Any:
            time.sleep(0.01)
            return torch.zeros(len(rows)), {}

    settings = ServeConfig(max_batch=64, max_wait_ms=1000)
    worker = Worker(Quick(), settings, Metrics(), threads=4)  # type: ignore[arg-type]
    worker.start()
    jobs = [rows_job([40]) for _ in range(64)]
    began = time.monotonic()
    for job in jobs:
        worker.submit_rows(job)
    for job in jobs:
        job.future.result(timeout=10)
    assert time.monotonic() - began < 0.9
    worker.stop()


def test_a_model_that_changes_in_a_pass_has_one_thread() -> None:
    def model(device: str, may_run_at_once: bool) -> Any:
        encoder = SimpleNamespace(device=device, may_run_at_once=may_run_at_once)
        return SimpleNamespace(encoder=encoder)

    assert threads_for(model("cpu", False)) == threads_for(model("cuda", True)) == 1
    assert threads_for(model("cpu", True)) == min(torch.get_num_threads(), MOST_THREADS)


ODD_BODIES = [
    b"", b"null", b"[]", b"{}", b'"x"', b"{", b"\xff", b'{"prompts": [], "responses": []}',
    b'{"prompts": ["p"], "responses": ["r"]}',
    b'{"prompts": "p", "responses": ["r"]}',
    b'{"prompts": ["p"], "responses": {"a": 1}, "users": 3}',
    b'{"prompts": ["p"], "responses": ["r", "s"]}',
    b'{"prompts": ["p", null], "responses": ["r", 7], "users": ["nobody", {"0": 1.0}]}',
    b'{"prompts": ["p"], "responses": ["r"], "users": ["a", "b"], "more": NaN}',
    b'{"prompts": ["p"], "responses": ["' + b"r" * 300_000 + b'"]}',
    b'{"prompts": ["p"], "responses": ["\\ud800"]}',
    b"[" * 40 + b"]" * 40,
]  # fmt: skip


def test_the_short_way_answers_as_the_document_says(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What direct.py answers is what FastAPI's own route would."""
    headers = {"content-type": "application/json"}

    def replies() -> list[Any]:
        with asking(model) as http:
            found = [http.post("/v1/score", content=body, headers=headers) for body in ODD_BODIES]
            counted = http.get("/metrics").text
        paths = [line for line in counted.splitlines() if line.startswith("pal_requests_total")]
        told = [(one.status_code, one.json(), dict(one.headers)) for one in found]
        null = ODD_BODIES.index(b"null")  # no body for FastAPI 0.150, one of a wrong kind for 0.165
        told[null] = told[null][0], {}, {}
        return told + sorted(paths)

    short = replies()
    monkeypatch.setattr("pal.reward.server.direct.PATH", "/nowhere")
    assert short == replies()
    assert {200, 422} <= {one[0] for one in short if isinstance(one, tuple)}


def test_results_of_a_batch_wake_the_loop_once() -> None:
    from concurrent.futures import Future

    async def main() -> tuple[list[Any], int]:
        box, loop = Mailbox(), asyncio.get_running_loop()
        futures: list[Future[int]] = [Future() for _ in range(9)]
        waiting = [asyncio.create_task(box.result_of(future)) for future in futures]
        await asyncio.sleep(0)
        woken, plain = 0, loop.call_soon_threadsafe

        def counted(*call: Any) -> Any:
            nonlocal woken
            woken += 1
            return plain(*call)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        waiting[0].cancel()
        await asyncio.sleep(0.01)
        assert futures[0].cancelled()  # so that nobody works for nobody
        before = woken
        for number, future in enumerate(futures[1:8]):
            future.set_result(number)
        futures[8].set_exception(ValueError("odd"))
        found = await asyncio.gather(*waiting, return_exceptions=True)
        return found, woken - before

    found, woken = asyncio.run(main())
    assert woken == 1
    assert found[1:8] == list(range(7))
    assert [type(one) for one in (found[0], found[8])] == [asyncio.CancelledError, ValueError]


def slow_down(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> threading.Event:
    """Let each batch take so long; returns what is set when the first one begins."""
    plain, began = model.score_rows, threading.Event()

    def slowly(rows: Any, vectors: Any) -> Any:
        began.set()
        time.sleep(seconds)
        return plain(rows, vectors)

    monkeypatch.setattr(model, "score_rows", slowly)
    return began


def test_nobody_waits_behind_work_for_nobody(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = slow_down(model, monkeypatch, 0.1)
    rows = json.dumps({"prompts": ["p"] * 500, "responses": ["r"] * 500}).encode()
    learned = json.dumps({"answers": [ANSWER] * 512}).encode()
    with running(model, max_batch=1) as live:
        worker = live.service.worker
        with (
            socket.create_connection(live.place) as one,
            socket.create_connection(live.place) as two,
        ):
            one.sendall(head("/v1/score", len(rows)) + rows)
            two.sendall(head("/v1/users/u/adapt", len(learned)) + learned)
            began.wait(5)
            wait_until(lambda: worker.items_waiting > 0)
            assert worker.turns.waiting > 400
        wait_until(lambda: worker.turns.waiting == worker.items_waiting == 0)
        assert live.service.metrics.accepted == 2
        assert live.service.metrics.answered == 0
    assert "u" not in model.users


def test_bodies_that_are_held_have_a_bound(model: RewardModel) -> None:
    with running(model, max_body_bytes=1000) as live:
        begun = head("/v1/score", 1000) + b"[" * 999
        held = [socket.create_connection(live.place, timeout=5) for _ in range(16)]
        try:
            for connection in held:
                connection.sendall(begun)
            wait_until(lambda: live.service.metrics.accepted == 16)
            time.sleep(0.1)
            refused = live.raw(head("/v1/score", 1000, Connection="close") + b"[" * 999)
            assert refused.startswith(b"HTTP/1.1 429")
        finally:
            for connection in held:
                connection.close()
        body = json.dumps({"prompts": ["p"], "responses": ["r"]}).encode()
        wait_until(lambda: not live.server.server_state.connections)
        asked = head("/v1/score", len(body), Connection="close") + body
        assert live.raw(asked).startswith(b"HTTP/1.1 200")


# --- users who were learned ------------------------------------------------------------------


def test_what_is_known_and_what_is_kept_agree(model: RewardModel) -> None:
    async def change(address: str) -> Counter[int]:
        statuses: Counter[int] = Counter()

        async def one(number: int, http: aiohttp.ClientSession) -> None:
            user = f"/v1/users/u{number % 3}"
            if number % 2:
                answers = [{**ANSWER, "chosen": f"a {n}"} for n in range(1 + number % 4)]
                asked = http.post(f"{user}/adapt", json={"answers": answers})
            else:
                asked = http.delete(user)
            async with asked as reply:
                statuses[reply.status] += 1

        async with aiohttp.ClientSession(address) as http:
            await asyncio.gather(*[one(number, http) for number in range(30)])
        return statuses

    with running(model) as live:
        statuses = asyncio.run(change(live.address))
        kept = live.service.store.load(len(model.users.default))
        assert statuses[200] >= 15
        assert set(statuses) == {200, 404}
        assert {user: vector.tolist() for user, vector in kept.items()} == {
            user: vector.tolist() for user, vector in model.users.added.items()
        }


def test_what_cannot_be_kept_is_not_known(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(model, ServeConfig(), None)
    with TestClient(build_app(service), "http://localhost") as http:
        assert http.post("/v1/users/old/adapt", json={"answers": [ANSWER]}).status_code == 200
        before = dict(model.users.added)
        service.store.connection.execute("PRAGMA query_only=ON")
        reply = http.post("/v1/users/new/adapt", json={"answers": [ANSWER]})
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert "cannot keep users in users.sqlite" in reply.json()["detail"]
        assert http.delete("/v1/users/old").status_code == 503
        assert model.users.added == before
        service.store.connection.execute("PRAGMA query_only=OFF")
        assert http.delete("/v1/users/old").status_code == 200
        assert model.users.added == {}


def test_a_store_that_is_none_is_refused(model: RewardModel) -> None:
    def store(name: str) -> sqlite3.Connection:
        UserStore(Path(name), "another head").close()
        return sqlite3.connect(name)

    Path("text").write_text("no database" * 100)
    Path("folder").mkdir()
    with store("columns") as made:
        made.execute("ALTER TABLE user_vectors DROP COLUMN answers")
    with store("damaged") as made:
        made.executemany(
            "INSERT INTO user_vectors VALUES ('h', ?, 1, ?)",
            [(str(number), bytes(500)) for number in range(500)],
        )
        made.commit()
        made.execute("PRAGMA journal_mode=DELETE")
    raw = bytearray(Path("damaged").read_bytes())
    for start in range(4096, len(raw), 4096):
        raw[start : start + 100] = b"\xff" * 100
    Path("damaged").write_bytes(raw)
    for name in ("text", "folder", "nowhere/users.sqlite", "columns", "damaged"):
        with pytest.raises(RewardError, match=f"{name} .*give another file as serve.store"):
            Service(model, ServeConfig(store=Path(name)), None)


def test_a_store_that_cannot_be_written_is_refused(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    UserStore(Path("users.sqlite"), model.metadata.head_id).close()
    plain = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **given: plain(f"file:{path}?mode=ro", uri=True, **given)
    )
    with pytest.raises(RewardError, match="cannot keep users in users.sqlite .*readonly"):
        Service(model, ServeConfig(), None)


def test_a_damaged_user_is_left_out(model: RewardModel) -> None:
    head_id, size = model.metadata.head_id, len(model.users.default)
    store = UserStore(Path("users.sqlite"), head_id)
    for name in ("sound", "flipped", "other", "number", "no text"):
        store.put(name, 3, torch.arange(size))
    store.close()
    with sqlite3.connect("users.sqlite") as connection:
        for change in (
            "vector = CAST(X'01' || substr(vector, 2) AS BLOB) WHERE user = 'flipped'",
            "user = 'renamed' WHERE user = 'other'",
            "vector = 5 WHERE user = 'number'",
            "user = CAST(X'ff' AS TEXT) WHERE user = 'no text'",
        ):
            connection.execute(f"UPDATE user_vectors SET {change}")
    connection.close()
    with pytest.warns(PalWarning, match="4 of 5 users in users.sqlite have no vector"):
        service = Service(model, ServeConfig(), None)
    assert set(model.users.added) == {"sound"}
    with pytest.raises(RewardError, match="another server keeps the users of this model"):
        Service(model, ServeConfig(), None)
    UserStore(Path("users.sqlite"), "of another head").close()
    service.store.close()


def test_ids_of_strangers_are_in_no_log(
    model: RewardModel, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = ["somebody@example.com", "line\nERROR: forged line", "x" * 10_000, "\x1b[31mred"]
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with running(model) as live, client(live.address, None) as http:
            body = {"prompts": ["p"] * 4, "responses": ["r"] * 4, "users": ids}
            assert http.post("/v1/score", json=body).json()["unknown_users"] == 4
            assert http.delete("/v1/users/somebody@example.com").status_code == 404
            assert http.get("/v1/users/somebody@example.com").status_code == 405
            assert "pal_unknown_users_total 4.0" in http.get("/metrics").text
    logged = [record.getMessage() for record in caplog.records if "http" not in record.name]
    told = "".join([*logged, *(str(one.message) for one in warned), *capfd.readouterr()])
    assert not any(word in told for word in ("example", "forged", "xxxx", "[31m"))
    offline = RewardModel(model.contents, model.encoder)
    with pytest.warns(PalWarning) as found:
        offline.score("p", ["r"] * 4, ids)
    told = "".join(str(one.message) for one in found)
    assert "user 'somebody'... is not known" in told
    assert not any(word in told for word in ("example", "forged", "x" * 9, "\n", "\x1b"))


# --- load, and the end -----------------------------------------------------------------------


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


def require_offline(model: RewardModel, answers: list[tuple[str, str, str, float]]) -> None:
    unique = sorted({answer[:3] for answer in answers})
    scores = model.score([a[0] for a in unique], [a[1] for a in unique], [a[2] for a in unique])
    wanted = dict(zip(unique, scores, strict=True))
    assert [answer[3] for answer in answers] == pytest.approx(
        [wanted[answer[:3]] for answer in answers], rel=1e-5
    )


@pytest.mark.parametrize("seconds", [1.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_many_connections_get_their_own_answers(model: RewardModel, seconds: float) -> None:
    with running(model, TOKEN) as live:
        result = asyncio.run(load(live.address, 64, seconds))
    assert set(result["statuses"]) <= {200, 429}
    assert result["broken"] == 0
    assert len({answer[2] for answer in result["answers"]}) == len(USERS)
    require_offline(model, result["answers"])


def test_a_full_queue_is_429_and_loses_nothing(model: RewardModel) -> None:
    with running(model, TOKEN, queue=4, max_batch=2) as live:
        result = asyncio.run(load(live.address, 64, 1.0))
    assert set(result["statuses"]) == {200, 429}
    require_offline(model, result["answers"])


@pytest.mark.slow
def test_a_server_ends_and_begins_again(exported: Path, model: RewardModel) -> None:
    row = {"prompts": ["p"], "responses": ["a"], "users": ["new"]}
    with serving(exported) as (address, process), client(address) as http:
        host, port = address.removeprefix("http://").split(":")
        place = (host, int(port))
        socket.create_connection(place).close()  # what is announced can be reached at once
        assert http.post("/v1/users/new/adapt", json={"answers": [ANSWER] * 8}).status_code == 200
        adapted = http.post("/v1/score", json=row).json()
        with socket.create_connection(place) as half:  # a body that never comes
            half.sendall(head("/v1/score", 100, Authorization=f"Bearer {TOKEN}"))
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=1)
            process.send_signal(signal.SIGTERM)  # who asks twice does not want to wait
            assert process.wait(timeout=5) == -signal.SIGTERM

    async def end_it(process: subprocess.Popen[str]) -> None:
        await asyncio.sleep(1.0)
        process.send_signal(signal.SIGTERM)

    async def both(address: str, process: subprocess.Popen[str]) -> dict[str, Any]:
        result, _ = await asyncio.gather(load(address, 64, 6.0), end_it(process))
        return result

    with serving(exported) as (address, process):
        with client(address) as http:
            again = http.post("/v1/score", json=row).json()  # the adapted user is still known
            assert again["rewards"] == pytest.approx(adapted["rewards"], rel=1e-6)
            assert again["unknown_users"] == 0
        result = asyncio.run(both(address, process))
        assert process.stderr is not None
        told = re.search(r"(\d+) requests accepted, (\d+) answered", process.stderr.read())
    assert told is not None
    statuses = result["statuses"]
    assert int(told[1]) == int(told[2]) == sum(statuses.values()) + 1  # and all of it arrived
    assert set(statuses) <= {200, 429}
    assert statuses[200] > 0
    require_offline(model, result["answers"])


def test_what_takes_longer_than_the_end_may_take_is_503(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = slow_down(model, monkeypatch, 0.25)
    body = {"prompts": ["p"], "responses": ["r"]}
    with running(model, max_batch=1, drain_seconds=0.6) as live:
        with ThreadPoolExecutor(20) as pool, client(live.address, None) as http:

            def later(path: str, body: dict[str, Any]) -> httpx.Response:
                return http.post(path, json=body)

            first = [pool.submit(later, "/v1/score", body) for _ in range(12)]
            adapted = pool.submit(later, "/v1/users/u/adapt", {"answers": [ANSWER] * 300})
            began.wait(5)
            half = pool.submit(live.raw, head("/v1/score", 100))
            patience = time.monotonic() + 5.0
            while len(live.server.server_state.connections) < 14:  # 12, one that adapts, and half
                assert time.monotonic() < patience
                time.sleep(0.01)
            live.server.should_exit = True
            replies = [one.result(timeout=10) for one in (*first, adapted)]
            assert half.result().startswith(b"HTTP/1.1 503")
        live.thread.join(5)
        with pytest.raises(ConnectionRefusedError):
            live.raw(b"")
    statuses = Counter(reply.status_code for reply in replies)
    assert statuses[200] >= 2
    assert statuses[503] >= 5
    assert set(statuses) == {200, 503}
    late = [reply for reply in replies if reply.status_code == 503]
    assert all(reply.headers["retry-after"] == "1" for reply in late)
    assert all("the server is ending" in reply.json()["detail"] for reply in late)
