"""Live rewards are those of the run's own predictions, whoever they are for, and exports keep
them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from pal import pipeline
from pal.cache.reader import FeatureStore
from pal.config import Config, DatasetConfig
from pal.data.build import Adapter, Part, prepare
from pal.data.comparisons import Chunk
from pal.dataset import item_id
from pal.embed.run import embed
from pal.errors import EvaluationError, RewardError
from pal.evaluate.predict import evaluate
from pal.reward import Answer, RewardModel
from pal.reward.export import Choice
from pal.train.fit import train
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


def pairs_with_texts(config: Config, size: int, **chosen: str) -> list[dict[str, Any]]:
    """Return predicted pairs with prompt and both responses as words."""
    dataset = pipeline.open_dataset(config)
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
            "user": row["user_id"], "margin": row["margin"], "prompt": texts[row["prompt_id"]],
            **{side: texts[row[f"{side}_id"]].removeprefix(texts[row["prompt_id"]]) for side in ("first", "second")},
        }
        for row in rows.iter_rows(named=True)
    ]  # fmt: skip


def margins(model: RewardModel, rows: list[dict[str, Any]], users: Any) -> list[float]:
    prompts = [row["prompt"] for row in rows]
    first, second = (
        model.score(prompts, [row[side] for row in rows], users) for side in ("first", "second")
    )
    return [a - b for a, b in zip(first, second, strict=True)]


def table_margins(config: Config, rows: list[dict[str, Any]], code: torch.Tensor) -> list[float]:
    """Return margins from the cache alone, by the run's head and a code."""
    head = TrainedHead.load(Path("runs/run")).head
    store = pipeline.open_cache(config, pipeline.open_dataset(config))

    def features(texts: list[str]) -> torch.Tensor:
        return store.features()[store.index(np.array([item_id("text", text) for text in texts]))]

    prompts = [row["prompt"] for row in rows]
    sides = [features([row["prompt"] + row[side] for row in rows]) for side in ("first", "second")]
    found = head.margin(features(prompts), *sides, code.expand(len(rows), -1))
    return found.detach().tolist()


@pytest.mark.parametrize("head", ["pal-a", "pal-b", "lore", "bt-mlp"])
def test_an_export_gives_the_predicted_margins(configure: Configure, head: str) -> None:
    config = trained(configure, train__head=head)
    seen = pairs_with_texts(config, 12, population="seen")
    unseen = pairs_with_texts(config, 12, population="unseen")
    opened = RewardModel.from_run(config, "run")
    exported = pipeline.export(config, "run", Choice())
    assert exported["golden_max_abs_diff"] <= 1e-5
    loaded = RewardModel.from_pretrained(exported["dir"])
    for model in (opened, loaded):
        assert margins(model, seen, [row["user"] for row in seen]) == pytest.approx(
            [row["margin"] for row in seen], abs=1e-5
        )
        assert margins(model, unseen, None) == pytest.approx(
            [row["margin"] for row in unseen], abs=1e-5
        )
    one = seen[0]["user"]
    alone = RewardModel.from_pretrained(
        pipeline.export(config, "run", Choice("user", user=one))["dir"]
    )
    own = [row for row in seen if row["user"] == one]
    assert margins(alone, own, None) == pytest.approx([row["margin"] for row in own], abs=1e-5)


@pytest.mark.parametrize("head", ["pal-a", "pal-b"])
def test_an_adapted_user_and_a_prototype_are_exported_with_the_margins_of_the_cache(
    configure: Configure, head: str
) -> None:
    config = trained(configure, train__head=head)
    rows = pairs_with_texts(config, 12, population="unseen", user_id="unseen-test-00000")
    trained_head = TrainedHead.load(Path("runs/run"))
    dataset, store = pipeline.open_data_of(config, trained_head.facts)
    adapted = pipeline.adapt_one(config, trained_head, dataset, store, "unseen-test-00000")
    assert adapted is not None
    assert not torch.allclose(adapted, trained_head.head.users.population(), atol=1e-3)
    exported = pipeline.export(config, "run", Choice("user", user="unseen-test-00000"))
    model = RewardModel.from_pretrained(exported["dir"])
    assert margins(model, rows, None) == pytest.approx(
        table_margins(config, rows, adapted), abs=1e-5
    )
    prototype = RewardModel.from_pretrained(
        pipeline.export(config, "run", Choice("prototype", prototype=1))["dir"]
    )
    wanted = table_margins(config, rows, torch.tensor([0.0, 1.0]))
    assert margins(prototype, rows, None) == pytest.approx(wanted, abs=1e-5)
    assert margins(prototype, rows, {1: 1.0}) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(RewardError, match="neither in run run nor in its dataset"):
        pipeline.export(config, "run", Choice("user", user="nobody"))


