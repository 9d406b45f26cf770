"""Which arithmetic features are computed in, where ``compute_dtype: auto`` leaves it open."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pal import pipeline, probe
from pal.cache.reader import FeatureStore
from pal.cache.spec import encoder_of
from pal.config import Config, EncoderConfig
from pal.dataset import PreparedDataset
from pal.embed import fidelity
from pal.embed.arithmetic import as_made, settled
from pal.embed.choose import locate_cache, locate_job
from pal.embed.encoder import locate
from pal.embed.encoders import padding
from pal.embed.encoders.random_models import FAMILIES, saved
from pal.embed.encoders.text import TextEncoder
from pal.embed.run import EmbedResult
from pal.evaluate.predict import load_run
from pal.items import Text
from pal.probe import gain
from pal.reward import RewardModel, golden

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
        mine = {"encoder": "mine", "embed.mine.model": str(model), "embed.mine.max_length": 64}
        return configure({**mine, AUTO: "auto", "data.demo.limit": 60, **(options or {})})

    return with_own


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return a function that makes this machine one that multiplies fast in bfloat16, or none."""

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
    assert any("computes in mixed, which this machine is fast at" in line for line in told)
    spec = FeatureStore.open(Path(result.dir)).manifest.spec
    assert encoder_of(spec)["compute_dtype"] == result.compute_dtype == "mixed"
    named = pipeline.embed(settings({AUTO: "mixed"}))
    assert (named.dir, named.encoded) == (result.dir, 0)
    exact = pipeline.embed(settings({AUTO: "float32"}))
    assert exact.dir != result.dir
    assert exact.reused == 0, "features of another arithmetic are other features"


@pytest.mark.parametrize("made", ["float32", "mixed"])
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
    for dtype in ("float32", "mixed"):
        pipeline.embed(settings({AUTO: dtype}))
    assert pipeline.embed(settings()).compute_dtype == "mixed"
    fast(False)
    assert pipeline.embed(settings()).compute_dtype == "float32"


def test_who_begins_a_cache_decides_for_all_who_come_later(
    settings: Callable[..., Config], fast: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when members of a job array run on machines of two kinds."""
    config = settings({"embed.rows_per_shard": 32})
    with monkeypatch.context() as patch:
        patch.setattr("pal.embed.run._encode", lambda *given: iter(()))
        with pytest.raises(Exception, match="is not finished"):
            pipeline.embed(config)
    fast(False)
    told: list[str] = []
    result = pipeline.embed(config, tell=told.append)
    assert result.compute_dtype == "mixed"
    assert any("as the cache that was begun here" in line for line in told)


def test_a_model_whose_features_mixed_changes_stays_in_float32(
    settings: Callable[..., Config], fast: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "FAITHFUL", 1.1)
    told: list[str] = []
    result = pipeline.embed(settings(), tell=told.append)
    assert result.compute_dtype == "float32"
    assert any("mixed keeps its features only to a cosine of" in line for line in told)
    monkeypatch.setattr(fidelity, "learn_fidelity", None)  # it is remembered
    shutil.rmtree(result.dir)
    assert pipeline.forecast(settings()).compute_dtype == "float32"


def test_a_model_that_cannot_compute_in_mixed_stays_in_float32(
    settings: Callable[..., Config], fast: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TextEncoder.load

    def refusing(source: object, *given: object) -> TextEncoder:
        if source.config.compute_dtype == "mixed":  # type: ignore[attr-defined]
            raise RuntimeError("Unsupported dtype BFloat16")
        return original(source, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(TextEncoder, "load", refusing)
    told: list[str] = []
    assert pipeline.embed(settings(), tell=told.append).compute_dtype == "float32"
    assert any("cannot compute in mixed (RuntimeError: Unsupported" in line for line in told)


def test_encoders_without_a_choice_say_so(
    configure: Configure, fast: Callable[..., None], model: Path
) -> None:
    for given in (
        EncoderConfig(kind="identity", compute_dtype="auto"),
        EncoderConfig(kind="open-clip", model="random:open-clip", compute_dtype="auto"),
        EncoderConfig(kind="hf-image", model="facebook/dinov2-large", compute_dtype="auto"),
        EncoderConfig(model="random:bert", compute_dtype="auto"),
        EncoderConfig(model=str(model), quantization="4bit", compute_dtype="auto"),
        EncoderConfig(model=str(model), device_map="auto", compute_dtype="auto"),
    ):
        assert settled(given).compute_dtype == "float32"
    assert settled(EncoderConfig(model=str(model), compute_dtype="auto")).compute_dtype == "mixed"
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
    assert model.encoder.source.config.compute_dtype == "mixed"
    spec = load_run(config.paths.runs, "one").metadata.encoder_spec
    assert as_made(EncoderConfig(compute_dtype="auto"), spec).compute_dtype == "mixed"
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


TEXTS = [Text("Yes."), Text("Nobody agrees about everything, and most people about something.")]


def encoder_in(dtype: str, model: str, **options: object) -> TextEncoder:
    given = {"model": model, "compute_dtype": dtype, **options}
    source = locate("mine", EncoderConfig.model_validate(given), None)
    return TextEncoder.load(source, "cpu", 1024)


def feature_of(encoder: TextEncoder) -> torch.Tensor:
    """Return the features of two texts, each alone: (2, dim)."""
    inputs = encoder.prepare(TEXTS)
    batches = [encoder.load_batch(inputs, np.array([row])) for row in range(2)]
    return torch.cat([encoder.encode(batch)[0] for batch in batches])


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_rounds_products_and_nothing_between_them(family: str) -> None:
    """Of each kind of attention and position; gpt2 has no ``nn.Linear``."""
    exact, rounded, mixed = (
        feature_of(encoder_in(dtype, f"random:{family}"))
        for dtype in ("float32", "bfloat16", "mixed")
    )
    near = torch.nn.functional.cosine_similarity(exact, mixed).min()
    assert not torch.equal(exact, mixed)
    assert near > 0.9999, near
    assert near > torch.nn.functional.cosine_similarity(exact, rounded).min()


def test_mixed_keeps_one_rounded_copy_of_what_it_multiplies(model: Path) -> None:
    encoder = encoder_in("mixed", str(model))
    seen: set[torch.dtype] = set()
    for module in encoder.model.modules():
        if isinstance(module, torch.nn.Linear):
            assert {weight.dtype for weight in module.parameters()} == {torch.bfloat16}
            module.register_forward_hook(lambda module, given, output: seen.add(output.dtype))
        elif isinstance(module, torch.nn.LayerNorm | torch.nn.Embedding):
            assert module.weight.dtype == torch.float32
    normed = encoder.model.encoder.layer[0].output.LayerNorm
    normed.register_forward_hook(lambda module, given, output: seen.add(given[0].dtype))
    feature_of(encoder)
    assert seen == {torch.bfloat16, torch.float32}, "products are rounded, their sum is not"


@pytest.mark.parametrize(
    "other", [{"kind": "hf-clip"}, {"quantization": "8bit"}, {"device_map": "auto"}]
)
def test_mixed_is_refused_where_it_has_no_meaning(other: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="set compute_dtype to float32 or bfloat16"):
        EncoderConfig.model_validate({"model": "any", "compute_dtype": "mixed", **other})


def test_every_arithmetic_has_its_tolerances() -> None:
    named = set(get_args(EncoderConfig.model_fields["compute_dtype"].annotation)) - {"auto"}
    assert named == padding.TOLERANCE.keys() == golden.TOLERANCE.keys()
