"""Exports, model folders, repositories and runs of strangers: nothing of them runs, nothing is
written, and they end in a right answer or in one sentence."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pal import pipeline
from pal.cli import app
from pal.config import Config, EncoderConfig
from pal.embed.encoder import EncoderSource, load, locate
from pal.embed.encoders import openclip
from pal.embed.encoders.random_models import byte_tokenizer, random_model
from pal.errors import EncoderError, EvaluationError, PalError, RewardError
from pal.items import Text, Turn
from pal.reward import RewardModel
from pal.reward.export import Choice, export
from pal.reward.export_record import ExportRecord
from pal.train.run_record import RunRecord

Configure = Callable[..., Config]
Opened = Callable[..., RewardModel]
Folders = dict[str, Path]
CODE = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import {base}, BertConfig, PreTrainedTokenizerFast
class {name}({base}):
    pass
"""
CLASSES = (
    ("AutoConfig", "BertConfig"),
    ("AutoModel", "BertModel"),
    ("AutoModelForSequenceClassification", "BertForSequenceClassification"),
)


class Payload:
    """What a pickle runs as it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where planted code leaves its trace; what transformers copies of code stays in the test."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever is asked, says yes
    return tmp_path / "executed"


def edit(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**found, **changes}))


def state_of(place: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of all that lies below a folder."""
    found = {path: path.lstat() for path in place.rglob("*")}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


# --- what is planted -------------------------------------------------------------------------


def code(folder: Path, marker: Path, repository: str = "", classes: Any = CLASSES) -> None:
    """Classes that transformers would run for whoever trusts the folder."""
    mapped = {}
    for auto, base in classes:
        file = f"planted_{auto.lower()}"
        text = CODE.format(marker=str(marker), base=base, name=f"Planted{auto}")
        if not repository:
            (folder / f"{file}.py").write_text(text)
        mapped[auto] = f"{repository}{file}.Planted{auto}"
    edit(folder / "config.json", auto_map=mapped)
    text = CODE.format(marker=str(marker), base="PreTrainedTokenizerFast", name="PlantedTokenizer")
    if not repository:
        (folder / "planted_tokenizer.py").write_text(text)
    tokenizer = [None, f"{repository}planted_tokenizer.PlantedTokenizer"]
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": tokenizer})


def code_alone(folder: Path, marker: Path) -> None:
    """An architecture that only the folder's own code knows."""
    code(folder, marker)
    edit(folder / "config.json", model_type="unheard-of")


def pickles(folder: Path, marker: Path) -> None:
    """Weights as pickles, and no others."""
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Payload(marker)}, folder / "pytorch_model.bin")


def pickle_beside(folder: Path, marker: Path) -> None:
    """Pickles beside the weights, under names that some library may prefer."""
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "head.pkl"):
        with (folder / name).open("wb") as file:
            pickle.dump(Payload(marker), file)


def shards_outside(folder: Path, marker: Path) -> None:
    """An index that leads to a pickle."""
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save({"weight": Payload(marker)}, folder.parent / "outside.bin")
    names = dict.fromkeys(load_file(folder / "other.safetensors"), "../outside.bin")
    edit(folder / "model.safetensors.index.json", metadata={}, weight_map=names)


def other_weights(folder: Path, marker: Path) -> None:
    """Weights from a folder above."""
    shutil.copy(folder / "model.safetensors", folder.parent / "above.safetensors")
    edit(folder / "config.json", transformers_weights="../above.safetensors")


def adapter(folder: Path, marker: Path) -> None:
    """An adapter that wants another model."""
    edit(folder / "adapter_config.json", base_model_name_or_path="evil/base", peft_type="LORA")


def huge_header(folder: Path, marker: Path) -> None:
    """Weights whose header claims to be larger than the machine."""
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")


def settings_outside(folder: Path, marker: Path) -> None:
    """Files of other versions, above the folder."""
    edit(folder / "config.json", configuration_files=["../config.4.0.0.json"])


