"""What is on disk is checked and grants nothing; a user is one user by whichever road; files that
are scored are whole. The runs here have random heads: nothing is embedded or trained."""

from __future__ import annotations

import base64
import io
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from pal.config import Config, DatasetConfig, EncoderConfig, ServeConfig, TrainConfig
from pal.data.adapter import Adapter, Part
from pal.data.build import prepare
from pal.data.comparisons import Chunk, Comparison, Recorder
from pal.dataset import CONCATENATED, SPLITS
from pal.embed.encoder import locate
from pal.embed.encoders.random_models import byte_tokenizer, random_model
from pal.embed.render import Renderer
from pal.embed.run import embed
from pal.errors import PalError, PalWarning, RewardError
from pal.items import (
    Image,
    ItemText,
    Place,
    Text,
    View,
    conversation,
    image_content_id,
    items_of,
    question,
)
from pal.reward import RewardModel
from pal.reward.export import Choice, export, export_folder
from pal.reward.export_record import ExportRecord, Golden, Modality, write_golden
from pal.reward.loading import encoder_settings
from pal.reward.score_file import score_file
from pal.reward.server.app import build_app
from pal.reward.server.schemas import ScoreRequest
from pal.reward.server.service import Service
from pal.reward.server.users import UserStore
from pal.reward.tools.trl import PalReward
from pal.train.build import build_head, resolve
from pal.train.run_record import RunRecord, TrainedHead

NUMBERS = ["7", "0", "-3", "9007199254740993", "123456789012345678901"]
TEXTS = ["007", "7.5", "José", "a/b", "true"]
DIGESTS = Path(".digests.json")


def opened(
    users: list[str],
    head: str = "pal-a",
    seed: int = 0,
    view: View = "prompt+response",
    item_text: ItemText = "{response}",
    dim: int = 64,
    modality: Modality = "text",
    **encoder: Any,
) -> RewardModel:
    """Return a run of a random head on a small random encoder, as if it had been trained."""
    given = {"model": "random:bert", "store_dtype": "float32", "max_length": 64, **encoder}
    config = EncoderConfig(**given)
    source = locate("tiny", config, DIGESTS)
    train = resolve(TrainConfig(head=head, k=2))
    torch.manual_seed(seed)
    made = build_head(train, dim, len(users)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    record = RunRecord(
        run=f"run{seed}",
        dataset="made",
        view=view,
        item_text=item_text,
        encoder="tiny",
        untrained=True,
        seed=seed,
        dim=dim,
        params=0,
        params_per_user=0,
        seconds=0.0,
        best_epoch=0,
        split_digest="s",
        pairs_digest="p",
        cache_fingerprint="c",
        encoder_spec=source.spec,
        train=train,
        users=users,
        files={},
    )
    return RewardModel.of(TrainedHead(made, record), config, DIGESTS, modality)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    with TestClient(build_app(Service(model, ServeConfig(store=store), None))) as client:
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


def by_trl(model: RewardModel, user: Any) -> float:
    return PalReward(model)(["p"], ["r"], user_id=[user])[0]


def by_jsonl(model: RewardModel, user: Any) -> float:
    Path("in.jsonl").write_text(json.dumps({"prompt": "p", "response": "r", "user_id": user}))
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
    assert reply == {"rewards": [wanted], "unknown_users": 0}
    assert http.post("/v1/score", json={**body, "users": told}).json()["rewards"] == [wanted]
    for label in (told, {"user_id": told}, json.dumps({"user_id": told})):
        body = {"query": ["pr"], "prompts": ["p"], "labels": [label]}
        reply = http.post("/get_reward", json=body).json()
        assert reply["rewards"] == [wanted]
        assert reply["extra_logs"] == {"pal_user_known": [1.0]}


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
    assert reply == {"rewards": [wanted], "unknown_users": 0}
    Path("in.jsonl").write_text(f'{{"prompt": "p", "response": "r", "user_id": {told}}}')
    summary = score_file(model, Path("in.jsonl"), Path("out.jsonl"))
    assert (summary.users_known, summary.users_unknown) == (0, 0)
    assert json.loads(Path("out.jsonl").read_text())["reward"] == wanted


@pytest.mark.parametrize("user", [True, 7.5, ["a"], b"\xff", 10**120])
def test_what_is_no_id_is_refused_by_every_road(
    model: RewardModel, http: TestClient, user: Any
) -> None:
    with pytest.raises(RewardError, match="row 0: a user's id is"):
        by_score(model, user)
    with pytest.raises(RewardError, match="row 0: a user's id is"):
        by_trl(model, user)
    if isinstance(user, bytes):
        return
    with pytest.raises(RewardError, match=r"in.jsonl row 1: a user's id is"):
        by_jsonl(model, user)
    body = {"prompts": ["p"], "responses": ["r"], "users": [user]}
    assert http.post("/v1/score", json=body).status_code == 422
    assert http.post("/get_reward", json={"query": ["q"], "labels": [user]}).status_code == 422


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
def roads(tmp_path_factory: pytest.TempPathFactory) -> dict[View, tuple[RewardModel, RewardModel]]:
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
def test_an_item_text_of_prompt_and_response_is_that_of_the_dataset(prompt: Any) -> None:
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
    configure: Callable[..., Config], head: str
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
        (Choice(), live.users.population),
        (Choice("prototype", prototype=1), torch.tensor([0.0, 1.0])),
    ):
        folder = export_folder(Path("exports"), "run", choice)
        export(live, choice, folder, adapted=adapted)
        model = RewardModel.from_pretrained(folder)
        first, second = (model.score(prompts, paths) for paths in sides)
        found = [a - b for a, b in zip(first, second, strict=True)]
        wanted = live.head.margin(*features, vector.expand(len(pairs), -1)).tolist()
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-4), choice
    raw = [Path(path).read_bytes() for path in sides[0]]
    pictures = [Pil.open(io.BytesIO(content)) for content in raw]
    for images in (raw, pictures):
        assert model.score(prompts, images=images) == pytest.approx(first, rel=1e-5)
    with pytest.raises(RewardError, match=r"row 0 cannot be scored: cannot read image nowhere.png"):
        model.score("p", ["nowhere.png"])
    with pytest.raises(RewardError, match="row 0 cannot be scored"):
        model.score("p", [b"no image"])
    users = ["u0", "u1", "u0", None, "u1", "u1", "u0", "u0"]
    require_the_same_over_http(live, prompts, raw, users, live.score(prompts, raw, users))