def test_the_export_of_one_user_holds_nothing_of_the_others(configure: Configure) -> None:
    config = trained(configure, train__head="pal-a")
    folder = Path(pipeline.export(config, "run", Choice("user", user="seen-00001"))["dir"])
    assert not (folder / "users.json").exists()
    for file in folder.iterdir():
        for stranger in ("seen-00000", "seen-00002", "unseen-"):
            assert stranger.encode() not in file.read_bytes(), file
    model = RewardModel.from_pretrained(folder)
    assert model.contents.prior is None
    assert model.head.users.logits.shape == (0, 2)
    assert model.score("p", [" Yes"], "seen-00001") == model.score("p", [" Yes"])
    with pytest.raises(RewardError, match="holds user 'seen-00001' only"):
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
            "row 1 cannot be scored: the text is not UTF-8",
        ),
        (lambda: model.score("p", "Yes"), "a sequence of responses"),
        (lambda: model.score("p", [[{"role": "assistant"}]]), "chat messages are objects"),
    ):
        with pytest.raises(RewardError, match=message):
            problem()


def test_a_new_user_is_learned_from_answers(configure: Configure) -> None:
    config = trained(configure, train__head="pal-a")
    model = RewardModel.from_pretrained(pipeline.export(config, "run", Choice())["dir"])
    texts = [f"I like number {number}" for number in range(12)]
    likes, dislikes = (
        model.adapt([Answer(text, " Yes", " No", label) for text in texts]) for label in (1.0, 0.0)
    )
    model.users.add("likes", likes)
    model.users.add("dislikes", dislikes)
    difference = {
        user: sum(a - b for a, b in zip(model.score(texts, [" Yes"] * 12, user), model.score(texts, [" No"] * 12, user),
                                        strict=True))
        for user in ("likes", "dislikes")
    }  # fmt: skip
    assert difference["likes"] > difference["dislikes"]