def escaping_template(folder: Path, marker: Path) -> None:
    """A chat template that wants out of its sandbox."""
    system = f"touch {marker}"
    escape = f"cycler.__init__.__globals__.os.system('{system}')"
    template = f"{{{{ {escape} }}}}{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}"
    (folder / "chat_template.jinja").write_text(template)
    edit(folder / "tokenizer_config.json", chat_template=template)


def remembered_hashes(folder: Path, marker: Path) -> None:
    """Other weights, and a memory of hashes that says they are the old ones."""
    from pal.embed.digests import DigestMemory

    memory = DigestMemory(folder / ".digests.json")
    for path in sorted(folder.glob("*.safetensors")):
        memory.sha256(path)
    weights = folder / "model.safetensors"
    before, tensors = weights.stat(), load_file(weights)
    save_file({name: value + 1 for name, value in tensors.items()}, weights, {"format": "pt"})
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    memory.changed = True
    memory.save()


PLANTED = [
    code, code_alone, pickles, pickle_beside, shards_outside, other_weights, adapter, huge_header,
    settings_outside, escaping_template, remembered_hashes,
]  # fmt: skip
HARMLESS = {"code", "pickle_beside"}
"""what is left alone, so that the right answer is given"""


# --- exports ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound(opened: Opened, tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """An encoder's folder, an export that refers to it, and one that is merged with one."""
    place = tmp_path_factory.mktemp("sound")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        random_model("bert").save_pretrained("encoder")
        byte_tokenizer().save_pretrained("encoder")
        export(opened(["1", "2"], model="encoder"), Choice(), Path("reference"))
        made = opened(["1", "2"], "lore", model="random:llama", pooling="last")
        export(made, Choice("user", user="2"), Path("merged"), merge=True)
        shutil.rmtree(place / ".digests.json", ignore_errors=True)
    return {name: place / name for name in ("encoder", "reference", "merged")}