def require_the_same_over_http(
    model: RewardModel, prompts: list[str], raw: list[bytes], users: list[Any], wanted: list[float]
) -> None:
    with TestClient(build_app(Service(model, ServeConfig(), None))) as http:
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
            assert reply.status_code == 422
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


def test_files_of_another_export_are_refused(folder: Path) -> None:
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


def test_only_our_own_exports_are_replaced() -> None:
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

CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import {base}, BertConfig, PreTrainedTokenizerFast
class {name}({base}):
    pass
"""


def plant(folder: Path, marker: Path, model_type: str | None = None) -> None:
    """Put code into a model's folder that transformers would run for whoever trusts it."""
    auto_map = {}
    for auto, base in (
        ("AutoConfig", "BertConfig"),
        ("AutoModel", "BertModel"),
        ("AutoModelForSequenceClassification", "BertForSequenceClassification"),
    ):
        file = f"planted_{auto.lower()}"
        code = CODE.format(marker=str(marker), base=base, name=f"Planted{auto}")
        (folder / f"{file}.py").write_text(code)
        auto_map[auto] = f"{file}.Planted{auto}"
    change = {"auto_map": auto_map} | ({"model_type": model_type} if model_type else {})
    edit(folder / "config.json", lambda config: {**config, **change})
    code = CODE.format(marker=str(marker), base="PreTrainedTokenizerFast", name="PlantedTokenizer")
    (folder / "planted_tokenizer.py").write_text(code)
    own = {"auto_map": {"AutoTokenizer": [None, "planted_tokenizer.PlantedTokenizer"]}}
    edit(folder / "tokenizer_config.json", lambda config: {**config, **own})


def encoder_folder(name: str) -> Path:
    random_model("bert").save_pretrained(name)
    byte_tokenizer().save_pretrained(name)
    return Path(name)


def demand_trust(place: Path, **changed: Any) -> None:
    """Let an export say, correctly sealed, that its encoder's code is to be trusted."""
    record = ExportRecord.read(place)
    settings = record.encoder.settings.model_copy(update={"trust_remote_code": True})
    encoder = record.encoder.model_copy(update={"settings": settings})
    record.model_copy(update={"encoder": encoder, **changed}).write(place)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what transformers copies of planted code within the test."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


