"""A feature is made once: what any cache of the same encoder holds is taken over."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pal import pipeline
from pal.cache.donors import Known
from pal.cache.reader import FeatureStore
from pal.cache.removal import removable, remove
from pal.cache.shard import Shard
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.embed.choose import locate_job
from pal.embed.run import EmbedResult

Configure = Callable[..., Config]
Embed = Callable[..., EmbedResult]


def write(path: Path, numbers: range) -> None:
    rows = (
        {"user_id": f"u{n % 8}", "prompt": f"question {n}", "chosen": f"good {n}", "rejected": "no"}
        for n in numbers
    )
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


@pytest.fixture
def embed(configure: Configure) -> Embed:
    """Embed one dataset of so many rows under an encoder of random weights."""

    def embedded(name: str, numbers: range, **options: object) -> EmbedResult:
        write(Path(f"{name}.jsonl"), numbers)
        settings = {f"data.{name}": {"kind": "pairs", "source": f"{name}.jsonl"}, "dataset": name}
        return pipeline.embed(configure({**settings, **options}))

    return embedded


def features(result: EmbedResult) -> dict[bytes, bytes]:
    store = FeatureStore.open(Path(result.dir))
    rows = store.features().numpy()
    return {bytes(name): row.tobytes() for name, row in zip(store.item_ids, rows, strict=True)}


def test_after_a_change_of_the_rows_only_new_items_are_encoded(embed: Embed) -> None:
    first = embed("one", range(100))
    assert first.reused == 0
    before = features(first)
    second = embed("one", range(120))
    assert second.dir != first.dir
    assert second.encoded == second.items_unique - first.items_unique
    assert second.reused == first.items_unique
    found = features(second)
    assert len(found) == second.items_unique
    assert all(found[name] == value for name, value in before.items()), "the same bytes"
    fresh = embed("one", range(120), **{"paths.cache": "elsewhere"})
    assert fresh.reused == 0
    alone = features(fresh)
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        values = (np.frombuffer(part, np.float16).astype(float) for part in (value, found[name]))
        np.testing.assert_allclose(*values, atol=5e-3)


def test_another_dataset_that_shares_items_takes_them_over(embed: Embed) -> None:
    first = embed("one", range(100))
    second = embed("two", range(20, 100))
    assert (second.encoded, second.reused) == (0, second.items_unique)
    third = embed("three", range(90, 110))
    assert 0 < third.encoded < third.items_unique
    assert third.encoded + third.reused == third.items_unique
    assert features(second).items() <= features(first).items()


def test_an_unfinished_cache_is_taken_over_too_but_nothing_damaged(embed: Embed) -> None:
    first = embed("one", range(100), **{"embed.rows_per_shard": 64})
    folder = Path(first.dir)
    (folder / "manifest.json").unlink()
    shards = sorted((folder / "shards").glob("*.parquet"))
    damaged = bytearray(shards[0].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shards[0].write_bytes(bytes(damaged))
    second = embed("two", range(100))
    assert second.encoded == 64
    assert second.reused == second.items_unique - 64


def test_another_specification_takes_nothing_over(embed: Embed) -> None:
    embed("one", range(100))
    other = embed("two", range(100), **{"embed.tiny-text.max_length": 7})
    assert other.reused == 0


def test_what_is_taken_over_does_not_depend_on_where_it_was(embed: Embed) -> None:
    first = embed("one", range(100))
    second = embed("two", range(100))
    shutil.rmtree(first.dir)
    assert features(second), "a copy, not a reference"


def test_features_that_belong_to_a_dataset_stay_with_it(configure: Configure) -> None:
    small = {"dataset": "simulated", "encoder": "identity", "data.simulated.users": 4}
    pipeline.embed(configure(small))
    other = pipeline.embed(configure({**small, "data.simulated.salt": "other"}))
    assert other.reused == 0


def test_a_cache_that_is_removed_while_it_is_read_is_no_error(
    embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed("one", range(100), **{"embed.rows_per_shard": 64})
    gone = []

    def removed(path: Path) -> Shard:
        found = Shard(path)
        if not gone:
            shutil.rmtree(path.parent.parent)
        gone.append(path)
        return found

    monkeypatch.setattr("pal.cache.donors.Shard", removed)
    second = embed("two", range(100))
    assert len(gone) == 1
    assert (second.encoded, second.reused) == (second.items_unique, 0)


def test_what_other_caches_hold_is_looked_up_once(
    embed: Embed, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed("one", range(100))
    looked, usual = [], Known.of

    def of(*arguments: Any) -> Known:
        looked.append(arguments)
        return usual(*arguments)

    monkeypatch.setattr(Known, "of", of)
    second = embed("two", range(90, 110))
    assert 0 < second.encoded < second.items_unique
    assert len(looked) == 1


def test_a_job_goes_to_another_process_without_what_is_mapped_here(
    embed: Embed, configure: Configure
) -> None:
    first = embed("one", range(100))
    config = configure(
        {"data.one": {"kind": "pairs", "source": "one.jsonl"}, "dataset": "one",
         "paths.cache": "elsewhere"}
    )  # fmt: skip
    shutil.copytree(first.dir, Path("elsewhere") / "other" / Path(first.dir).name)
    job = locate_job(config, PreparedDataset.open(Path("data/one")))
    assert len(job.known) == 1
    there = pickle.loads(pickle.dumps(job))
    assert there.item_ids.tolist() == job.item_ids.tolist()
    assert len(there.known) == 1


def test_links_of_others_stay_when_a_cache_is_removed(embed: Embed) -> None:
    folder = Path(embed("one", range(100)).dir)
    own, other = folder.parent / "tiny-text", folder.parent / "elsewhere"
    other.symlink_to("/a/disk/that/is/not/here")
    assert own.is_symlink()
    remove(removable(folder.parent.parent, [folder], lambda fingerprint: []))
    assert not own.is_symlink()
    assert other.is_symlink()