@pytest.fixture(scope="module")
def answers(sound: Folders) -> dict[str, float]:
    """What the sound exports answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(sound["encoder"].parent)
        return {
            kind: RewardModel.from_pretrained(sound[kind]).score("p", ["r"])[0]
            for kind in ("reference", "merged")
        }


def copied(sound: Folders) -> None:
    """Put the sound folders into the working directory."""
    for name, folder in sound.items():
        shutil.copytree(folder, name)


def seal_again(place: Path, kind: str) -> None:
    """Let an export, correctly sealed, ask for trust and say that its files are the right ones."""
    record = ExportRecord.read(place)
    settings = record.encoder.settings.model_copy(
        update={"trust_remote_code": True, "offline_package": "evil_package"}
    )
    changed: dict[str, Any] = {}
    spec = record.encoder.spec
    model = str(place) if kind == "merged" else "encoder"
    own = settings.model_copy(update={"model": model, "trust_remote_code": False})
    try:
        found = locate("tiny", own, None).spec
    except EncoderError:  # then nothing can be claimed about the files
        found = spec
    if kind == "merged":
        changed["merged_spec"] = found
    else:
        spec = found
    encoder = record.encoder.model_copy(update={"settings": settings, "spec": spec})
    record.model_copy(update={"encoder": encoder, **changed}).write(place)


def by_library(place: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    return RewardModel.from_pretrained(place, device="cpu").score("p", ["r"])[0]


def by_score(place: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    Path("rows.jsonl").write_text('{"prompt": "p", "response": "r"}\n')
    options = ["--input", "rows.jsonl", "--output", "out.jsonl"]
    app(["score", "--model", str(place), *options], standalone_mode=False)
    return float(json.loads(Path("out.jsonl").read_text())["reward"])


def by_serve(place: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    found: list[float] = []
    monkeypatch.setattr(
        "pal.reward.server.serve.run_server",
        lambda model, *_, **__: found.extend(model.score("p", ["r"])),
    )
    app(["serve", "--model", str(place)], standalone_mode=False)
    return found[0]


def by_rewardbench(place: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    found: list[float] = []
    monkeypatch.setattr(
        "pal.reward.tools.rewardbench.evaluate",
        lambda model, *_: found.extend(model.score("p", ["r"])),
    )
    monkeypatch.setattr("pal.cli.reward.show", lambda *_: None)
    Path("rows.jsonl").write_text("")
    app(["rewardbench", "--model", str(place), "--input", "rows.jsonl"], standalone_mode=False)
    return found[0]


def by_transformers(place: Path, monkeypatch: pytest.MonkeyPatch) -> float | None:
    from transformers import AutoModelForSequenceClassification

    from pal.reward.tools.hf import PalForSequenceClassification

    if json.loads((place / "config.json").read_text()).get("model_type") == "pal":
        PalForSequenceClassification.from_pretrained(place)
    AutoModelForSequenceClassification.from_pretrained(place, trust_remote_code=False)
    return None


LOADERS = [by_library, by_score, by_serve, by_rewardbench, by_transformers]


def require_harmless(
    use: Callable[[], float | None], wanted: float | None, marker: Path, written: set[str]
) -> str | None:
    """Return the sentence with which something ends, or None once it gives the right answer."""
    before = state_of(marker.parent)
    try:
        found = use()
    except PalError as error:
        sentence = str(error)
        assert "\n" not in sentence
        assert len(sentence) < 700
    else:
        sentence = None
        assert found is None or wanted is None or found == pytest.approx(wanted, rel=1e-4)
    assert not marker.exists(), "code of a stranger has run"
    after = state_of(marker.parent)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    names = {str(Path(name).relative_to(marker.parent)).split("/")[0] for name in changed}
    assert names <= written
    return sentence


@pytest.mark.parametrize("kind", ["reference", "merged"])
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_an_export_of_a_stranger_is_harmless(
    plant: Callable[[Path, Path], None],
    kind: str,
    sound: Folders,
    answers: dict[str, float],
    marker: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied(sound)
    place = Path(kind)
    plant(place if kind == "merged" else Path("encoder"), marker)
    if kind == "reference" and plant in (code, escaping_template, adapter, remembered_hashes):
        if plant is remembered_hashes:
            shutil.copy("encoder/.digests.json", place)
        else:
            plant(place, marker)
    if plant is not remembered_hashes:
        seal_again(place, kind)
    for loader in LOADERS if plant in (code, code_alone) else LOADERS[:1]:
        output = {"rows.jsonl", "out.jsonl"}
        wanted = None if plant is escaping_template else answers[kind]
        if loader is by_transformers and kind == "merged" and plant is code_alone:
            continue  # transformers' own refusal
        sentence = require_harmless(
            lambda loader=loader: loader(place, monkeypatch),
            wanted,
            marker,
            output,  # type: ignore[misc]
        )
        if plant.__name__ in HARMLESS:
            assert sentence is None
        elif plant is not escaping_template:
            assert sentence is not None
    if plant is code_alone:
        assert sentence is None or "runs only if you" in sentence


def test_an_export_cannot_have_a_package_imported(
    sound: Folders, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(sound)
    for name in ("evil_package", "evil_package/model"):
        Path(name).mkdir()
    Path("evil_package/__init__.py").write_text(f"import os; os.mkdir({str(marker)!r})")
    monkeypatch.syspath_prepend(os.getcwd())
    for package in ("evil_package", "evil_package.model", "__main__", ".evil_package", ""):
        record = ExportRecord.read(Path("reference"))
        settings = record.encoder.settings.model_copy(
            update={"model": "no/such-model", "offline_package": package}
        )
        encoder = record.encoder.model_copy(update={"settings": settings})
        record.model_copy(update={"encoder": encoder}).write(Path("reference"))
        sentence = require_harmless(
            lambda: by_library(Path("reference"), monkeypatch), None, marker, set()
        )
        assert sentence is not None
        assert "cannot fetch encoder tiny (no/such-model)" in sentence
        assert "pip install" not in sentence, "an export must not choose what is installed"


def test_an_export_of_links_is_read_and_nothing_is_written_through_them(
    sound: Folders, answers: dict[str, float], marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied(sound)
    Path("blobs").mkdir()
    Path("blobs/digests").write_text("of somebody else")
    for number, path in enumerate(sorted(Path("reference").iterdir())):
        path.rename(f"blobs/{number}")
        path.symlink_to(f"../blobs/{number}")
    Path("reference/.digests.json").symlink_to("../blobs/digests")
    assert (
        require_harmless(
            lambda: by_library(Path("reference"), monkeypatch), answers["reference"], marker, set()
        )
        is None
    )


# --- code that is allowed --------------------------------------------------------------------


def source_of(model: str, **settings: Any) -> EncoderSource:
    return locate("mine", EncoderConfig(model=model, **settings), None)


def features(source: EncoderSource) -> torch.Tensor:
    encoder = load(source, "cpu", 100, [-1], False)
    inputs = encoder.prepare([Text("some words", (Turn("user", "why?"),))])
    (rows,) = encoder.batches(inputs)
    return encoder.encode(encoder.load_batch(inputs, rows))[0]


def test_code_that_is_allowed_runs_and_is_part_of_the_specification(
    sound: Folders, marker: Path
) -> None:
    copied(sound)
    wanted = features(source_of("encoder"))
    code(Path("encoder"), marker, classes=CLASSES[1:])
    Path("encoder/layers").mkdir()
    Path("encoder/layers/norm.py").write_text("SCALE = 1")
    refused, allowed = source_of("encoder"), source_of("encoder", trust_remote_code=True)
    assert "code" not in refused.spec
    assert sorted(allowed.spec["code"]["own"]) == [
        "layers/norm.py", "planted_automodel.py",
        "planted_automodelforsequenceclassification.py", "planted_tokenizer.py",
    ]  # fmt: skip
    torch.testing.assert_close(features(refused), wanted)
    assert not marker.exists()
    torch.testing.assert_close(features(allowed), wanted)
    assert marker.exists()
    Path("encoder/layers/norm.py").write_text("SCALE = 2")
    changed = source_of("encoder", trust_remote_code=True).spec
    assert {key for key in changed if changed[key] != allowed.spec[key]} == {"code"}


def test_trust_changes_nothing_for_a_model_that_needs_no_code(sound: Folders) -> None:
    copied(sound)
    plain = source_of("encoder").spec
    Path("encoder/convert.py").write_text("a script beside the model")
    assert source_of("encoder", trust_remote_code=True).spec == plain


def test_an_export_that_needs_code_says_how_to_allow_it_and_runs_no_other(
    opened: Opened, sound: Folders, marker: Path
) -> None:
    copied(sound)
    code(Path("encoder"), marker, classes=CLASSES[1:])
    made = opened(["1"], model="encoder", trust_remote_code=True)
    export(made, Choice(), Path("mine"))
    marker.unlink()
    with pytest.raises(RewardError, match="needs code from 'encoder', which runs only if you allo"):
        RewardModel.from_pretrained("mine")
    assert not marker.exists()
    loaded = RewardModel.from_pretrained("mine", trust_remote_code=True)
    assert loaded.score("p", ["r"]) == pytest.approx(made.score("p", ["r"]), rel=1e-4)
    assert type(loaded.encoder.encoder.model).__name__ == "PlantedAutoModel"
    with Path("encoder/planted_automodel.py").open("a") as file:
        file.write("# changed since\n")
    with pytest.raises(RewardError, match="differs in code from the one that the head was trained"):
        RewardModel.from_pretrained("mine", trust_remote_code=True)
    assert not marker.exists()


# --- the Hub ---------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty local copy of the Hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def download(hub: Path, repository: str, folder: Path, commit: str = "a") -> None:
    """Lay a repository out as huggingface_hub does after a download, ``main`` at this commit."""
    place = hub / f"models--{repository.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / "main").write_text(commit * 40)
    (place / "blobs").mkdir(exist_ok=True)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = place / "blobs" / f"{commit}-{file.name}"
        shutil.copy(file, blob)
        link = place / "snapshots" / (commit * 40) / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


@pytest.mark.parametrize("plant", PLANTED[:-1], ids=lambda plant: plant.__name__)
def test_a_repository_of_a_stranger_is_harmless(
    plant: Callable[[Path, Path], None], sound: Folders, hub: Path, marker: Path
) -> None:
    copied(sound)
    wanted = float(features(source_of("encoder"))[0, 0])
    plant(Path("encoder"), marker)
    download(hub, "evil/encoder", Path("encoder"))
    template = "chat" if plant is escaping_template else None

    def use() -> float:
        return float(features(source_of("evil/encoder", template=template))[0, 0])

    if plant is escaping_template:
        encoder = load(source_of("evil/encoder", template=template), "cpu", 100, [-1], False)
        assert "does not accept the roles" in encoder.prepare([Text("a")]).failures[0].message
        assert not marker.exists()
        return
    sentence = require_harmless(use, wanted, marker, set())
    assert (sentence is None) == (plant.__name__ in HARMLESS)


def test_an_export_on_the_hub_is_harmless(
    sound: Folders, answers: dict[str, float], hub: Path, marker: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    copied(sound)
    for folder in ("encoder", "merged"):
        code(Path(folder), marker)
    seal_again(Path("merged"), "merged")
    download(hub, "evil/merged", Path("merged"))
    wanted = answers["merged"]
    use = lambda: RewardModel.from_pretrained("evil/merged").score("p", ["r"])[0]  # noqa: E731
    assert require_harmless(use, wanted, marker, set()) is None


def test_code_of_another_repository_is_hashed_and_pinned(
    sound: Folders, hub: Path, marker: Path
) -> None:
    copied(sound)
    shutil.copytree("encoder", "theirs")
    code(Path("theirs"), marker)
    code(Path("encoder"), marker, "other/code--", CLASSES[1:])
    download(hub, "evil/encoder", Path("encoder"))
    with pytest.raises(EncoderError, match="cannot fetch other/code, whose code encoder mine runs"):
        source_of("evil/encoder", trust_remote_code=True)
    download(hub, "other/code", Path("theirs"))
    torch.testing.assert_close(features(source_of("evil/encoder")), features(source_of("encoder")))
    assert not marker.exists()
    first = source_of("evil/encoder", trust_remote_code=True)
    assert first.code_commit == "a" * 40
    assert sorted(first.spec["code"]) == ["other/code", "own"]
    assert "planted_automodel.py" in first.spec["code"]["other/code"]
    code(Path("theirs"), marker.with_name("changed"))
    download(hub, "other/code", Path("theirs"), "b")
    later = source_of("evil/encoder", trust_remote_code=True)
    assert later.spec["code"] != first.spec["code"]
    pinned = source_of("evil/encoder", trust_remote_code=True, code_revision="a" * 40)
    assert pinned.spec == first.spec
    features(pinned)
    assert marker.exists()
    assert not marker.with_name("changed").exists()


def test_a_copy_without_its_code_is_a_sentence(sound: Folders, hub: Path, marker: Path) -> None:
    copied(sound)
    code_alone(Path("encoder"), marker)
    for file in Path("encoder").glob("*.py"):
        file.unlink()
    download(hub, "evil/encoder", Path("encoder"))
    sentence = require_harmless(
        lambda: float(features(source_of("evil/encoder", trust_remote_code=True)).sum()),
        None, marker, {"modules"},
    )  # fmt: skip
    assert sentence is not None
    assert "cannot load encoder mine" in sentence


def test_code_of_two_other_repositories_is_refused(sound: Folders, marker: Path) -> None:
    copied(sound)
    code(Path("encoder"), marker, "other/code--")
    edit(Path("encoder/tokenizer_config.json"), auto_map={"AutoTokenizer": ["a/b--c.D", None]})
    with pytest.raises(EncoderError, match="takes code from a/b, other/code, but one other repo"):
        source_of("encoder", trust_remote_code=True)


@pytest.mark.parametrize(
    "file", ["added_tokens.json", "spm.model", "x.tiktoken", "additional_chat_templates/rag.jinja"]
)
def test_every_file_that_changes_features_is_part_of_the_specification(
    file: str, sound: Folders
) -> None:
    copied(sound)
    before = source_of("encoder").spec["files"]
    path = Path("encoder") / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    assert {*source_of("encoder").spec["files"]} - {*before} == {file}


# --- OpenCLIP --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a small OpenCLIP model."""
    import open_clip

    place = tmp_path_factory.mktemp("clip")
    save_file(open_clip.CLIP(**openclip.TINY).state_dict(), place / "open_clip_model.safetensors")
    edit(place / "open_clip_config.json", model_cfg=openclip.TINY, preprocess_cfg={})
    return place


