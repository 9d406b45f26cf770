"""A new user of a few answers has the same probabilities by ``pal adapt``, by the exported model in
Python, by ``pal score --compare`` and by the server."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient

import pal.evaluate.few_shot
from pal import pipeline
from pal.config import AdaptConfig, Config, ServeConfig, TrainConfig, load_overrides
from pal.errors import RewardError
from pal.evaluate.few_shot import Trial, answers_of_unseen, new_users
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.panel import few_shot
from pal.evaluate.predict import load_run
from pal.reward import Answer, RewardModel
from pal.reward.export import Choice
from pal.reward.newcomers import answers_in, learn_file
from pal.reward.score_file import score_file
from pal.reward.server.app import build_app
from pal.reward.server.service import Service
from pal.train.adapt.answers import Answers
from pal.train.adapt.prior import Prior, Priors, make_prior, tuned_for
from pal.train.build import build_head
from pal.train.heads.head import Head

SHOTS = (0, 1, 5, 20)


@pytest.fixture(scope="module")
def embedded(configure: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("embedded")
    config = configure(
        {
            "embed.tiny-text.store_dtype": "float32",
            "data.demo.limit": 600,
            "data.demo.groups": 2,
            "data.demo.pairs_per_user": 24,
            **{
                f"paths.{name}": str(folder / name) for name in ("data", "cache", "runs", "exports")
            },
        }
    )
    pipeline.embed(config)
    return config


@dataclass(frozen=True)
class Asked:
    """The new users of a run: what they are judged on, and what they have answered."""

    names: list[str]
    judged: list[tuple[str, str, str]]
    """(B,) prompt, first and second response"""
    user: list[str]
    """(B,)"""
    label: np.ndarray
    answers: dict[int, dict[str, list[Answer]]]
    """by the number of answers and the user"""

    @classmethod
    def of(cls, trial: Trial) -> Asked:
        users = new_users(*trial, "test")
        assert users is not None
        judged, pool = answers_of_unseen(*trial, "test")
        items = pl.DataFrame(pl.from_arrow(trial.dataset.items(["item_id", "text"])))
        texts = dict(items.iter_rows())
        # rows of the pool in the place of labels: which answers a draw gives
        numbered = replace(users.pool, label=torch.arange(len(users.pool.label)))
        given = {count: replace(users, pool=numbered).shots(count, 0).label for count in SHOTS}
        by_id = {row["pair_id"]: row for row in pool.iter_rows(named=True)}

        def sides(row: dict[str, Any]) -> tuple[str, str, str]:
            prompt = texts[row["prompt_id"]]
            first, second = (texts[row[f"{side}_id"]] for side in ("first", "second"))
            return prompt, first.removeprefix(prompt), second.removeprefix(prompt)

        answers: dict[int, dict[str, list[Answer]]] = {}
        for count, rows in given.items():
            own = answers[count] = {name: [] for name in users.names}
            for row in (by_id[users.pool_ids[number]] for number in rows.tolist()):
                own[row["user_id"]].append(Answer(*sides(row), row["label"]))
        rows = list(judged.iter_rows(named=True))
        label = np.array([row["label"] for row in rows])
        users_of_rows = [row["user_id"] for row in rows]
        return cls(users.names, [sides(row) for row in rows], users_of_rows, label, answers)


@contextmanager
def served(model: RewardModel) -> Iterator[TestClient]:
    with TestClient(build_app(Service(model, ServeConfig(), None)), "http://localhost") as http:
        yield http


def by_server(http: TestClient, asked: Asked, answers: dict[str, list[Answer]]) -> list[float]:
    for name, own in answers.items():
        body = [
            {"prompt": a.prompt, "chosen": a.first, "rejected": a.second, "label": a.label}
            for a in own
        ]
        if body:
            assert http.post(f"/v1/users/{name}/adapt", json={"answers": body}).is_success
    prompts, first, second = zip(*asked.judged, strict=True)
    body = {"prompts": prompts, "first": first, "second": second, "users": asked.user}
    found: list[float] = http.post("/v1/compare", json=body).json()["p"]
    return found


def by_file(model: RewardModel, asked: Asked, answers: dict[str, list[Answer]]) -> list[float]:
    given = [
        {"prompt": a.prompt, "first": a.first, "second": a.second, "label": a.label, "user_id": u}
        for u, own in answers.items()
        for a in own
    ]
    Path("answers.jsonl").write_text("\n".join(map(json.dumps, given)))
    learned = Path("answers.jsonl") if given else None
    rows = [
        {"prompt": prompt, "first": first, "second": second, "user_id": user}
        for (prompt, first, second), user in zip(asked.judged, asked.user, strict=True)
    ]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    score_file(model, Path("in.jsonl"), Path("out.jsonl"), compare=True, answers=learned)
    return [json.loads(line)["p"] for line in Path("out.jsonl").read_text().splitlines()]


def tuned_by_number(head: Head, shots: Answers, judged: Answers) -> Prior:
    """Return a prior that says how many answers it was tuned for: two users tune little."""
    return make_prior(head, 3.0 / int(shots.user.bincount().max()))


@pytest.mark.parametrize("head", ["auto", "pal-b"])
@pytest.mark.filterwarnings("ignore::pal.errors.PalWarning")
def test_new_users_have_the_same_probabilities_by_every_road(
    embedded: Config, monkeypatch: pytest.MonkeyPatch, head: str
) -> None:
    monkeypatch.setattr(pal.evaluate.few_shot, "tune_prior", tuned_by_number)
    config = load_overrides(embedded, {"train.head": head, "train.k": 2, "train.epochs": 4})
    pipeline.train(config, head)
    trained = load_run(config.paths.runs, head)
    trial = Trial(trained, *inputs_of_run(config.paths, trained.metadata))
    asked = Asked.of(trial)
    evaluated = few_shot(AdaptConfig(shots=SHOTS, repeats=1), config.evaluate, [trial])
    assert evaluated.n_users == len(asked.names), "everybody has answers enough"
    folder = pipeline.export(config, head, Choice()).dir
    model, other, third = (RewardModel.from_pretrained(folder, device="cpu") for _ in range(3))
    prompts, first, second = zip(*asked.judged, strict=True)
    told = []
    with served(other) as http:
        for count, answers in asked.answers.items():
            wanted = np.exp(-evaluated.scores[str(count)].loss)  # P(what was said)
            for name, own in answers.items():
                if own:
                    model.learn(name, own)
            for found in (
                model.compare(prompts, first, second, asked.user),
                by_file(third, asked, answers),
                by_server(http, asked, answers),
            ):
                p = np.where(asked.label > 0.5, found, 1.0 - np.array(found))
                np.testing.assert_allclose(p, wanted, atol=1e-5, rtol=0.0)
            told.append(wanted)
    assert all(np.abs(more - fewer).max() > 1e-3 for fewer, more in itertools.pairwise(told))
    priors = model.contents.prior
    assert priors is not None
    if head == "auto":  # under whose own prior users are fitted
        assert len(priors.by_shots) == 1
    else:
        assert list(priors.by_shots) == [1, 2, 5, 10, 20, 50]
        assert not torch.equal(priors.of(1).precision, priors.of(20).precision)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no row"),
        (["ann,p,a,"], "row 2: it has no label"),
        (["ann,p,a,b,1", "ann,p,a,b,2"], "label 2"),
        (["ann,p,a,b,yes"], "row 2: its label is 'yes'"),
        ([",p,a,b,1"], "row 2: it has no user_id"),
        (["seen-00001,p,a,b,1"], "'seen-00001' is known from the training"),
    ],
)
def test_a_file_of_answers_is_learned_as_a_whole_or_refused(
    embedded: Config, rows: list[str], said: str
) -> None:
    if not (embedded.paths.runs / "refusing").is_dir():
        config = load_overrides(embedded, {"train.head": "one-taste", "train.epochs": 1})
        pipeline.train(config, "refusing")
        pipeline.export(config, "refusing", Choice())
    folder = embedded.paths.exports / "refusing-population"
    model = RewardModel.from_pretrained(folder, device="cpu")
    Path("new.csv").write_text("\n".join(["user_id,prompt,first,second,label", *rows]))
    with pytest.raises(RewardError, match=said):
        learn_file(model, Path("new.csv"))


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("user_id,prompt,chosen,rejected,label", "ann,p,a,b,0"),  # as where a dataset is read
        ("user_id,prompt,first,second,chosen,rejected,label", "ann,p,,,a,b,"),
        ("user_id,prompt,first,second,chosen,rejected,label", "ann,p,b,a,a,b,1"),
        ("user_id,prompt,first,second,label", "ann,p,a,b,1"),
    ],
)
def test_what_was_chosen_is_preferred_whatever_stands_beside_it(
    tmp_path: Path, header: str, row: str
) -> None:
    file = tmp_path / "new.csv"
    file.write_text(f"{header}\n{row}")
    assert list(answers_in(file, is_image=False)) == [("ann", Answer("p", "a", "b", 1.0))]


def test_an_empty_cell_of_answers_is_named_with_its_row(tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    file.write_text("user_id,chosen,rejected\nann,a,b\nann,a,")
    with pytest.raises(RewardError, match="row 3: it has no rejected"):
        list(answers_in(file, is_image=False))


def test_answers_about_images_are_read_as_they_are_scored(tmp_path: Path) -> None:
    one, other = {"bytes": b"one", "path": None}, {"bytes": None, "path": "other.png"}
    rows = [{"user_id": "ann", "prompt": "p", "chosen": one, "rejected": other, "odd": 1}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "new.parquet")
    ((name, answer),) = answers_in(tmp_path / "new.parquet", is_image=True)
    assert (name, answer) == ("ann", Answer("p", b"one", "other.png", 1.0))


def test_a_file_of_answers_that_is_not_there_is_named_with_its_option() -> None:
    with pytest.raises(RewardError, match="give --answers"):
        list(answers_in(Path("nowhere.csv"), is_image=False))


def test_a_prior_is_that_of_as_many_answers_as_an_evaluation_tunes_it_for() -> None:
    head = build_head(TrainConfig(head="pal-b", k=2), 4, 5)
    few, many = (make_prior(head, strength) for strength in (3.0, 0.1))
    priors = Priors({1: few, 5: many})
    assert [priors.of(count) is many for count in (0, 1, 4, 5, 6, 500)] == [
        False, False, False, True, True, True,
    ]  # fmt: skip
    assert Priors.always(few).of(20) is few
    assert [tuned_for(count) for count in (0, 1, 2, 4, 5, 19, 20, 500)] == [
        1, 1, 2, 2, 5, 10, 20, 100,
    ]  # fmt: skip
