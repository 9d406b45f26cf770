"""Who watches a server: Prometheus, and the document that clients are made from."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pal.config import ServeConfig
from pal.reward import RewardModel
from pal.reward.server.app import build_app
from pal.reward.server.service import Service

Opened = Callable[..., RewardModel]
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "prometheus.yml"
TOKEN = "a token/with signs"


def client(model: RewardModel, token: str | None = None, **options: object) -> TestClient:
    service = Service(model, ServeConfig(**options), token)
    return TestClient(build_app(service), "http://localhost")


def test_numbers_are_explained_and_times_are_a_histogram(opened: Opened) -> None:
    with client(opened(["a"])) as http:
        for _ in range(3):
            http.post("/v1/score", json={"prompts": ["p"], "responses": ["r"]})
        http.post("/v1/users/a%20secret/adapt", json={"answers": []})
        text = http.get("/metrics").text
    names = set(
        re.findall(r"^(pal_[a-z_]+?)(?:_total|_bucket|_sum|_count|_created)?[ {]", text, re.M)
    )
    assert {"pal_rows", "pal_request_seconds", "pal_prompts_cut", "pal_rows_waiting"} <= names
    for name in names:
        assert re.search(rf"^# HELP {name}(_total|_created)? [A-Z].*\.$", text, re.M), name
    assert 'pal_request_seconds_count{path="/v1/score"} 3.0' in text
    assert 'pal_request_seconds_bucket{le="30.0",path="/v1/score"} 3.0' in text
    assert "secret" not in text
    if (promtool := shutil.which("promtool")) is not None:
        told = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True
        )
        assert told.returncode == 0, told.stderr + told.stdout


def test_the_example_for_prometheus_asks_as_the_server_wants(opened: Opened) -> None:
    import yaml

    job = yaml.safe_load(EXAMPLE.read_text())["scrape_configs"][0]
    kind = job["authorization"]["type"]
    with client(opened(["a"]), TOKEN) as http:
        assert http.get(job["metrics_path"]).status_code == 401
        headers = {"Authorization": f"{kind} {TOKEN}"}
        assert "pal_rows_total" in http.get(job["metrics_path"], headers=headers).text
    if (promtool := shutil.which("promtool")) is not None:
        shutil.copy(EXAMPLE, "prometheus.yml")
        Path(job["authorization"]["credentials_file"]).write_text(TOKEN)
        told = subprocess.run([promtool, "check", "config", "prometheus.yml"], capture_output=True)
        assert told.returncode == 0, told.stderr


def test_the_document_says_how_to_authorise(opened: Opened) -> None:
    with client(opened(["a"]), TOKEN) as http:
        document = http.get("/openapi.json").json()
    schemes = document["components"]["securitySchemes"]
    assert schemes == {"HTTPBearer": {"type": "http", "scheme": "bearer"}}
    for path, methods in document["paths"].items():
        for method in methods.values():
            assert bool(method.get("security")) == (path != "/health"), path
    shutil.rmtree("users.sqlite", ignore_errors=True)


def test_without_a_token_the_document_asks_for_none(opened: Opened) -> None:
    with client(opened(["a"])) as http:
        assert "securitySchemes" not in http.get("/openapi.json").json()["components"]


REWARD = {"query": ["p r"], "prompts": ["p"]}


def test_the_token_may_stand_in_the_path_for_openrlhf(opened: Opened) -> None:
    with client(opened(["a"]), TOKEN) as http:
        for path, status in (
            ("/get_reward", 401),
            ("/get_reward/", 401),
            ("/get_reward/another", 401),
            (f"/get_reward/{TOKEN}", 200),
            (f"/get_reward/{TOKEN}/", 401),
            (f"/v1/score/{TOKEN}", 401),
        ):
            assert http.post(path, json=REWARD).status_code == status, path
        assert TOKEN not in http.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    with client(opened(["a"])) as http:
        assert http.post("/get_reward/anything", json=REWARD).status_code == 200


@pytest.mark.parametrize(
    ("host", "called", "status"),
    [
        ("0.0.0.0", "10.1.2.3:8000", 200),
        ("0.0.0.0", "[fd00::1]:8000", 200),
        ("0.0.0.0", "evil.example", 421),
        ("127.0.0.1", "10.1.2.3", 421),
        ("127.0.0.1", "localhost", 200),
    ],
)
def test_without_a_token_other_machines_ask_by_address(
    opened: Opened, host: str, called: str, status: int
) -> None:
    """A name could be one of a page's own, which leads here; an address in numbers cannot."""
    with client(opened(["a"]), host=host) as http:
        reply = http.post("/get_reward", json=REWARD, headers={"host": called})
        assert reply.status_code == status