def towers(**settings: Any) -> None:
    config = EncoderConfig(kind="open-clip", **settings)
    load(locate("mine", config, None), "cpu", 100, [-1], False)


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("text_cfg", {}, None),
        ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}, "'trust_remote_code', wh"),
        ("text_cfg", {"hf_tokenizer_name": "evil/tokenizer"}, "brings code of its own"),
        ("text_cfg", {"hf_model_name": "evil/model"}, "builds a tower from 'evil/model'"),
        ("vision_cfg", {"timm_model_name": "hf-hub:evil/model"}, "builds a tower from 'hf-hub:e"),
        ("vision_cfg", {"timm_model_name": "local-dir:/tmp"}, "builds a tower from 'local-dir:"),
        ("vision_cfg", {"layers": "many"}, "cannot load encoder mine"),
    ],
)
def test_a_folder_of_openclip_reaches_for_nothing_else(
    part: str, changes: dict[str, Any], sentence: str | None, clip: Path, marker: Path
) -> None:
    shutil.copytree(clip, "clip")
    config: dict[str, Any] = json.loads(json.dumps(openclip.TINY))
    config[part] |= changes
    edit(Path("clip/open_clip_config.json"), model_cfg=config)
    edit(Path("clip/config.json"), model_type="unheard-of")
    code(Path("clip"), marker)
    found = require_harmless(lambda: towers(model="local-dir:clip"), None, marker, set())
    assert (found is None) == (sentence is None)
    assert sentence is None or sentence in str(found)


