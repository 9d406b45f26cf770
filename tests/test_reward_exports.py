"""What is on disk is checked and grants nothing; a user is one user by whichever road; files that
are scored are whole. The runs here have random heads: nothing is embedded or trained."""

from __future__ import annotations

import base64
import io
import json
import math
import sqlite3
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image as Pil

from pal.cache.reader import FeatureStore
from pal.config import Config, DatasetConfig, EncoderConfig, ServeConfig
from pal.data.adapter import Adapter, Part
from pal.data.build import prepare
from pal.data.comparisons import Chunk, Comparison, Recorder
from pal.dataset import CONCATENATED, SPLITS
from pal.embed.encoders.random_models import byte_tokenizer
from pal.embed.render import Renderer
from pal.embed.run import embed
from pal.errors import PalError, PalWarning, RewardError
from pal.items import (
    Image,
    Place,
    Text,
    View,
    conversation,
    image_content_id,
    items_of,
    question,
)
from pal.records import seal
from pal.reward import RewardModel
from pal.reward.export import Choice, export, export_folder
from pal.reward.export_record import ExportRecord, Golden, write_golden
from pal.reward.score_file import score_file
from pal.reward.server.app import build_app
from pal.reward.server.schemas import ScoreRequest
from pal.reward.server.service import Service
from pal.reward.server.users import UserStore
from pal.reward.tools.trl import PalReward
from pal.train.adapt.average import seen_vectors

NUMBERS = ["7", "0", "-3", "9007199254740993", "123456789012345678901"]
TEXTS = ["007", "7.5", "José", "a/b", "true"]
DIGESTS = Path(".digests.json")
Opened = Callable[..., RewardModel]