@pytest.mark.usefixtures("modules")
def test_an_export_cannot_make_its_encoders_code_run(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from pal.reward.tools.hf import PalForSequenceClassification

    marker = tmp_path / "executed"
    encoder = encoder_folder("encoder")
    plant(encoder, marker)
    made = opened(["1"], model="encoder")
    wanted = made.score("p", ["r"])
    export(made, Choice(), Path("evil"))
    demand_trust(Path("evil"))
    edit(
        Path("evil/config.json"),
        lambda config: {
            **config,
            "auto_map": json.loads((encoder / "config.json").read_text())["auto_map"],
        },
    )
    for file in encoder.glob("planted_*.py"):
        (Path("evil") / file.name).write_bytes(file.read_bytes())
    assert RewardModel.from_pretrained("evil").score("p", ["r"]) == pytest.approx(wanted, rel=1e-5)
    assert PalForSequenceClassification.from_pretrained("evil").num_labels == 1
    assert AutoModelForSequenceClassification.from_pretrained("evil").num_labels == 1
    assert RewardModel.from_pretrained("evil", encoder="./encoder").score("p", ["r"])
    assert not marker.exists()
    with suppress(Exception):  # whoever trusts it runs it: the trap is set as it should be
        RewardModel.from_pretrained("evil", trust_remote_code=True)
    assert marker.exists()


@pytest.mark.usefixtures("modules")
def test_an_encoder_that_needs_code_says_how_to_trust_it(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    encoder = encoder_folder("encoder")
    made = opened(["1"], model="encoder")
    export(made, Choice(), Path("evil"))
    plant(encoder, marker, model_type="unheard-of")
    spec = locate("tiny", made.encoder.source.config, Path("d.json")).spec
    reference = ExportRecord.read(Path("evil")).encoder.model_copy(update={"spec": spec})
    demand_trust(Path("evil"))
    settings = reference.settings.model_copy(update={"trust_remote_code": True})
    ExportRecord.read(Path("evil")).model_copy(
        update={"encoder": reference.model_copy(update={"settings": settings})}
    ).write(Path("evil"))
    with pytest.raises(RewardError, match="runs only if you pass trust_remote_code=True"):
        RewardModel.from_pretrained("evil")
    assert not marker.exists()


@pytest.mark.usefixtures("modules")
def test_a_merged_export_cannot_make_code_run(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    made = opened(["1", "2"], "lore", model="random:llama", pooling="last")
    place = Path("merged")
    summary = export(made, Choice("user", user="2"), place, merge=True)
    assert summary.merged
    plant(place, marker)
    with pytest.raises(RewardError, match="differs in files"):
        RewardModel.from_pretrained(place)
    record = ExportRecord.read(place)
    wanted, _ = encoder_settings(place, record, None, trust_remote_code=False)
    demand_trust(place, merged_spec=locate("tiny", wanted, Path("d.json")).spec)
    assert RewardModel.from_pretrained(place).score("p", ["r"]) == pytest.approx(
        made.score("p", ["r"], "2"), rel=1e-4
    )
    assert not marker.exists()


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


# --- files that are scored -------------------------------------------------------------------


class Killed(Exception): ...


def kill(count: int) -> None:
    raise Killed


def write_rows(path: str, count: int) -> Path:
    rows = [{"prompt": f"p{n // 3}", "response": f"r{n}", "user_id": "7"} for n in range(count)]
    Path(path).write_text("\n".join(map(json.dumps, rows)))
    return Path(path)


def scored_rows(model: RewardModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the rows that a model scores from now on."""
    counts: list[int] = []
    original = model.score_rows

    def counted(rows: Any, vectors: Any) -> Any:
        counts.append(len(rows))
        return original(rows, vectors)

    monkeypatch.setattr(model, "score_rows", counted)
    return counts


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda: None, 600 - 512),
        (lambda: edit(Path(".out.jsonl.json"), lambda v: {**v, "rows": 600}), 600),
        (lambda: Path(".out.jsonl.json").write_text("{"), 600),
        (lambda: Path(".out.jsonl.json").unlink(), 600),
        (lambda: Path(".out.jsonl.part").unlink(), 600),
        (lambda: Path(".out.jsonl.part").write_bytes(b"\0" * 8 * 512), 600),
        (lambda: write_rows("in.jsonl", 601), 601),
    ],
)
def test_scoring_goes_on_only_from_a_sound_state(
    model: RewardModel, monkeypatch: pytest.MonkeyPatch, damage: Callable[[], Any], left: int
) -> None:
    source = write_rows("in.jsonl", 600)
    with pytest.raises(Killed):
        score_file(model, source, Path("out.jsonl"), progress=kill)
    damage()
    counts = scored_rows(model, monkeypatch)
    summary = score_file(model, source, Path("out.jsonl"))
    assert sum(counts) == left
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert len(rows) == summary.rows_written == summary.rows
    wanted = model.score([r["prompt"] for r in rows], [r["response"] for r in rows], "7")
    assert [row["reward"] for row in rows] == pytest.approx(wanted, rel=1e-5)
    assert not list(Path().glob(".out*"))


def test_another_model_does_not_go_on_from_it(model: RewardModel) -> None:
    source = write_rows("in.jsonl", 600)
    with pytest.raises(Killed):
        score_file(model, source, Path("out.jsonl"), progress=kill)
    other = opened(["7"], seed=3)
    score_file(other, source, Path("out.jsonl"))
    first = json.loads(Path("out.jsonl").read_text().splitlines()[0])
    assert first["reward"] == pytest.approx(other.score("p0", ["r0"], 7)[0], rel=1e-5)


def test_a_second_scoring_of_one_output_is_refused(model: RewardModel) -> None:
    source = write_rows("in.jsonl", 3)

    def again(count: int) -> None:
        with pytest.raises(RewardError, match=r"out.jsonl is being written by another pal score"):
            score_file(model, source, Path("out.jsonl"))
        score_file(model, source, Path("other.jsonl"))

    score_file(model, source, Path("out.jsonl"), progress=again)
    score_file(model, source, Path("out.jsonl"))
    assert not list(Path().glob(".out*"))


def test_parquet_stays_as_it_was(model: RewardModel) -> None:
    count = 1100
    nested = pa.array([{"a": [n], "b": None} for n in range(count)])
    table = pa.table(
        {
            "response": [f"r{n}" for n in range(count)],
            "prompt": [[{"role": "user", "content": f"p{n // 4}"}] for n in range(count)],
            "user_id": pa.array([7 if n % 8 < 4 else None for n in range(count)], pa.int32()),
            "when": pa.array([1_600_000_000 + n for n in range(count)], pa.timestamp("ms", "UTC")),
            "raw": pa.array([b"\xff%d" % n for n in range(count)], pa.large_binary()),
            "nested": nested,
            "kind": pa.array(["x", "y"] * (count // 2)).dictionary_encode(),
        }
    ).replace_schema_metadata({"mine": "kept"})
    pq.write_table(table, "in.parquet")
    source = Path("in.parquet")
    score_file(model, source, Path("out.parquet"))
    written = pq.read_table("out.parquet")
    assert written.schema.names == [*table.schema.names, "reward"]
    assert written.schema.remove_metadata().field("when") == table.schema.field("when")
    assert written.schema.metadata[b"mine"] == b"kept"
    assert written.drop_columns("reward").equals(pq.read_table(source))
    score_file(model, Path("out.parquet"), Path("again.parquet"))
    assert pq.read_table("again.parquet").equals(written)

    score_file(model, source, Path("best.parquet"), best_of=3)
    best = pq.read_table("best.parquet")
    assert best.schema == written.schema
    rewards = written["reward"].to_pylist()
    kept = [max(range(n, n + 3), key=rewards.__getitem__) for n in range(0, count, 4)]
    assert best.equals(written.take(kept))
    score_file(model, source, Path("best.jsonl"), best_of=3)
    lines = [json.loads(line) for line in Path("best.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in lines] == pytest.approx(best["reward"].to_pylist())
    assert lines[0]["raw"]["base64"]

    score_file(model, source, Path("pairs.parquet"), pairs=True)
    pairs = pq.read_table("pairs.parquet")
    assert pairs.schema.field("user_id").type == pa.int32()
    assert pairs.schema.field("prompt").type == table.schema.field("prompt").type
    groups = [rewards[n : n + 4] for n in range(0, count, 4)]
    assert pairs["chosen_reward"].to_pylist() == [max(group) for group in groups]
    assert pairs["rejected_reward"].to_pylist() == [min(group) for group in groups]


def test_odd_parquet_files_are_one_sentence(model: RewardModel) -> None:
    Path("broken.parquet").write_bytes(b"PAR1 no more")
    pq.write_table(pa.table({"n": [1, 2]}), "none.parquet")
    pq.write_table(pa.table({"response": pa.array([], pa.string())}), "empty.parquet")
    for file, words in (("broken", "is no Parquet file"), ("none", "row 1 has no 'response'")):
        with pytest.raises(RewardError, match=words):
            score_file(model, Path(f"{file}.parquet"), Path("out.parquet"))
    assert score_file(model, Path("empty.parquet"), Path("out.parquet")).rows == 0
    assert pq.read_table("out.parquet").schema.names == ["response", "reward"]
    Path("empty.jsonl").write_text("\n")
    assert score_file(model, Path("empty.jsonl"), Path("out.parquet")).rows == 0
    assert pq.read_table("out.parquet").schema.names == ["reward"]
    assert not list(Path().glob(".out*"))


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