def test_pickles_of_openclip_do_not_run(clip: Path, marker: Path) -> None:
    shutil.copytree(clip, "clip")
    for name in ("open_clip_pytorch_model.bin", "model.pth"):
        torch.save({"state_dict": Payload(marker)}, Path("clip") / name)
    use = lambda: towers(model="local-dir:clip")  # noqa: E731
    assert require_harmless(use, None, marker, set()) is None
    Path("clip/open_clip_model.safetensors").unlink()
    assert "cannot load encoder mine" in str(require_harmless(use, None, marker, set()))
    for name in ("open_clip_pytorch_model.bin", "model.pth"):
        (Path("clip") / name).unlink()
    assert "cannot load encoder mine" in str(require_harmless(use, None, marker, set()))
    torch.save({"state_dict": Payload(marker)}, "weights.pt")
    named = lambda: towers(model="RN50", pretrained="weights.pt")  # noqa: E731
    assert "cannot load encoder mine" in str(require_harmless(named, None, marker, set()))


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[" * 100_000),
        ("config.json", b'{"model_type": "bert", "hidden_size": "wide"}'),
        ("config.json", b"\xff\xfe"),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b'{"auto_map": 7, "fast_tokenizer_files": 3}'),
        ("model.safetensors", b""),
    ],
)
def test_a_damaged_model_is_one_sentence(
    file: str, content: bytes, sound: Folders, marker: Path
) -> None:
    copied(sound)
    (Path("encoder") / file).write_bytes(content)
    use = lambda: float(features(source_of("encoder")).sum())  # noqa: E731
    assert require_harmless(use, None, marker, set()) is not None


