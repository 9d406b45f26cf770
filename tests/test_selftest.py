"""What embedding would cost, and whether a cache holds what its model says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pal import pipeline
from pal.cache.reader import FeatureStore
from pal.cache.records import Provenance, Receipt, Statistics
from pal.cache.writer import CacheWriter, EncodedShard
from pal.config import Config
from pal.embed.encoders.random_models import FAMILIES, byte_tokenizer
from pal.embed.encoders.text import TextEncoder
from pal.embed.engines.engine import execute
from pal.embed.run import embed as embed_dataset
from pal.errors import CacheError

Configure = Callable[..., Config]


@pytest.fixture
def reward_model(configure: Configure) -> Config:
    """Save a small Llama with a score head of one label, and return settings that embed with it."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = byte_tokenizer()
    settings = LlamaConfig(
        vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        **FAMILIES["llama"],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForSequenceClassification(settings).save_pretrained("judge")
    tokenizer.save_pretrained("judge")
    spec = {
        "kind": "hf-text",
        "model": "judge",
        "layer": -1,
        "norm": "post",
        "pooling": "last",
        "max_length": 256,
    }
    return configure(
        {"encoder": "judge", **{f"embed.judge.{key}": value for key, value in spec.items()}}
    )


def test_features_times_score_head_are_the_reward_models_own_logits(reward_model: Config) -> None:
    result = pipeline.embed(reward_model)
    store = FeatureStore.open(Path(result.dir))
    weight = store.score_weight()
    assert weight is not None
    assert weight.shape == (1, store.dim)
    tested = pipeline.self_test(reward_model)
    assert tested.items == 16
    assert 0.0 < tested.largest_difference < 4e-3
    assert tested.largest_logit_difference < 1e-2


@pytest.mark.parametrize("encoder", ["tiny-text", "identity"])
def test_the_self_test_finds_a_feature_that_is_not_the_models(
    encoder: str, configure: Configure
) -> None:
    dataset = {"dataset": "simulated"} if encoder == "identity" else {}
    config = configure({"encoder": encoder, **dataset})
    folder = Path(pipeline.embed(config).dir)
    assert pipeline.self_test(config).items == 16
    other = configure({"encoder": encoder, **dataset, "paths.cache": "other"})
    forged = FeatureStore.open(folder)
    swap_features(Path(pipeline.embed(other).dir), forged)
    with pytest.raises(CacheError, match="differs from a live forward pass by"):
        pipeline.self_test(other)


def swap_features(folder: Path, store: FeatureStore) -> None:
    """Write the shards of a cache again with the vectors in reverse order and a right receipt."""
    writer = CacheWriter(folder, store.manifest.spec)
    rows = store.features().view(torch.uint8).numpy()[::-1]
    statistics = Statistics(count=rows.size, sum=0.0, sum_of_squares=1.0, absmax=1.0)
    tasks = writer.plan(store.item_ids, 8192)
    for task in tasks:
        (writer.shards / f"{task.stem}.json").unlink()
        piece = slice(task.start, task.stop)
        count = np.zeros(len(task), np.int32)
        shard = EncodedShard(
            store.item_ids[piece], count, count.astype(bool), np.ascontiguousarray(rows[piece]),
            store.dtype, statistics,
        )  # fmt: skip
        writer.commit(task, shard, {})
    made = Provenance(
        dataset="forged", encoder="forged", revision="none", untrained=True, dedup_ratio=1.0,
        seconds=0.0,
    )  # fmt: skip
    writer.finalize(tasks, made)


def test_the_forecast_loads_nothing_and_knows_what_earlier_caches_tell(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a model was loaded")

    config = configure()
    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "load", refuse)
        planned = pipeline.forecast(config)
    assert (planned.items_unique, planned.items_done, planned.shards) == (600, 0, 2)
    assert planned.items_total > planned.items_unique
    assert (planned.bytes, planned.seconds) == (None, None)
    result = pipeline.embed(config)
    assert result.encoded == 600
    done = pipeline.forecast(config)
    assert (done.items_done, done.seconds) == (600, 0.0)
    larger = pipeline.forecast(configure({"data.demo.limit": 300}))
    stored = sum(path.stat().st_size for path in Path(result.dir).rglob("*.parquet"))
    assert larger.seconds > 0.0
    assert larger.bytes == pytest.approx(stored * larger.items_unique / 600, rel=0.2)
    assert larger.tokens_estimated > 0


def test_a_last_shard_in_which_all_fails_is_a_shard_without_rows(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TextEncoder.encode

    def fail(self: TextEncoder, batch: Any) -> list[torch.Tensor]:
        if failing:
            raise RuntimeError("not today")
        return original(self, batch)

    failing = False
    config = configure({"embed.rows_per_shard": 595, "embed.max_error_rate": 0.01})
    dataset = pipeline.prepare(config)

    def first_only(job: Any, writers: Any, tasks: Any) -> Any:
        nonlocal failing
        for task in tasks:
            failing = task.number > 0
            yield from execute(job, writers, [task])

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "encode", fail)
        patch.setattr("pal.embed.engines.engine.execute", first_only)
        result = embed_dataset(config, dataset)
    assert (result.encoded, result.errors) == (595, 5)
    store = FeatureStore.open(Path(result.dir))
    assert (store.rows, len(store.features())) == (595, 595)
    receipts = [Receipt.read_file(path) for path in Path(result.dir).glob("shards/part-*.json")]
    assert sorted(receipt.rows for receipt in receipts) == [0, 595]
    assert embed_dataset(config, dataset, retry_errors=True).errors == 0