@pytest.fixture(scope="module")
def folder(opened: Opened, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that knows users by number and by text."""
    place = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        export(opened(NUMBERS + TEXTS), Choice(), place / "mine")
    return place / "mine"


@pytest.fixture(scope="module")
def model(folder: Path) -> RewardModel:
    return RewardModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def http(model: RewardModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    store = tmp_path_factory.mktemp("store") / "users.sqlite"
    with TestClient(
        build_app(Service(model, ServeConfig(store=store), None)), "http://localhost"
    ) as client:
        yield client


def spellings(name: str) -> list[Any]:
    """Return every form in which a program may hold an id."""
    number = int(name)
    found: list[Any] = [name, number, name.encode(), np.str_(name)]
    if int(float(number)) == number:
        found += [float(number), np.float64(number)]
    if abs(number) < 2**63:
        found += [np.int64(number), torch.tensor(number)]
    return found


def by_score(model: RewardModel, user: Any) -> float:
    return model.score("p", ["r"], [user])[0]


def by_trl(model: RewardModel, user: Any) -> float | None:
    return PalReward(model)(["p"], ["r"], user_id=[user])[0]


def write_row(user: Any) -> None:
    Path("in.jsonl").write_text(json.dumps({"prompt": "p", "response": "r", "user_id": user}))


def by_jsonl(model: RewardModel, user: Any) -> float:
    write_row(user)
    assert score_file(model, Path("in.jsonl"), Path("out.jsonl")).users_known == 1
    return float(json.loads(Path("out.jsonl").read_text())["reward"])


def by_parquet(model: RewardModel, user: Any) -> float:
    column = pa.array([user.item() if isinstance(user, torch.Tensor) else user])
    pq.write_table(pa.table({"prompt": ["p"], "response": ["r"], "user_id": column}), "in.parquet")
    assert score_file(model, Path("in.parquet"), Path("out.parquet")).users_known == 1
    written = pq.read_table("out.parquet")
    assert written.schema.field("user_id").type == column.type
    return float(written["reward"][0].as_py())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(NUMBERS))
def test_a_user_has_one_reward_by_every_road(
    model: RewardModel, http: TestClient, data: st.DataObject, name: str
) -> None:
    user = data.draw(st.sampled_from(spellings(name)))
    told = int(name) if isinstance(user, bytes | np.generic | torch.Tensor) else user
    wanted = pytest.approx(by_score(model, name), rel=1e-5)
    assert by_score(model, user) == wanted
    assert model.best_of_n("p", ["r"], user)[1] == [wanted]
    assert model.score("p", ["r"], user) == [wanted]
    assert by_trl(model, user) == wanted
    assert by_jsonl(model, told) == wanted
    fits = not isinstance(user, int) or abs(user) < 2**63
    assert by_parquet(model, user if fits else name) == wanted
    body = {"prompts": ["p"], "responses": ["r"], "users": [told]}
    reply = http.post("/v1/score", json=body).json()
    assert reply == {"rewards": [wanted], "errors": {}, "unknown_users": 0}
    assert http.post("/v1/score", json={**body, "users": told}).json()["rewards"] == [wanted]
    for label in (told, {"user_id": told}, json.dumps({"user_id": told})):
        body = {"query": ["pr"], "prompts": ["p"], "labels": [label]}
        reply = http.post("/get_reward", json=body).json()
        assert reply["rewards"] == [wanted]
        assert reply["extra_logs"] == {"pal_user_known": [1.0], "pal_prompt_cut": [0.0]}


@pytest.mark.parametrize(
    ("user", "told"),
    [(None, "null"), ("", '""'), (" ", '" "'), (np.float32("nan"), "NaN"), (float("nan"), "NaN")],
)
def test_nobody_is_whoever_the_model_is_for(
    model: RewardModel, http: TestClient, user: Any, told: str
) -> None:
    wanted = pytest.approx(by_score(model, None), rel=1e-5)
    assert by_score(model, user) == by_trl(model, user) == wanted
    body = f'{{"prompts": ["p"], "responses": ["r"], "users": [{told}]}}'
    headers = {"content-type": "application/json"}
    reply = http.post("/v1/score", content=body, headers=headers).json()
    if told == "NaN":  # no JSON, so a request that holds it is none
        assert reply["detail"].startswith("the body is no JSON: NaN")
    else:
        assert reply == {"rewards": [wanted], "errors": {}, "unknown_users": 0}
    Path("in.jsonl").write_text(f'{{"prompt": "p", "response": "r", "user_id": {told}}}')
    summary = score_file(model, Path("in.jsonl"), Path("out.jsonl"))
    assert (summary.users_known, summary.users_unknown) == (0, 0)
    assert json.loads(Path("out.jsonl").read_text())["reward"] == wanted


@pytest.mark.parametrize("user", [True, 7.5, ["a"], b"\xff", 10**120])
def test_what_is_no_id_is_an_error_of_its_row_by_every_road(
    model: RewardModel, http: TestClient, user: Any
) -> None:
    with pytest.raises(RewardError, match="row 0 cannot be scored: a user's id is"):
        by_score(model, user)
    with pytest.warns(PalWarning, match="no reward, which TRL leaves out: a user's id is"):
        assert by_trl(model, user) is None
    if isinstance(user, bytes):
        return
    write_row(user)
    summary = score_file(model, Path("in.jsonl"), Path("out.jsonl"))
    assert (summary.rows, summary.rows_failed, summary.users_known) == (1, 1, 0)
    row = json.loads(Path("out.jsonl").read_text())
    assert row["reward"] is None
    assert row["reward_error"].startswith("a user's id is")
    body = {"prompts": ["p"], "responses": ["r"], "users": [user]}
    for path, sent in (("/v1/score", body), ("/get_reward", {"query": ["q"], "labels": [user]})):
        reply = http.post(path, json=sent).json()
        assert reply["rewards"] == [None]
        assert reply["errors"]["0"].startswith("a user's id is")


def test_adapted_users_are_one_by_path_number_and_text(http: TestClient) -> None:
    answer = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for path in ("55", "a%2Fc"):
        reply = http.post(f"/v1/users/{path}/adapt", json={"answers": [answer]})
        assert reply.status_code == 200
    body = {"prompts": ["p"] * 4, "responses": ["r"] * 4, "users": [55, 55.0, "55", "a/c"]}
    reply = http.post("/v1/score", json=body).json()
    assert len(set(reply["rewards"][:3])) == 1
    assert reply["unknown_users"] == 0
    assert http.post("/v1/users/%20/adapt", json={"answers": [answer]}).status_code == 422


# --- items -----------------------------------------------------------------------------------

CONTENT = (
    st.text(max_size=12)
    | st.none()
    | st.lists(
        st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=6)}), max_size=2
    )
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"content": CONTENT},
        optional={
            "role": st.sampled_from(["system", "user", "assistant", "tool", "judge"]) | st.none()
        },
    ),
    max_size=4,
)
CHAT = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}</s>{% endfor %}"


def renderers() -> list[Renderer]:
    chat = byte_tokenizer()
    chat.chat_template = CHAT
    return [
        Renderer("tiny", byte_tokenizer(), EncoderConfig()),
        Renderer("tiny", byte_tokenizer(), EncoderConfig(template="Q: {context} A: {text}")),
        Renderer("tiny", chat, EncoderConfig(template="chat")),
    ]


@pytest.fixture(scope="module")
def roads(
    opened: Opened, tmp_path_factory: pytest.TempPathFactory
) -> dict[View, tuple[RewardModel, RewardModel]]:
    """Return a run and its export by view; the one of the view ``response`` reads prompts too."""
    place = tmp_path_factory.mktemp("roads")
    found: dict[View, tuple[RewardModel, RewardModel]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        views: dict[View, str] = {"prompt+response": "pal-a", "response": "pal-b"}
        for view, head in views.items():
            live = opened(["1"], head, view=view)
            export(live, Choice(), place / head)
            found[view] = (live, RewardModel.from_pretrained(place / head, device="cpu"))
    return found


@settings(max_examples=150, deadline=None)
@given(prompt=st.none() | st.text(max_size=12) | MESSAGES, response=st.text(max_size=12) | MESSAGES)
def test_an_item_renders_the_same_from_a_dataset_a_call_an_export_and_a_request(
    roads: dict[View, tuple[RewardModel, RewardModel]], prompt: Any, response: Any
) -> None:
    said = conversation(response, "assistant")
    turns = (*conversation(prompt), *said[:-1])
    assume(said and said[-1].content.strip() and turns)
    recorder = Recorder(("response", "prompt+response"))
    item = Text(said[-1].content, role=said[-1].role)
    recorder.add(Comparison("1", "u", turns, item, Text(item.text + "!", role=item.role), 1.0))
    chunk = recorder.chunk()
    pair = chunk.pairs.row(0, named=True)
    stored = dict(zip(chunk.items["item_id"], items_of(chunk.items.to_arrow()), strict=True))
    told = ScoreRequest.model_validate_json(
        json.dumps({"prompts": [prompt], "responses": [response]})
    )
    for view, column in (("response", "first_id"), ("prompt+response", "first_with_prompt_id")):
        live, loaded = roads[view]
        rows = [
            live.row(prompt, response),
            loaded.row(prompt, response),
            loaded.row(told.prompts[0], told.responses[0]),
        ]
        for renderer in renderers():
            for row in rows:
                assert renderer.render(row.item) == renderer.render(stored[pair[column]])
                if view == "response":
                    assert renderer.render(row.prompt) == renderer.render(stored[pair["prompt_id"]])


@pytest.mark.parametrize("prompt", ["p", [{"role": "system", "content": "p"}]])
def test_an_item_text_of_prompt_and_response_is_that_of_the_dataset(
    opened: Opened, prompt: Any
) -> None:
    live = opened(["1"], "pal-b", view="response", item_text=CONCATENATED)
    assert live.row(prompt, " r").item == Text("p r")


SIDES = ("first", "second")


def picture(number: int) -> bytes:
    """Return an encoded image; mode and format change with the number."""
    noise = np.random.default_rng(number).integers(0, 256, (40 + number, 60, 3), dtype=np.uint8)
    out = io.BytesIO()
    Pil.fromarray(noise).convert(("RGB", "L", "RGBA", "CMYK")[number % 4]).save(
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
        images = []
        for number in range(24):
            file = Path("raw").absolute() / f"{number}.img"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(picture(number))
            images.append(Image(Place(str(file)), image_content_id(picture(number))))
        recorder = Recorder()
        for n in range(24):
            first, second = images[n], images[(n * 7 + 1) % 24]
            if first is not second:
                prompt = question(("a cat", "a dog")[n % 2])
                split = SPLITS[n % 3]
                recorder.add(Comparison(str(n), f"u{n % 4}", prompt, first, second, 1.0, split))
        chunk = recorder.chunk()
        return Chunk(chunk.items, chunk.pairs.with_columns(population=pl.lit("seen")))


@pytest.mark.parametrize("head", ["pal-a", "pal-b"])
def test_an_image_has_the_reward_of_its_feature_in_the_cache(
    opened: Opened, configure: Callable[..., Config], head: str
) -> None:
    dataset = prepare("pictures", DatasetConfig(), Path("data/pictures"), Pictures)
    config = configure({"encoder": "tiny-clip", "embed.tiny-clip.store_dtype": "float32"})
    store = FeatureStore.open(Path(embed(config, dataset).dir))
    own = config.encoder_config().model_dump()
    live = opened(["u0", "u1"], head, view="response", dim=store.dim, modality="image", **own)
    items = {row["item_id"]: row for row in dataset.items().to_pylist()}
    pairs = dataset.pairs().head(8)
    prompts = [items[key]["text"] for key in pairs["prompt_id"]]
    sides = [[items[key]["image_file"] for key in pairs[f"{side}_id"]] for side in SIDES]
    columns = [pairs[name].to_list() for name in ("prompt_id", "first_id", "second_id")]
    features = [store.gather(store.index(np.array(ids, "S16"))).float() for ids in columns]
    adapted = torch.tensor([0.8, 0.2])
    for choice, vector in (
        (Choice("user", user="u1"), live.users.vector("u1")),
        (Choice("user", user="u3"), adapted),
        (Choice(), None),
        (Choice("prototype", prototype=1), torch.tensor([0.0, 1.0])),
    ):
        folder = export_folder(Path("exports"), "run", choice)
        export(live, choice, folder, adapted=adapted)
        model = RewardModel.from_pretrained(folder)
        first, second = (model.score(prompts, paths) for paths in sides)
        found = [a - b for a, b in zip(first, second, strict=True)]
        vectors = seen_vectors(live.head) if vector is None else vector.unsqueeze(0)
        each = [live.head.margin(*features, one.expand(len(pairs), -1)) for one in vectors]
        wanted = torch.stack(each).mean(dim=0).tolist()
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4), choice
    raw = [Path(path).read_bytes() for path in sides[0]]
    pictures = [Pil.open(io.BytesIO(content)) for content in raw]
    for images in (raw, pictures):
        assert model.score(prompts, images=images) == pytest.approx(first, rel=1e-5)
    with pytest.raises(
        RewardError, match=r"row 0 cannot be scored: image .nowhere.png. is no file"
    ):
        model.score("p", ["nowhere.png"])
    with pytest.raises(RewardError, match="row 0 cannot be scored"):
        model.score("p", [b"no image"])
    users = ["u0", "u1", "u0", None, "u1", "u1", "u0", "u0"]
    require_the_same_over_http(live, prompts, raw, users, live.score(prompts, raw, users))


def require_the_same_over_http(
    model: RewardModel, prompts: list[str], raw: list[bytes], users: list[Any], wanted: list[float]
) -> None:
    with TestClient(build_app(Service(model, ServeConfig(), None)), "http://localhost") as http:
        images = [base64.b64encode(content).decode() for content in raw]
        body = {"prompts": prompts, "responses": images, "users": users}
        assert http.post("/v1/score", json=body).json()["rewards"] == pytest.approx(
            wanted, rel=1e-5
        )
        answers = [{"prompt": p, "chosen": images[0], "rejected": images[1]} for p in prompts[:3]]
        assert http.post("/v1/users/me/adapt", json={"answers": answers}).json()["answers"] == 3
        path = str(Path("raw/0.img").absolute())  # a file of the server is nobody's to name
        for sent in (path, "no base64", base64.b64encode(b"no image").decode()):
            reply = http.post("/v1/score", json={"prompts": ["a cat"], "responses": [sent]})
            assert reply.json()["rewards"] == [None]
            assert list(reply.json()["errors"]) == ["0"]
        assert http.post("/get_reward", json={"query": ["a"]}).status_code == 422


# --- what is on disk -------------------------------------------------------------------------


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file as somebody would by hand, its seal left as it is."""
    path.write_text(json.dumps(change(json.loads(path.read_text())), indent=1))


def copy(folder: Path, name: str = "copy") -> Path:
    import shutil

    return Path(shutil.copytree(folder, name))


def test_a_record_survives_the_disk(folder: Path, model: RewardModel) -> None:
    record = ExportRecord.read(folder)
    assert record == model.metadata
    rewards = sorted(model.score(["p"] * 10, ["r"] * 10, NUMBERS + TEXTS))
    assert min(b - a for a, b in pairwise(rewards)) > 1e-4 * abs(rewards[0])  # each is told apart
    assert record.users == NUMBERS + TEXTS
    assert set(record.files) == {"head.safetensors", "golden.json"}
    config = json.loads((folder / "config.json").read_text())
    assert config["pal"] == {"format": ExportRecord.version, "export": "export.json"}
    assert config["model_type"] == "pal"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("export.json", lambda path: edit(path, lambda v: {**v, "users": v["users"][::-1]})),
        ("export.json", lambda path: edit(path, lambda v: {**v, "view": "response"})),
        ("export.json", lambda path: path.write_text("{}")),
        ("export.json", lambda path: path.write_bytes(path.read_bytes()[:-40])),
        ("golden.json", lambda path: edit(path, lambda v: {**v, "scores": [0.0] * 8})),
        ("golden.json", lambda path: path.unlink()),
        ("head.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-1] + b"!")),
        ("head.safetensors", lambda path: path.write_bytes(b"")),
        ("head.safetensors", lambda path: path.unlink()),
    ],
)
def test_changed_files_of_an_export_are_refused(
    folder: Path, file: str, change: Callable[[Path], Any]
) -> None:
    place = copy(folder)
    change(place / file)
    with pytest.raises(RewardError, match=f"{file} .*export the run again"):
        RewardModel.from_pretrained(place)