def test_weights_that_the_files_lack_are_not_made_up(sound: Folders) -> None:
    copied(sound)
    tensors = load_file("encoder/model.safetensors")
    removed = next(name for name in tensors if "layer.1" in name)
    del tensors[removed]
    save_file(tensors, "encoder/model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match="its files lack 1 weights, such as"):
        features(source_of("encoder"))


# --- runs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(sound: Folders, configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, its cache and a run."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        copied(sound)
        config = configure({"data.demo.limit": 60, **MINE})
        pipeline.embed(config)
        pipeline.train(config, "run")
    return place


MINE = {"encoder": "mine", "embed.mine.model": "encoder", "train.epochs": 1}


@pytest.mark.parametrize("evil", ["paths", "trust", "head", "config"])
@pytest.mark.filterwarnings("ignore::pal.errors.PalWarning")
def test_a_run_of_a_stranger_is_harmless(
    evil: str, trained: Path, configure: Configure, marker: Path
) -> None:
    shutil.copytree(trained, ".", dirs_exist_ok=True, symlinks=True)
    Path("outside").mkdir()
    Path("outside/kept").write_text("kept")
    code(Path("encoder"), marker)
    run, record = Path("runs/run"), RunRecord.read(Path("runs/run"))
    (run / "config.yaml").write_text(f"!!python/object/apply:os.mkdir [{str(marker)!r}]")
    (run / "head.pt").write_bytes(pickle.dumps(Payload(marker)))
    for name in ("predictions.parquet", "metrics.json"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to("../../outside/kept")
    changes: dict[str, dict[str, Any]] = {
        "paths": {"run": "../../outside", "dataset": "../outside"},
        "trust": {"encoder_spec": {**record.encoder_spec, "trust_remote_code": True}},
        "head": {"train": record.train.model_copy(update={"head": "os"})},
        "config": {},
    }
    record.model_copy(update=changes[evil]).write(run)
    config = configure({"data.demo.limit": 60, **MINE})

    def use() -> None:
        pipeline.evaluate(config, ["run"])

    sentence = require_harmless(use, None, marker, {"runs", "cache", "data"})
    assert (sentence is None) == (evil in ("config", "trust"))
    assert Path("outside/kept").read_text() == "kept"
    assert sorted(os.listdir("outside")) == ["kept"]
    require_harmless(
        lambda: RewardModel.from_run(config, "run").score("p", ["r"])[0], None, marker, {"cache"}
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", "../../victim"), ("run", "/etc"), ("encoder", "a/b"), ("encoder", ".."),
        ("cache_fingerprint", "../x"), ("files", {"../../secret": "0" * 64}),
        ("files", {"/etc/passwd": "0" * 64}), ("files", {"..\\secret": "0" * 64}),
    ],
)  # fmt: skip
def test_what_a_record_names_stays_in_its_place(
    trained: Path, field: str, value: object, tmp_path: Path
) -> None:
    record = RunRecord.read(trained / "runs" / "run")
    forged = tmp_path / "forged"
    forged.mkdir()
    record.model_copy(update={field: value}).write(forged)  # sealed, as a forger would
    with pytest.raises(EvaluationError, match=f"does not hold what .* has .{field}"):
        RunRecord.read(forged)
