"""Which arithmetic features are computed in, where ``compute_dtype: auto`` leaves it open."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pal import pipeline, probe
from pal.cache.reader import FeatureStore
from pal.cache.spec import encoder_of
from pal.config import Config, EncoderConfig
from pal.dataset import PreparedDataset
from pal.embed import fidelity
from pal.embed.arithmetic import as_made, settled
from pal.embed.choose import locate_cache, locate_job
from pal.embed.encoder import locate
from pal.embed.encoders.random_models import saved
from pal.embed.encoders.text import TextEncoder
from pal.embed.run import EmbedResult
from pal.evaluate.predict import load_run
from pal.items import Text
from pal.probe import gain
from pal.reward import RewardModel

Embed = Callable[..., EmbedResult]
Configure = Callable[..., Config]
AUTO = "embed.mine.compute_dtype"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a small model, as anybody's."""
    folder = tmp_path_factory.mktemp("model") / "bert"
    with saved("bert") as there:
        shutil.copytree(there, folder)
    return folder


@pytest.fixture
def settings(configure: Configure, model: Path) -> Callable[..., Config]:
    def with_own(options: dict[str, object] | None = None) -> Config:
        mine = {"encoder": "mine", "embed.mine.model": str(model), "embed.mine.max_length": 32}
        return configure({**mine, AUTO: "auto", "data.demo.limit": 60, **(options or {})})

    return with_own


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a function that makes this machine one that is fast in bfloat16, or none."""

    def is_fast(yes: bool = True) -> None:
        monkeypatch.setattr("pal.probe.gain", lambda device: 4.0 if yes else 0.5)

    monkeypatch.setattr(fidelity, "FAITHFUL", 0.99)  # small random models round more than others
    is_fast()
    return is_fast


def test_a_machine_is_asked_once_what_it_is_fast_at(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"float32": 3.0, "bfloat16": 1.0}
    monkeypatch.setattr(probe, "_seconds", lambda dtype, device: seconds[dtype])
    monkeypatch.setattr(probe, "gain", gain)
    gain.cache_clear()
    assert probe.quickest("cpu") == "bfloat16"
    seconds["bfloat16"] = 2.9
    assert probe.quickest("cpu") == "bfloat16"  # remembered
    gain.cache_clear()
    assert probe.quickest("cpu") == "float32"
    gain.cache_clear()


def test_the_arithmetic_that_was_taken_stands_in_the_key(
    settings: Callable[..., Config], fast: Callable[..., None]
) -> None:
    told: list[str] = []
    result = pipeline.embed(settings(), tell=told.append)
    assert any("computes in bfloat16, which this machine is fast at" in line for line in told)
    spec = FeatureStore.open(Path(result.dir)).manifest.spec
    assert encoder_of(spec)["compute_dtype"] == result.compute_dtype == "bfloat16"
    named = pipeline.embed(settings({AUTO: "bfloat16"}))
    assert (named.dir, named.encoded) == (result.dir, 0)
    exact = pipeline.embed(settings({AUTO: "float32"}))
    assert exact.dir != result.dir
    assert exact.reused == 0, "features of another arithmetic are other features"


@pytest.mark.parametrize("made", ["float32", "bfloat16"])
@pytest.mark.parametrize("machine_is_fast", [False, True])
def test_no_machine_encodes_again_what_another_has(
    settings: Callable[..., Config], fast: Callable[..., None], made: str, machine_is_fast: bool
) -> None:
    first = pipeline.embed(settings({AUTO: made}))
    fast(machine_is_fast)
    config = settings()
    told: list[str] = []
    again = pipeline.embed(config, tell=told.append)
    assert any(f"computes in {made}, as the cache that is complete here" in one for one in told)
    assert (again.dir, again.encoded, again.compute_dtype) == (first.dir, 0, made)
    assert pipeline.forecast(config).dirs == [first.dir]
    pipeline.self_test(config)
    wider = pipeline.embed(settings({"data.demo.limit": 70}))
    assert wider.compute_dtype == made, "most of it is known"
    assert wider.reused >= first.items_unique


def test_of_two_complete_caches_the_one_that_the_machine_would_make_is_read(
    settings: Callable[..., Config], fast: Callable[..., None]
) -> None:
    for dtype in ("float32", "bfloat16"):
        pipeline.embed(settings({AUTO: dtype}))
    assert pipeline.embed(settings()).compute_dtype == "bfloat16"
    fast(False)
    assert pipeline.embed(settings()).compute_dtype == "float32"


def test_who_begins_a_cache_decides_for_all_who_come_later(
    settings: Callable[..., Config], fast: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when members of a job array run on machines of two kinds."""
    config = settings({"embed.rows_per_shard": 32})
    with monkeypatch.context() as patch:
        patch.setattr("pal.embed.run._encode", lambda *given: iter(()))
        with pytest.raises(Exception, match="shards"):
            pipeline.embed(config)
    fast(False)
    told: list[str] = []
    result = pipeline.embed(config, tell=told.append)
    assert result.compute_dtype == "bfloat16"
    assert any("as the cache that was begun here" in line for line in told)


