"""Which of two responses somebody prefers, where it is not known who it is: an average over people,
as evaluation has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from pal.config import ServeConfig
from pal.errors import RewardError
from pal.reward import Answer, RewardModel
from pal.reward.adaptation import Questionnaire
from pal.reward.export import Choice, export
from pal.reward.server.app import build_app
from pal.reward.server.service import Service
from pal.reward.users import Users
from pal.train.adapt.answers import Answers
from pal.train.adapt.average import predictive
from pal.train.adapt.map import adapt_map
from pal.train.heads.head import Head, Prepared

Opened = Callable[..., RewardModel]
USERS = [f"user {number}" for number in range(5)]
PROMPTS = ["p", "q", "r"]
FIRST, SECOND = ["a", "b b", "c"], ["d d d", "e", "f f"]
ANSWERS = [Answer(f"thing {n}", "yes", "no", float(n % 3 > 0)) for n in range(9)]


def margins(model: RewardModel, user: Any) -> torch.Tensor:
    first, second = (model.score(PROMPTS, side, user) for side in (FIRST, SECOND))
    return torch.tensor(first) - torch.tensor(second)


@pytest.mark.parametrize("head", ["pal-a", "pal-b", "lore"])
def test_a_stranger_is_any_of_the_seen_users(opened: Opened, head: str) -> None:
    model = opened(USERS, head)
    each = torch.stack([margins(model, user).sigmoid() for user in USERS])
    for nobody in (None, "a stranger"):
        found = model.compare(PROMPTS, FIRST, SECOND, nobody)
        assert found == pytest.approx(each.mean(dim=0).tolist(), abs=1e-4)
        swapped = model.compare(PROMPTS, SECOND, FIRST, nobody)
        assert [1 - p for p in swapped] == pytest.approx(found, abs=1e-5)
    assert model.compare(PROMPTS, FIRST, SECOND, USERS[1]) == pytest.approx(
        each[1].tolist(), abs=1e-4
    )
    mixed = [USERS[2], None, {"0": 1.0}]
    if head != "lore":
        found = model.compare(PROMPTS, FIRST, SECOND, mixed)
        wanted = [each[2, 0], each[:, 1].mean(), margins(model, {"0": 1.0}).sigmoid()[2]]
        assert found == pytest.approx([float(p) for p in wanted], abs=1e-4)
    assert model.compare([], [], []) == []
    with pytest.raises(RewardError, match="2 second responses for 3"):
        model.compare("p", FIRST, SECOND[:2])
    with pytest.raises(RewardError, match="comparison 1 cannot be read: the text is empty"):
        model.compare("p", ["a", ""], ["b", "c"])


@pytest.mark.parametrize("head", ["pal-a", "pal-b", "lore"])
def test_all_known_users_are_asked_of_the_head_at_once(
    opened: Opened, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(USERS, head)
    alone = [model.compare("p", FIRST[:1], SECOND[:1], user)[0] for user in USERS]
    asked: list[int] = []
    kind, margin = type(model.head), type(model.head).prepared_margin

    def counted(self: Head, prepared: Prepared, *given: torch.Tensor) -> torch.Tensor:
        asked.append(len(given[1]))
        return margin(self, prepared, *given)

    monkeypatch.setattr(kind, "prepared_margin", counted)
    found = model.compare("p", FIRST[:1] * 10, SECOND[:1] * 10, [*USERS, *USERS])
    assert asked == [10]
    assert found == pytest.approx([*alone, *alone], abs=1e-6)


@pytest.mark.parametrize("head", ["lore", "per-user"])
def test_where_rewards_are_linear_the_population_has_the_mean_of_all_users_however_many(
    opened: Opened, head: str
) -> None:
    model = opened([f"user {number}" for number in range(300)], head)  # more than stand for all
    users = model.head.users
    users.logits.data = torch.randn_like(users.logits)
    model.users = Users(model.contents, model.encoder.device)
    each = [model.score(PROMPTS, FIRST, user) for user in model.metadata.users]
    wanted = torch.tensor(each).mean(dim=0).tolist()
    assert model.score(PROMPTS, FIRST) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("head", ["pal-a", "pal-b"])
def test_a_learned_user_is_predicted_as_evaluation_does(opened: Opened, head: str) -> None:
    model = opened(USERS, head)
    model.learn("new", ANSWERS)
    found = torch.tensor(model.compare(PROMPTS, FIRST, SECOND, "new"))
    asked = Questionnaire(model, ANSWERS)
    asked.encode(len(asked.rows))
    one = torch.zeros(len(ANSWERS), dtype=torch.long)
    shots = Answers(asked.prepared(), torch.tensor(asked.labels), one, 1)
    judged = Questionnaire(model, [Answer(*x) for x in zip(PROMPTS, FIRST, SECOND, strict=True)])
    judged.encode(len(judged.rows))
    pairs = Answers(judged.prepared(), torch.ones(3), one[:3], 1)
    assert model.contents.prior is not None
    prior = model.contents.prior.of(len(ANSWERS))
    adapted = adapt_map(model.head, shots, prior, with_covariance=True)
    wanted = predictive(model.head, shots, pairs, adapted).sigmoid()
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=0.0)
    if head == "pal-b":  # of random pal-a heads all are sure
        plug_in = margins(model, "new").sigmoid()
        assert not torch.allclose(found, plug_in, atol=1e-3), "an average is not one person"
    model.users.forget("new")
    assert model.compare("p", ["a"], ["b"], "new") == model.compare("p", ["a"], ["b"], None)


def test_an_export_of_one_user_is_that_user(opened: Opened) -> None:
    model = opened(USERS)
    export(model, Choice("user", user=USERS[0]), Path("exports/one"))
    one = RewardModel.from_pretrained("exports/one")
    wanted = margins(model, USERS[0]).sigmoid().tolist()
    assert one.compare(PROMPTS, FIRST, SECOND) == pytest.approx(wanted, abs=1e-4)


def asking(model: RewardModel) -> TestClient:
    return TestClient(build_app(Service(model, ServeConfig(), None)), "http://localhost")


def test_the_server_compares_and_remembers_who_a_user_may_be(opened: Opened) -> None:
    model = opened(USERS)
    answers = [
        {"prompt": a.prompt, "chosen": a.first, "rejected": a.second, "label": a.label}
        for a in ANSWERS
    ]
    body = {"prompts": PROMPTS, "first": FIRST, "second": SECOND, "users": ["new", "x", USERS[3]]}
    with asking(model) as http:
        http.post("/v1/users/new/adapt", json={"answers": answers})
        reply = http.post("/v1/compare", json=body).json()
        assert reply["p"] == pytest.approx(model.compare(PROMPTS, FIRST, SECOND, body["users"]))
        assert reply["unknown_users"] == 1
        empty: dict[str, Any] = {"prompts": [], "first": [], "second": []}
        assert http.post("/v1/compare", json=empty).json() == {"p": [], "unknown_users": 0}
        odd = http.post("/v1/compare", json={**body, "users": [True, None, None]})
        assert (odd.status_code, odd.json()["detail"][:14]) == (422, "a user's id is")
        short = http.post("/v1/compare", json={**body, "second": SECOND[:2]})
        assert short.json()["detail"] == "2 second for 3 first responses; send as many"
    with asking(opened(USERS)) as http:
        again = http.post("/v1/compare", json=body).json()
        assert again["p"] == pytest.approx(reply["p"], abs=1e-6)
        http.delete("/v1/users/new")
        gone = http.post("/v1/compare", json=body).json()
        assert gone["unknown_users"] == 2
        strangers = opened(USERS).compare(PROMPTS, FIRST, SECOND, [None, None, USERS[3]])
        assert gone["p"] == pytest.approx(strangers, abs=1e-6)
