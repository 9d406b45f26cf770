"""What a browser is shown by the server: its pages ask nobody else, and an interview tells what the
same answers tell elsewhere."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from pal import pipeline
from pal.config import Config, ServeConfig
from pal.errors import DataError, RewardError
from pal.reward import RewardModel
from pal.reward.audience import People
from pal.reward.model import Answer
from pal.reward.server.app import build_app
from pal.reward.server.guard import OPEN_PATHS
from pal.reward.server.pages import FILES, page_file
from pal.reward.server.questions import MOST_QUESTIONS, questions_of
from pal.reward.server.schemas import QuestionBody
from pal.reward.server.serve import Server, listen
from pal.reward.server.service import Service
from pal.train.adapt.active import ask_in_turn
from pal.train.adapt.answers import Answers
from pal.train.adapt.prior import Priors, make_prior

Opened = Callable[..., RewardModel]
TOKEN = "a-token-for-tests"
PEOPLE = ["Anna-Zwo", "Bob-Zwo", "Cid-Zwo"]
PAIRS = [
    {"prompt": f"Would you say this?\n{n}", "first": f"yes {n}", "second": "no"} for n in range(6)
]


@pytest.fixture(scope="module")
def model(opened: Opened) -> RewardModel:
    """A run of a random head, which can take new users."""
    return learned(opened(PEOPLE))


def learned(model: RewardModel) -> RewardModel:
    """Give the run of a test a prior, as its export has one, and smaller features: of a random head
    that is sure of everything nobody learns anything."""
    prior = Priors.always(make_prior(model.head, 0.3))
    model.contents = replace(model.contents, prior=prior)
    with torch.no_grad():
        model.head.get_buffer("item_scale.scale").fill_(0.1)
    return model


@contextmanager
def client(
    model: RewardModel, token: str | None = None, questions: Any = (), **options: Any
) -> Iterator[TestClient]:
    pairs = [QuestionBody(**one) for one in questions]
    service = Service(model, ServeConfig(**options), token, questions=pairs)
    app = build_app(service)
    app.state.service = service
    with TestClient(app, "http://localhost") as http:
        yield http


# --- the pages -------------------------------------------------------------------------------


def test_pages_need_no_token_and_hold_nothing_of_anybody(model: RewardModel) -> None:
    with client(model, TOKEN, PAIRS) as http:
        for path in (*FILES, "/docs"):
            for method in ("GET", "HEAD"):
                reply = http.request(method, path)
                assert reply.status_code == 200, path
                assert reply.headers["x-content-type-options"] == "nosniff"
            assert not any(name in http.get(path).text for name in (*PEOPLE, TOKEN, "yes 1"))
        for path in ("/v1/model", "/v1/questions"):
            assert http.get(path).status_code == 401
        assert http.post("/v1/interview", json={"questions": PAIRS}).status_code == 401
        for path in ("/redoc", "/docs/oauth2-redirect", "/page/", "/page/../serve.py"):
            assert http.get(path).status_code == 401, path
    assert {*FILES, "/docs", "/health", "/openapi.json"} == OPEN_PATHS


def test_other_names_of_the_server_get_no_page(model: RewardModel) -> None:
    with client(model) as http:
        for path in ("/", "/docs", "/page/page.js", "/v1/model"):
            assert http.get(path, headers={"host": "evil.example"}).status_code == 421


def test_pages_may_ask_only_this_server_and_run_only_its_files(model: RewardModel) -> None:
    with client(model) as http:
        for path in ("/", "/docs"):
            reply = http.get(path)
            policy = dict(
                part.strip().partition(" ")[::2]
                for part in reply.headers["content-security-policy"].split(";")
            )
            assert policy["default-src"] == "'none'"
            assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
            assert policy.get("script-src", "'none'") in ("'self'", "'none'")
            assert policy["style-src"] == "'self'"
            html = reply.text
            assert not re.search(r"\son\w+\s*=|<style|\sstyle=|javascript:", html)
            assert not re.search(r"<script(?![^>]*\ssrc=)", html)
            named = re.findall(r'<(?:script|link|img)[^>]*?(?:src|href)="([^"]+)"', html)
            assert set(named) <= {*FILES, "data:,"}
            for link in re.findall(r'<a [^>]*href="(/[^"]*)"', html):
                assert http.get(link).status_code == 200, link
            ids = re.findall(r'\sid="([^"]+)"', html)
            assert len(ids) == len(set(ids))
            referred = re.findall(
                r'href="#([^"]+)"|aria-[a-z]+="([a-z]+-[^"]+)"| for="(\w+)"', html
            )
            assert {name for group in referred for name in group if name} <= set(ids)
    for name, kind in FILES.values():
        text = page_file(name).decode()
        assert not re.search(r"https?://", text), name
        if kind == "text/javascript":
            assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(|document\.write", text)
            assert not re.search(r"localStorage|sessionStorage|document\.cookie|location", text)
            for module in re.findall(r'from "\./([^"]+)"', text):
                assert f"/page/{module}" in FILES


def test_the_document_for_people_has_every_route_and_escapes_texts(model: RewardModel) -> None:
    from pal.reward.server.document import as_html, operations_of

    with client(model, TOKEN) as http:
        document = http.get("/openapi.json").json()
        html = http.get("/docs").text
    for path, methods in document["paths"].items():
        assert f"<code>{path}</code>" in html
        assert all(one["description"] for one in methods.values())
    for name, schema in document["components"]["schemas"].items():
        if "Validation" not in name:
            assert all(f"<code>{field}</code>" in html for field in schema["properties"]), name
    assert "authorization: Bearer TOKEN" in html
    document["info"]["title"] = "<script>alert(1)</script>"
    assert "<script>" not in as_html(document, "<b>")
    for one in operations_of(document):
        if one.body is not None:  # the command's body is one that the route takes
            sent = json.loads(re.search(r"-d '(.*)'$", one.command, re.DOTALL)[1])  # type: ignore[index]
            path = one.path.format(user="new", token=TOKEN)
            with client(model, TOKEN) as http:
                headers = {"Authorization": f"Bearer {TOKEN}"}
                assert http.post(path, json=sent, headers=headers).status_code == 200, path
                http.delete("/v1/users/new", headers=headers)


# --- what the page asks ----------------------------------------------------------------------


def test_names_are_told_only_where_nobody_else_can_ask(model: RewardModel) -> None:
    for token, options, names in (
        (None, {}, PEOPLE),
        (TOKEN, {}, []),  # any name is answered: a proxy may lead here
        (None, {"allowed_hosts": ["me.example"]}, []),
        (None, {"host": "0.0.0.0"}, []),
        (TOKEN, {"host": "0.0.0.0"}, []),
    ):
        with client(model, token, **options) as http:
            told = http.get("/v1/model", headers={"Authorization": f"Bearer {token}"}).json()
        assert told["names"] == names
        assert (told["users"], told["head"], told["mixes"], told["untrained"]) == (
            3,
            "pal-a",
            2,
            True,
        )
        assert told["adapts"]
    answers = [{"chosen": "a", "rejected": "b"}]
    with client(model) as http:
        http.post(f"/v1/users/{PEOPLE[1]}/adapt", json={"answers": answers})
        told = http.get("/v1/model").json()
        http.delete(f"/v1/users/{PEOPLE[1]}")
    assert sorted(told["names"]) == PEOPLE  # each once


def labelled(*labels: float | None) -> list[dict[str, Any]]:
    return [{**pair, "label": label} for pair, label in zip(PAIRS, labels, strict=True)]


def test_an_interview_asks_and_expects_what_adaptation_does(model: RewardModel) -> None:
    labels: list[float | None] = [None] * len(PAIRS)
    asked = [Answer(p["prompt"], p["first"], p["second"]) for p in PAIRS]
    sides = (
        [p["prompt"] for p in PAIRS],
        [p["first"] for p in PAIRS],
        [p["second"] for p in PAIRS],
    )
    before = model.compare(*sides)
    turns: list[int] = []
    with client(model) as http:
        for label in (1.0, 0.0, 1.0, 0.5, 0.0, 1.0):
            reply = http.post("/v1/interview", json={"questions": labelled(*labels)}).json()
            assert reply["p_before"] == pytest.approx(before, abs=1e-5)
            turns.append(reply["next"])
            labels[reply["next"]] = label
        known = [
            {"prompt": p["prompt"], "chosen": p["first"], "rejected": p["second"], "label": label}
            for p, label in zip(PAIRS, labels, strict=True)
        ]
        last = http.post("/v1/interview", json={"questions": labelled(*labels)}).json()
        assert last["next"] is None
        adapted = http.post("/v1/users/new/adapt", json={"answers": known}).json()
        assert last["weights"] == pytest.approx(adapted["weights"], abs=1e-5)
        prompts, first, second = sides
        body = {"prompts": prompts, "first": first, "second": second, "users": "new"}
        assert last["p"] == pytest.approx(http.post("/v1/compare", json=body).json()["p"], abs=1e-5)
        assert http.delete("/v1/users/new").status_code == 200
    assert max(abs(a - b) for a, b in zip(last["p"], before, strict=True)) > 0.01
    assert turns == in_turn(model, asked, labels)
    assert turns != sorted(turns)  # a random head: the most telling are not the first


def in_turn(model: RewardModel, asked: list[Answer], labels: list[Any]) -> list[int]:
    """Return in which order ``pal adapt --active`` asks."""
    from pal.reward.adaptation import Questionnaire

    pairs = Questionnaire(model, asked)
    pairs.encode(len(pairs.rows))
    label = torch.tensor(labels, dtype=torch.float32)
    pool = Answers(pairs.prepared(), label, torch.zeros_like(label).long(), 1)
    prior = pairs.prior_of(len(asked))
    rows: list[int] = ask_in_turn(model.head, pool, prior, len(asked))[:, 0].tolist()
    return rows


def test_an_interview_keeps_to_the_limits(model: RewardModel) -> None:
    long = {"prompt": "p", "first": "a" * 2000, "second": "b"}
    with client(model, adapt_queue=4, max_row_bytes=1000) as http:
        for questions, status, reason in (
            ([], 422, "at least 1"),
            ([PAIRS[0]] * 513, 422, "at most 512"),
            (PAIRS[:3], 413, "3 pairs have 6 items, more than the 4 of serve.adapt_queue"),
            ([{**PAIRS[0], "label": 1.5}], 422, "less than or equal to 1"),
            ([{**PAIRS[0], "first": 7}], 422, "question 0 cannot be read"),
            ([PAIRS[0], long], 422, "question 1 cannot be read: it has 2,001 bytes"),
        ):
            reply = http.post("/v1/interview", json={"questions": questions})
            assert reply.status_code == status, questions
            assert reason in json.dumps(reply.json())
        assert http.post("/v1/interview", json={"questions": PAIRS[:2]}).status_code == 200


def test_answers_that_find_no_place_are_not_even_read(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = {"prompts": ["p"], "first": ["a"], "second": ["b"]}
    answers = [{"chosen": "a", "rejected": "b"}]
    asked: tuple[tuple[str, dict[str, Any]], ...] = (
        ("/v1/interview", {"questions": PAIRS[:1]}),
        ("/v1/users/new/adapt", {"answers": answers}),
        ("/v1/compare", compared),
    )
    with client(model, adapt_queue=2) as http:
        service = http.app.state.service  # type: ignore[attr-defined]
        service.worker.items_waiting += 1
        with monkeypatch.context() as patch:
            patch.setattr(type(model), "row", lambda *_: pytest.fail("it was read"))
            for path, body in asked:
                reply = http.post(path, json=body)
                assert (reply.status_code, reply.headers["retry-after"]) == (429, "1"), path
        service.worker.items_waiting -= 1
        for path, body in asked:
            assert http.post(path, json=body).status_code == 200, path
        http.delete("/v1/users/new")


def test_nothing_that_is_no_number_is_in_a_reply(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(People, "probability", lambda *_: torch.full((1,), torch.nan))
    with client(model) as http:
        compared = {"prompts": ["p"], "first": ["a"], "second": ["b"]}
        for path, body in (
            ("/v1/interview", {"questions": [{**PAIRS[0], "label": 1}]}),
            ("/v1/compare", compared),
        ):
            reply = http.post(path, json=body)
            assert (reply.status_code, "NaN" in reply.json()["detail"]) == (422, True)


def test_heads_without_users_say_so(opened: Opened) -> None:
    with client(learned(opened(PEOPLE, "bt-linear"))) as http:
        assert http.get("/v1/model").json()["adapts"] is False
        reply = http.post("/v1/interview", json={"questions": PAIRS})
        assert reply.status_code == 422
        assert "the same for everybody" in reply.json()["detail"]


@pytest.mark.parametrize("head", ["vpl", "lore", "pal-b"])
def test_other_heads_are_interviewed(opened: Opened, head: str) -> None:
    with client(learned(opened(PEOPLE, head))) as http:
        first = http.post("/v1/interview", json={"questions": PAIRS}).json()
        assert first["p"] == pytest.approx(first["p_before"], abs=1e-5)
        told = [None] * len(PAIRS)
        told[first["next"]] = 1.0  # type: ignore[call-overload]
        then = http.post("/v1/interview", json={"questions": labelled(*told)}).json()
    assert then["p"] != first["p"]
    assert then["next"] != first["next"]


# --- where questions come from ---------------------------------------------------------------


def test_questions_are_those_of_the_data_where_only_this_machine_asks(
    opened: Opened, configure: Callable[..., Config]
) -> None:
    config = configure({"dataset": "demo"})
    dataset = pipeline.prepare(config)
    model = opened(PEOPLE, view="response", item_text="{prompt}{response}")
    object.__setattr__(model.metadata, "dataset", "demo")
    assert questions_of(model, ServeConfig(), config.paths.data) == []  # another of this name
    for name in ("split_digest", "pairs_digest"):
        object.__setattr__(model.metadata, name, getattr(dataset, name))
    found = questions_of(model, ServeConfig(), config.paths.data)
    assert 1 < len(found) <= MOST_QUESTIONS
    asked = [(one.prompt, frozenset((one.first, one.second))) for one in found]
    assert len(asked) == len(set(asked))  # nobody is asked the same with the sides exchanged
    pairs = dataset.pairs("test").select("first_id", "second_id").rows()
    for one in found:
        assert {one.first, one.second} == {" Yes", " No"}
        sides = (model.row(one.prompt, side).item.id for side in (one.first, one.second))
        assert tuple(sides) in pairs
    for settings in (ServeConfig(host="0.0.0.0"), ServeConfig(allowed_hosts=("me.example",))):
        assert questions_of(model, settings, config.paths.data) == []
    assert questions_of(model, ServeConfig(), config.paths.data, TOKEN) == []
    named = ServeConfig(host="0.0.0.0", questions=dataset.folder)
    assert questions_of(model, named, None) == found
    assert questions_of(model, ServeConfig(), Path("nowhere")) == []
    sent = sum(len(one.model_dump_json()) for one in found)
    few = questions_of(model, ServeConfig(max_body_bytes=sent // 2), config.paths.data)
    assert 0 < len(few) < len(found)
    with client(model, max_body_bytes=sent // 2) as http:
        body = [one.model_dump() for one in few]
        assert http.post("/v1/interview", json={"questions": body}).status_code == 200
    Path("empty").mkdir()
    with pytest.raises(DataError, match="no prepared dataset"):
        questions_of(model, ServeConfig(questions=Path("empty")), None)


def test_questions_of_a_file_are_read_before_anybody_is_asked(model: RewardModel) -> None:
    path = Path("pairs.jsonl")
    settings = ServeConfig(questions=path, max_row_bytes=300, max_body_bytes=1000)
    rows = [PAIRS[0], {"prompt": None, "chosen": "a", "rejected": "b", "user_id": "x"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [one.first for one in questions_of(model, settings, None)] == ["yes 0", "a"]
    odd_turn = [{"role": "user", "content": "x", "\ud800": 1}]
    for bad, reason in (
        ("{", "row 1"),
        ('{"prompt": "p", "first": "a"}', "neither first and second nor chosen and rejected"),
        ('{"prompt": "p", "first": 7, "second": "b"}', "row 1"),
        ("", "no pair"),
        (json.dumps({**PAIRS[0], "prompt": "\ud800"}), "row 1: a text is not UTF-8"),
        (json.dumps({**PAIRS[0], "prompt": odd_turn}), "row 1: a text is not UTF-8"),
        ('{"prompt": NaN, "first": "a", "second": "b"}', "row 1"),
        (json.dumps({**PAIRS[0], "first": "a" * 301}), "row 1: .* of serve.max_row_bytes"),
        (f"{json.dumps({**PAIRS[0], 'first': 'a' * 200})}\n" * 9, "first 4 pairs .*max_body_bytes"),
    ):
        path.write_text(bad)
        with pytest.raises(RewardError, match=reason):
            questions_of(model, settings, None)
    os.mkfifo("pipe")
    for no_file in (Path("pipe"), Path("none.jsonl"), Path("n" * 300)):
        with pytest.raises(RewardError, match=r"serve\.questions"):
            questions_of(model, ServeConfig(questions=no_file), None)


def test_images_of_a_file_are_sent_as_a_request_has_them(opened: Opened) -> None:
    raw = []
    for colour in ("red", "blue"):
        out = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(out, "PNG")
        raw.append(out.getvalue())
    clip = {"kind": "open-clip", "model": "random:open-clip", "modality": "image", "dim": 48}
    model = learned(opened(PEOPLE, **clip))
    path = Path("pairs.parquet")
    settings = ServeConfig(questions=path)
    for sides in (raw, [{"bytes": one, "path": None} for one in raw]):
        pq.write_table(pa.table({"first": [sides[0]], "second": [sides[1]]}), path)
        found = questions_of(model, settings, None)
        with client(model, questions=[one.model_dump() for one in found]) as http:
            told = http.get("/v1/questions").json()
            assert b64decode(told["questions"][0]["first"]) == raw[0]
            assert http.post("/v1/interview", json=told).status_code == 200
    Path("secret.png").write_bytes(raw[0])
    for side in ("secret.png", b"no image", raw[0][:50]):
        pq.write_table(pa.table({"first": [side], "second": [side]}), path)
        with pytest.raises(RewardError, match="row 1"):
            questions_of(model, settings, None)


# --- in a browser ----------------------------------------------------------------------------


@contextmanager
def running(model: RewardModel, token: str | None, pairs: Any) -> Iterator[str]:
    questions = [QuestionBody(**one) for one in pairs]
    service = Service(model, ServeConfig(), token, questions=questions)
    server, listener = Server.of(service), listen("127.0.0.1", 0)
    address: tuple[str, int] = listener.getsockname()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{address[1]}"
    finally:
        server.should_exit = True
        thread.join()


HOSTILE = [{**pair, "prompt": f"<img src=x onerror=alert({n})>"} for n, pair in enumerate(PAIRS)]


def chromium(monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    """Return the program and what drives it; skips where there is none."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from chromium import browser, find_chromium

    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium is installed; apt-get install chromium")
    return program, browser