def test_files_of_another_export_are_refused(opened: Opened, folder: Path) -> None:
    other = Path("other")
    export(opened(NUMBERS + TEXTS, seed=1), Choice(), other)
    for file in ("head.safetensors", "golden.json"):
        place = copy(folder, file)
        (place / file).write_bytes((other / file).read_bytes())
        with pytest.raises(RewardError, match="was swapped or is stale"):
            RewardModel.from_pretrained(place)


def test_golden_scores_that_are_not_reproduced_are_refused(folder: Path) -> None:
    place = copy(folder)
    golden = Golden.read(place)
    changed = golden.model_copy(update={"scores": [s + n for n, s in enumerate(golden.scores)]})
    record = ExportRecord.read(place)
    files = {**record.files, "golden.json": write_golden(place, changed)}
    record.model_copy(update={"files": files}).write(place)
    with pytest.raises(RewardError, match="gives golden scores that differ by"):
        RewardModel.from_pretrained(place)
    assert RewardModel.from_pretrained(place, check=False).score("p", ["r"])


@pytest.mark.parametrize(
    "change",
    [
        {"scores": []},
        {"scores": [], "inputs": []},
        {"scores": [math.inf] * 8},
        {"scores": [math.nan] * 8},
    ],
)
def test_golden_scores_that_say_nothing_are_refused(folder: Path, change: dict[str, Any]) -> None:
    place = copy(folder)
    content = json.loads((place / "golden.json").read_text()) | change
    content["pal.record"]["pal.sha256"] = "0" * 64
    (place / "golden.json").write_text(json.dumps(content))
    files = {**ExportRecord.read(place).files, "golden.json": seal(place / "golden.json")}
    ExportRecord.read(place).model_copy(update={"files": files}).write(place)
    with pytest.raises(RewardError, match="golden.json does not hold what a record of kind"):
        RewardModel.from_pretrained(place)