def test_a_model_whose_features_bfloat16_changes_stays_in_float32(
    settings: Callable[..., Config], fast: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "FAITHFUL", 1.1)
    told: list[str] = []
    result = pipeline.embed(settings(), tell=told.append)
    assert result.compute_dtype == "float32"
    assert any("bfloat16 keeps its features only to a cosine of 0.99" in line for line in told)
    monkeypatch.setattr(fidelity, "learn_fidelity", None)  # it is remembered
    shutil.rmtree(result.dir)
    assert pipeline.forecast(settings()).compute_dtype == "float32"


def test_a_model_that_cannot_compute_in_bfloat16_stays_in_float32(
    settings: Callable[..., Config], fast: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TextEncoder.load

    def refusing(source: object, *given: object) -> TextEncoder:
        if source.config.compute_dtype == "bfloat16":  # type: ignore[attr-defined]
            raise RuntimeError("Unsupported dtype BFloat16")
        return original(source, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(TextEncoder, "load", refusing)
    told: list[str] = []
    assert pipeline.embed(settings(), tell=told.append).compute_dtype == "float32"
    assert any("cannot compute in bfloat16 (RuntimeError: Unsupported" in line for line in told)


def test_encoders_without_a_choice_say_so(
    configure: Configure, fast: Callable[..., None], model: Path
) -> None:
    for given in (
        EncoderConfig(kind="identity", compute_dtype="auto"),
        EncoderConfig(kind="open-clip", model="random:open-clip", compute_dtype="auto"),
        EncoderConfig(kind="hf-image", model="facebook/dinov2-large", compute_dtype="auto"),
        EncoderConfig(model="random:bert", compute_dtype="auto"),
    ):
        assert settled(given).compute_dtype == "float32"
    assert (
        settled(EncoderConfig(model=str(model), compute_dtype="auto")).compute_dtype == "bfloat16"
    )
    told: list[str] = []
    pipeline.embed(configure({"embed.tiny-text.compute_dtype": "auto"}), tell=told.append)
    assert any("tiny-text computes in float32, the one that auto means" in line for line in told)


def test_a_run_is_scored_in_the_arithmetic_of_its_cache(
    settings: Callable[..., Config], fast: Callable[..., None]
) -> None:
    config = settings({"train.head": "bt-linear"})
    pipeline.embed(config)
    pipeline.train(config, "one")
    fast(False)
    model = RewardModel.from_run(config, "one")
    assert model.encoder.source.config.compute_dtype == "bfloat16"
    spec = load_run(config.paths.runs, "one").metadata.encoder_spec
    assert as_made(EncoderConfig(compute_dtype="auto"), spec).compute_dtype == "bfloat16"
    assert as_made(EncoderConfig(compute_dtype="float32"), spec).compute_dtype == "float32"


def test_all_layers_of_a_pass_have_one_arithmetic(
    settings: Callable[..., Config], fast: Callable[..., None]
) -> None:
    pipeline.embed(settings({AUTO: "float32"}))
    config = settings({"embed.layers": [-1, -2]})
    dataset = PreparedDataset.open(config.paths.data / "demo")
    job = locate_job(config, dataset)
    assert {encoder_of(spec)["compute_dtype"] for spec in job.specs} == {job.dtype} == {"float32"}
    assert locate_cache(config, dataset)[2] == job.folders[0]


def test_features_in_bfloat16_are_those_of_float32_rounded(model: Path) -> None:
    texts = ["Yes.", "Nobody agrees about everything, and most people about something."]
    found = []
    for dtype in ("float32", "bfloat16"):
        source = locate("mine", EncoderConfig(model=str(model), compute_dtype=dtype), None)
        encoder = TextEncoder.load(source, "cpu", 1024)
        inputs = encoder.prepare([Text(text) for text in texts])
        (tap,) = encoder.encode(encoder.load_batch(inputs, np.arange(2)))
        found.append(tap)
    assert not torch.equal(*found)
    assert torch.nn.functional.cosine_similarity(*found).min() > 0.99