@pytest.mark.slow
def test_the_page_in_a_real_browser(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a token, by keyboard and click, on a phone: nothing in the console, nobody else asked,
    and texts of strangers stay texts."""
    program, browser = chromium(monkeypatch)
    with running(model, TOKEN, HOSTILE) as address, browser(program) as tab:
        tab.look(390)
        tab.open(f"{address}/")
        tab.wait("!document.getElementById('token').hidden")
        assert tab.told.pop().startswith("error: Failed to load resource")  # the 401 itself
        tab.run("document.getElementById('token-value').focus()")
        tab.call("Input.insertText", text=TOKEN)
        tab.key("Enter", 13, "\r")
        tab.wait("!document.getElementById('interview').hidden")
        assert tab.run("document.getElementById('token').hidden")
        tab.run("document.getElementById('users').value = 'Anna-Zwo\\nnobody known'")
        tab.run("document.getElementById('compare-form').requestSubmit()")
        tab.wait("document.getElementById('compared')")
        shown = tab.run("document.getElementById('compare-result').textContent")
        assert "Anna-Zwo" in shown
        assert "One of these users is not known" in shown
        tab.run("document.getElementById('interview-start').click()")
        for number in range(1, 4):
            title = "document.getElementById('question-title')"
            tab.wait(f"{title}.textContent.startsWith('Question {number} of') && "
                     f"document.activeElement === {title}")  # fmt: skip
            assert "<img src=x" in tab.run("document.getElementById('question-prompt').textContent")
            tab.key("Tab", 9)
            tab.key("Enter", 13, "\r")
        tab.wait("document.getElementById('question-title').textContent.startsWith('Question 4')")
        assert "After 3 answers" in tab.run("document.getElementById('ranking').textContent")
        tab.run("document.getElementById('keep-name').value = 'a new/one'")
        tab.run("document.getElementById('keep-form').requestSubmit()")
        tab.wait("document.getElementById('keep-told').textContent.includes('done again')")
        assert "a new/one" in tab.run("document.getElementById('compare-result').textContent")
        assert tab.overflow() <= 0
        assert "a new/one" in model.users
        tab.run("document.getElementById('keep-forget').click()")
        tab.wait("document.getElementById('keep-told').textContent.includes('is forgotten')")
        assert "a new/one" not in model.users
        assert tab.run("document.querySelectorAll('img').length") == 0
        tab.open(f"{address}/docs")
        assert tab.overflow() <= 0
        assert tab.told == []
        assert all(one.startswith((address, "data:,")) for one in tab.asked)
        assert not any(TOKEN in one for one in tab.asked)


@pytest.mark.slow
def test_images_are_compared_and_asked_about_in_a_real_browser(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, browser = chromium(monkeypatch)
    for number, colour in enumerate(("red", "green", "blue")):
        for kind in ("png", "jpeg"):
            Image.new("RGB", (40, 30), colour).save(f"{number}.{kind}")
    sent = [b64encode(Path(f"{n}.jpeg").read_bytes()).decode() for n in range(3)]
    pairs = [{"prompt": None, "first": sent[n], "second": sent[n - 1]} for n in range(3)]
    clip = {"kind": "open-clip", "model": "random:open-clip", "modality": "image", "dim": 48}
    model = learned(opened(PEOPLE, **clip))
    with running(model, None, pairs) as address, browser(program) as tab:
        tab.open(f"{address}/")
        tab.wait("!document.getElementById('interview').hidden")
        for name, file in (("A", "0.png"), ("B", "1.png")):
            tab.choose(f"document.getElementById('answer-{name}')", Path(file))
        tab.run("document.getElementById('compare-form').requestSubmit()")
        tab.wait("document.getElementById('compared')")
        tab.run("document.getElementById('interview-start').click()")
        title = "document.getElementById('question-title')"
        tab.wait(f"{title}.textContent.startsWith('Question 1 ')")
        tab.run("document.querySelector('.choice').click()")
        tab.wait(f"{title}.textContent.startsWith('Question 2 ')")
        seen = "[...document.images].map((one) => [one.alt, one.naturalWidth])"
        tab.wait("[...document.images].every((one) => one.complete)")
        images = tab.run(seen)
        assert len(images) >= 2 + 2 + 3  # compared, asked, expected
        assert all(alt and width == 40 for alt, width in images)
        assert tab.told == []