def test_changed_files_are_refused(configure: Configure) -> None:
    config = trained(configure, train__head="pal-a")
    folder = Path(pipeline.export(config, "run", Choice())["dir"])
    golden = json.loads((folder / "golden.json").read_text())
    (folder / "golden.json").write_text(json.dumps({**golden, "scores": [s + 0.5 * n for n, s in
                                                                         enumerate(golden["scores"])]}))  # fmt: skip
    with pytest.raises(RewardError, match="gives golden scores that differ by"):
        RewardModel.from_pretrained(folder)
    whole = (folder / "head.safetensors").read_bytes()
    (folder / "head.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RewardError, match="is damaged"):
        RewardModel.from_pretrained(folder)
    with pytest.raises(RewardError, match="holds no exported reward model"):
        RewardModel.from_pretrained("runs/run")
    with pytest.raises(EvaluationError, match="under other settings of encoder tiny-text"):
        RewardModel.from_run(configure({**EXACT, "embed.tiny-text.pooling": "cls"}), "run")


def picture(number: int) -> bytes:
    """Return an encoded image; mode and format change with the number."""
    noise = np.random.default_rng(number).integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(("RGB", "L", "RGBA", "CMYK")[number % 4]).save(
        out, "TIFF" if number % 4 == 3 else "PNG"
    )
    return out.getvalue()


class Pictures(Adapter):
    """Images under prompts, three seen users and a new one who say which of two they like."""

    licence, origin = "none", "made here"

    def inputs(self) -> dict[str, str]:
        return {}

    def parts(self) -> list[Part]:
        return [self.read]

    def read(self) -> Chunk:
        prompts = [item_id("text", text) for text in ("a cat", "a dog")]
        rows: list[dict[str, Any]] = [
            {"item_id": key, "modality": "text", "text": text, "image_file": None}
            for key, text in zip(prompts, ("a cat", "a dog"), strict=True)
        ]
        for number in range(24):
            file = Path("raw").absolute() / f"{number}.img"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(picture(number))
            rows.append({"item_id": item_id("image", picture(number)), "modality": "image", "text": None,
                         "image_file": str(file)})  # fmt: skip
        names = [row["item_id"] for row in rows[2:]]
        pairs = [
            {"user_id": f"u{n % 4}", "prompt_id": prompts[n % 2], "first_id": names[n % 24],
             "second_id": names[(n * 7 + 1) % 24], "label": float(n % 5 < 3),
             "split": ("train", "train", "test" if n % 4 == 3 else "val", "test")[n // 4 % 4],
             "population": "unseen" if n % 4 == 3 else "seen"}
            for n in range(120) if n % 24 != (n * 7 + 1) % 24
        ]  # fmt: skip
        ids = {key: pl.Binary for key in ("prompt_id", "first_id", "second_id")}
        text = {"item_id": pl.Binary, "text": pl.String, "image_file": pl.String}
        return Chunk(
            pl.DataFrame(rows, schema_overrides=text), pl.DataFrame(pairs, schema_overrides=ids)
        )


@pytest.mark.parametrize("head", ["pal-a", "pal-b"])
def test_an_image_export_takes_paths_bytes_and_pictures(configure: Configure, head: str) -> None:
    dataset = prepare("pictures", DatasetConfig(), Path("data/pictures"), lambda config: Pictures())
    options = {"encoder": "tiny-clip", "embed.tiny-clip.store_dtype": "float32", "train.head": head}
    config = configure(options)
    store = FeatureStore.open(Path(embed(config, dataset)["dir"]))
    evaluate(config, train(config, dataset, store, "run"), dataset, store)
    items = {row["item_id"]: row for row in dataset.items().to_pylist()}
    rows = pl.read_parquet("runs/run/predictions.parquet").filter(pl.col("split") == "test").head(8)
    rows = rows.join(
        dataset.pairs(columns=["pair_id", "prompt_id", "first_id", "second_id"]), on="pair_id"
    )
    model = RewardModel.from_pretrained(pipeline.export(config, "run", Choice())["dir"])
    prompts = [items[key]["text"] for key in rows["prompt_id"]]
    sides = [[items[key]["image_file"] for key in rows[side]] for side in ("first_id", "second_id")]
    users = rows["user_id"].to_list()
    first, second = (model.score(prompts, paths, users) for paths in sides)
    found = [a - b for a, b in zip(first, second, strict=True)]
    assert found == pytest.approx(rows["margin"].to_list(), abs=1e-5)
    trained_head = TrainedHead.load(Path("runs/run"))
    adapted = pipeline.adapt_one(config, trained_head, dataset, store, "u3")
    assert adapted is not None
    places = [
        store.index(np.array(rows[name].to_list(), "S16"))
        for name in ("prompt_id", "first_id", "second_id")
    ]
    features = [store.gather(place).float() for place in places]
    for choice, code in (
        (Choice("user", user="u3"), adapted),
        (Choice(), trained_head.head.users.population()),
        (Choice("prototype", prototype=1), torch.tensor([0.0, 1.0])),
    ):
        other = RewardModel.from_pretrained(pipeline.export(config, "run", choice)["dir"])
        first_side, second_side = (other.score(prompts, paths) for paths in sides)
        wanted = trained_head.head.margin(*features, code.expand(len(rows), -1)).tolist()
        found = [a - b for a, b in zip(first_side, second_side, strict=True)]
        assert found == pytest.approx(wanted, abs=1e-5), choice
    raw = [Path(path).read_bytes() for path in sides[0]]
    assert model.score(prompts, images=raw, users=users) == pytest.approx(first, abs=1e-6)
    pictures = [Image.open(io.BytesIO(content)) for content in raw]
    assert model.score(prompts, images=pictures, users=users) == pytest.approx(first, abs=1e-6)
    with pytest.raises(RewardError, match="cannot read image nowhere.png"):
        model.score("p", ["nowhere.png"])
    with pytest.raises(RewardError, match="row 0 cannot be scored"):
        model.score("p", [b"no image"])
    require_the_same_over_http(model, prompts, raw, users, first)


def require_the_same_over_http(
    model: RewardModel, prompts: list[str], raw: list[bytes], users: list[str], wanted: list[float]
) -> None:
    from fastapi.testclient import TestClient

    from pal.config import ServeConfig
    from pal.reward.server.app import Service, build_app

    with TestClient(build_app(Service(model, ServeConfig(), None))) as http:
        images = [base64.b64encode(content).decode() for content in raw]
        body = {"prompts": prompts, "responses": images, "users": users}
        assert http.post("/v1/score", json=body).json()["rewards"] == pytest.approx(
            wanted, abs=1e-5
        )
        answers = [{"prompt": p, "chosen": images[0], "rejected": images[1]} for p in prompts[:3]]
        assert http.post("/v1/users/me/adapt", json={"answers": answers}).json()["answers"] == 3
        path = str(Path("raw/0.img").absolute())  # a file of the server is nobody's to name
        for sent in (path, "no base64", base64.b64encode(b"no image").decode()):
            reply = http.post("/v1/score", json={"prompts": ["a cat"], "responses": [sent]})
            assert reply.status_code == 422
        assert http.post("/get_reward", json={"query": ["a"]}).status_code == 422