@pytest.mark.parametrize(
    "change", [{"dim": 10**30}, {"dim": 10**12}, {"dim": 5}, {"users": [f"u{n}" for n in range(9)]}]
)
def test_a_record_that_promises_other_numbers_than_there_are_is_refused(
    folder: Path, change: dict[str, Any]
) -> None:
    place = copy(folder)
    ExportRecord.read(place).model_copy(update=change).write(place)
    with pytest.raises(RewardError, match="does not fit this version of pal.*export the run again"):
        RewardModel.from_pretrained(place)


def test_only_our_own_exports_are_replaced(opened: Opened) -> None:
    made = opened(["1", "2"])
    theirs = Path("exports/theirs")
    theirs.mkdir(parents=True)
    (theirs / "export.json").write_text("{}")
    with pytest.raises(RewardError, match="is no export of ours, so it is not replaced"):
        export(made, Choice(), theirs)
    assert [path.name for path in theirs.iterdir()] == ["export.json"]
    for seed in (0, 1):
        export(opened(["1", "2"], seed=seed), Choice(), Path("exports/ours"))
    assert ExportRecord.read(Path("exports/ours")).run == "run1"
    assert {path.name for path in Path("exports").iterdir()} == {"theirs", "ours"}


def test_what_an_export_is_called() -> None:
    exports = Path("exports")
    assert export_folder(exports, "run", Choice()) == exports / "run-population"
    assert export_folder(exports, "run", Choice("weights", weights=(0.3, 0.7))).name == (
        "run-weights-0.3-0.7"
    )
    odd = {
        export_folder(exports, "r" * 90, Choice("user", user=user)).name
        for user in ("a/b", "a_b", "../x", "ü" * 200, "ü" * 201)
    }
    assert len(odd) == 5
    assert all(len(name) <= 100 and "/" not in name for name in odd)
    for name in ("../evil", "", "..", "a b"):
        with pytest.raises(RewardError, match="cannot be the name of an export"):
            export_folder(exports, "run", Choice(), name)
    with pytest.raises(RewardError, match="no id is given"):
        Choice("user", user=" ")


