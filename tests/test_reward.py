"""Live rewards are those of the run's own predictions, whoever they are for, and exports keep
them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pal import pipeline
from pal.config import Config
from pal.errors import EvaluationError, RewardError
from pal.evaluate.few_shot import adapt_one
from pal.evaluate.inputs import inputs_of_run, open_dataset, open_inputs
from pal.items import item_id
from pal.reward import Answer, RewardModel
from pal.reward.export import Choice
from pal.reward.export_record import ExportRecord
from pal.train.adapt.average import seen_vectors
from pal.train.run_record import TrainedHead

Configure = Callable[..., Config]
EXACT = {"embed.tiny-text.store_dtype": "float32", "data.demo.groups": 2, "data.demo.limit": None}


def trained(configure: Configure, **options: Any) -> Config:
    config = configure(
        {**EXACT, **{key.replace("__", "."): value for key, value in options.items()}}
    )
    pipeline.embed(config)
    pipeline.train(config, "run")
    return config


def exported(config: Config, choice: Choice | None = None, merge: bool = False) -> Path:
    """Export the run and return the folder."""
    return Path(pipeline.export(config, "run", choice or Choice(), merge=merge).dir)


def pairs_with_texts(config: Config, size: int, **chosen: str) -> list[dict[str, Any]]:
    """Return predicted pairs with prompt and both responses as words."""
    dataset = open_dataset(config)
    items = dataset.items()
    texts = dict(
        zip(items.column("item_id").to_pylist(), items.column("text").to_pylist(), strict=True)
    )
    rows = pl.read_parquet("runs/run/predictions.parquet").filter(
        *[pl.col(key) == value for key, value in chosen.items()]
    )
    rows = rows.sort("pair_id").head(size)
    rows = rows.join(
        dataset.pairs(columns=["pair_id", "prompt_id", "first_id", "second_id"]), on="pair_id"
    )
    return [
        {
            "user": row["user_id"],
            "margin": row["margin"],
            "prompt": texts[row["prompt_id"]],
            **{
                side: texts[row[f"{side}_id"]].removeprefix(texts[row["prompt_id"]])
                for side in ("first", "second")
            },
        }
        for row in rows.iter_rows(named=True)
    ]


def margins(model: RewardModel, rows: list[dict[str, Any]], users: Any) -> list[float]:
    prompts = [row["prompt"] for row in rows]
    first, second = (
        model.score(prompts, [row[side] for row in rows], users) for side in ("first", "second")
    )
    return [a - b for a, b in zip(first, second, strict=True)]


def table_margins(config: Config, rows: list[dict[str, Any]], vector: torch.Tensor) -> list[float]:
    """Return margins from the cache alone, by the run's head and a user's vector."""
    head = TrainedHead.load(Path("runs/run")).head
    _, store = open_inputs(config)

    def features(texts: list[str]) -> torch.Tensor:
        return store.features()[store.index(np.array([item_id("text", text) for text in texts]))]

    prompts = [row["prompt"] for row in rows]
    sides = [features([row["prompt"] + row[side] for row in rows]) for side in ("first", "second")]
    found = head.margin(features(prompts), *sides, vector.expand(len(rows), -1))
    return found.detach().tolist()


def test_a_device_that_the_machine_has_not_is_one_sentence(configure: Configure) -> None:
    config = trained(configure)
    folder, told = exported(config), r"device = 'cuda:99', but this machine offers torch cpu"
    with pytest.raises(RewardError, match=told):
        RewardModel.from_pretrained(folder, device="cuda:99")
    with pytest.raises(RewardError, match=told):
        RewardModel.from_run(config, "run", device="cuda:99")


@pytest.mark.parametrize("head", ["pal-a", "pal-b", "lore", "bt-mlp"])
def test_an_export_gives_the_predicted_margins(configure: Configure, head: str) -> None:
    config = trained(configure, train__head=head)
    seen = pairs_with_texts(config, 12, population="seen")
    unseen = pairs_with_texts(config, 12, population="unseen")
    # a reward is one number for an item, and knows nothing of the mean of probabilities of pairs
    users = seen_vectors(TrainedHead.load(Path("runs/run")).head)
    each = [table_margins(config, unseen, vector) for vector in users]
    of_everybody = np.mean(each, axis=0).tolist()
    opened = RewardModel.from_run(config, "run")
    summary = pipeline.export(config, "run", Choice())
    assert summary.golden_max_abs_diff <= 1e-5
    loaded = RewardModel.from_pretrained(summary.dir)
    for model in (opened, loaded):
        assert margins(model, seen, [row["user"] for row in seen]) == pytest.approx(
            [row["margin"] for row in seen], abs=1e-5
        )
        assert margins(model, unseen, None) == pytest.approx(of_everybody, abs=2e-5)
    one = seen[0]["user"]
    alone = RewardModel.from_pretrained(exported(config, Choice("user", user=one)))
    own = [row for row in seen if row["user"] == one]
    assert margins(alone, own, None) == pytest.approx([row["margin"] for row in own], abs=1e-5)


@pytest.mark.parametrize("head", ["pal-a", "pal-b"])
def test_an_adapted_user_and_a_prototype_are_exported_with_the_margins_of_the_cache(
    configure: Configure, head: str
) -> None:
    config = trained(configure, train__head=head)
    rows = pairs_with_texts(config, 12, population="unseen", user_id="unseen-test-00000")
    trained_head = TrainedHead.load(Path("runs/run"))
    dataset, store = inputs_of_run(config.paths, trained_head.metadata)
    adapted = adapt_one(trained_head, dataset, store, "unseen-test-00000")
    assert adapted is not None
    assert not torch.allclose(adapted, trained_head.head.users.population(), atol=1e-3)
    model = RewardModel.from_pretrained(exported(config, Choice("user", user="unseen-test-00000")))
    assert margins(model, rows, None) == pytest.approx(
        table_margins(config, rows, adapted), abs=1e-5
    )
    prototype = RewardModel.from_pretrained(exported(config, Choice("prototype", prototype=1)))
    wanted = table_margins(config, rows, torch.tensor([0.0, 1.0]))
    assert margins(prototype, rows, None) == pytest.approx(wanted, abs=1e-5)
    assert margins(prototype, rows, {1: 1.0}) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(RewardError, match="neither in run run nor in its dataset"):
        pipeline.export(config, "run", Choice("user", user="nobody"))


def test_the_export_of_one_user_holds_nothing_of_the_others(configure: Configure) -> None:
    config = trained(configure, train__head="pal-a")
    folder = exported(config, Choice("user", user="seen-00001"))
    assert ExportRecord.read(folder).users == []
    for file in folder.rglob("*"):
        for stranger in ("seen-00000", "seen-00002", "unseen-"):
            assert stranger.encode() not in file.read_bytes(), file
    model = RewardModel.from_pretrained(folder)
    assert model.contents.prior is None
    assert model.head.users.logits.shape == (0, 2)
    assert model.score("p", [" Yes"], "seen-00001") == model.score("p", [" Yes"])
    with pytest.raises(RewardError, match="holds user 'seen-0.* only"):
        model.score("p", [" Yes"], "seen-00002")


def test_strangers_mixtures_chats_and_candidates(configure: Configure) -> None:
    config = trained(configure, train__head="pal-a")
    model = RewardModel.from_run(config, "run")
    with pytest.warns(UserWarning, match="'nobody' is not known"):
        stranger = model.score("p", [" Yes"], "nobody")
    assert stranger == model.score(["p"], [" Yes"], [None]) == model.score("p", [" Yes"], "nobody")
    first, second, mixed = (
        model.score("p", [" Yes"], weights) for weights in ({0: 1}, {"1": 1}, {0: 0.3, 1: 0.7})
    )
    assert len({first[0], second[0], mixed[0]}) == 3
    chat = model.score(
        [[{"role": "user", "content": "p"}]], [[{"role": "assistant", "content": " Yes"}]]
    )
    assert chat == pytest.approx(model.score("p", [" Yes"]), abs=1e-5)
    best, scores = model.best_of_n("p", [" Yes", " No", " Maybe"], "seen-00000")
    assert scores[best] == max(scores)
    one_by_one = [model.score("p", [text], "seen-00000")[0] for text in (" Yes", " No", " Maybe")]
    assert scores == pytest.approx(one_by_one, abs=1e-5)
    for problem, message in (
        (lambda: model.score("p", [" Yes"], {0: 0.5}), "sum to one"),
        (lambda: model.score("p", [" Yes"], {7: 1.0}), "no prototype"),
        (lambda: model.score(["p", "q"], [" Yes"]), "2 prompts for 1 responses"),
        (lambda: model.score("", [""]), "row 0 cannot be scored: the text is empty"),
        (
            lambda: model.score("p", ["a", "\ud800"]),
            "row 1 cannot be scored: the text, or a turn before it, is not UTF-8",
        ),
        (lambda: model.score("p", "Yes"), "a sequence of responses"),
        (lambda: model.score("p", [[{"role": "assistant"}]]), "chat messages are objects"),
    ):
        with pytest.raises(RewardError, match=message):
            problem()


def test_a_new_user_is_learned_from_answers(configure: Configure) -> None:
    config = trained(configure, train__head="pal-a")
    model = RewardModel.from_pretrained(exported(config))
    texts = [f"I like number {number}" for number in range(12)]
    likes, dislikes = (
        model.adapt([Answer(text, " Yes", " No", label) for text in texts]) for label in (1.0, 0.0)
    )
    model.users.add("likes", likes)
    model.users.add("dislikes", dislikes)
    rows = [{"prompt": text, "first": " Yes", "second": " No"} for text in texts]
    difference = {user: sum(margins(model, rows, user)) for user in ("likes", "dislikes")}
    assert difference["likes"] > difference["dislikes"]


def test_changed_files_are_refused(configure: Configure) -> None:
    config = trained(configure, train__head="pal-a")
    folder = exported(config)
    whole = (folder / "head.safetensors").read_bytes()
    (folder / "head.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RewardError, match="is damaged"):
        RewardModel.from_pretrained(folder)
    with pytest.raises(RewardError, match="holds no exported reward model"):
        RewardModel.from_pretrained("runs/run")
    with pytest.raises(EvaluationError, match="under other settings of encoder tiny-text"):
        RewardModel.from_run(configure({**EXACT, "embed.tiny-text.pooling": "cls"}), "run")