# --- trust -----------------------------------------------------------------------------------


def test_a_path_in_an_export_is_only_a_place_to_look(folder: Path) -> None:
    place = copy(folder)
    record = ExportRecord.read(place)
    for path in ("../nothing/here", "/", "~/x", "a/../../b", "-rf", "hf-hub:x"):
        settings = record.encoder.settings.model_copy(
            update={"model": path, "offline_package": "os.path"}
        )
        encoder = record.encoder.model_copy(update={"settings": settings})
        record.model_copy(update={"encoder": encoder}).write(place)
        with pytest.raises(PalError):
            RewardModel.from_pretrained(place)


# --- users adapted at runtime ----------------------------------------------------------------


def test_the_store_keeps_users_by_head_and_leaves_out_what_is_none(model: RewardModel) -> None:
    store = UserStore(Path("users.sqlite"), model.metadata.head_id)
    size = len(model.users.default)
    store.put("sound", 3, torch.tensor([0.25, 0.75]))
    store.close()
    with sqlite3.connect("users.sqlite") as connection:
        rows = [
            (model.metadata.head_id, "short", 1, b"1234"),
            (model.metadata.head_id, "text", 1, "no bytes"),
            (model.metadata.head_id, "nan", 1, np.full(size, np.nan, "<f4").tobytes()),
            (model.metadata.head_id, None, 1, np.zeros(size, "<f4").tobytes()),
            ("another head", "other", 1, np.zeros(size + 1, "<f4").tobytes()),
        ]
        connection.executemany("INSERT INTO user_vectors VALUES (?, ?, ?, ?)", rows)
    connection.close()
    with pytest.warns(PalWarning, match="4 of 5 users in users.sqlite have no vector of 2 numbers"):
        service = Service(model, ServeConfig(), None)
    assert "sound" in model.users
    assert "short" not in model.users
    assert "other" not in model.users
    model.users.forget("sound")
    service.store.close()
