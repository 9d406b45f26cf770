"""Features that stay in the cache's files give the same heads and numbers as those in memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pal import pipeline
from pal.cache import mapped
from pal.cache.mapped import MappedFeatures, features_of, memory_of
from pal.cache.reader import FeatureStore
from pal.config import Config
from pal.evaluate.inputs import open_inputs
from pal.train.build import heads

Configure = Callable[..., Config]
ROWS = torch.tensor([5, 0, 5, 17])


@pytest.fixture
def config(configure: Configure) -> Config:
    config = configure()
    pipeline.embed(config)
    return config


@pytest.fixture
def store(config: Config) -> FeatureStore:
    return open_inputs(config)[1]


@pytest.fixture
def no_copy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make it a mistake to read a whole cache."""

    def refuse(*given: Any) -> None:
        raise AssertionError("the whole cache was read")

    with monkeypatch.context() as patch:
        patch.setattr(mapped, "MEMORY_SHARE", 0.0)
        patch.setattr(FeatureStore, "features", refuse)
        yield


def test_rows_are_those_of_the_cache(store: FeatureStore) -> None:
    table, all_of_them = MappedFeatures(store), store.features()
    assert torch.equal(table[ROWS], all_of_them[ROWS])
    assert (table.shape, table.dtype) == (all_of_them.shape, all_of_them.dtype)
    assert len(table[ROWS[:0]]) == 0


def test_auto_leaves_large_caches_where_they_are(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = store.rows * store.dim * torch.empty(0, dtype=getattr(torch, store.dtype)).itemsize
    for memory, kind in ((4 * size, torch.Tensor), (3 * size, MappedFeatures)):
        monkeypatch.setattr(mapped, "memory_of", lambda device, memory=memory: memory)
        assert isinstance(features_of(store), kind)
    assert isinstance(features_of(store, "memory"), torch.Tensor)


def test_memory_is_this_machines_or_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 1 << 28 < memory_of("cpu") < 1 << 48
    limit, gone = tmp_path / "memory.max", tmp_path / "gone"
    monkeypatch.setattr(mapped, "LIMITS", (str(gone), str(limit)))
    limit.write_text("max\n")
    machines = memory_of("cpu")
    limit.write_text("1048576\n")
    assert memory_of("cpu") == 1 << 20 < machines


def trained(config: Config, where: str, head: str, **more: Any) -> Path:
    own = {"head": head, "features": where, "epochs": 1, **more}
    train = config.train.model_copy(update=own)
    run = f"{head}-{where}"
    pipeline.train(config.model_copy(update={"train": train}), run, tell=lambda line: None)
    return config.paths.runs / run


@pytest.mark.parametrize(
    "some",
    [
        ["pal-b", "bt-linear", "auto"],
        pytest.param(sorted(heads()), marks=pytest.mark.slow),
    ],
)
def test_heads_are_the_same_to_the_byte(config: Config, some: list[str]) -> None:
    for head in some:
        one, other = (
            (trained(config, where, head) / "head.safetensors").read_bytes()
            for where in ("memory", "mapped")
        )
        assert one == other, head


@pytest.mark.parametrize("own", [{"head": "pal-b", "k": 2}, {"head": "pal-a", "priors": "auto"}])
def test_training_and_evaluation_read_their_rows_alone(
    config: Config, no_copy: None, own: dict[str, Any]
) -> None:
    run = trained(config, "auto", **own).name
    (found,) = pipeline.evaluate(config, [run], tell=lambda line: None).runs
    assert found.test_seen is not None
    (found,) = pipeline.evaluate(config, [run], 2, tell=lambda line: None).runs
    assert found.test_seen is not None


def test_where_features_are_is_no_part_of_a_runs_name(config: Config) -> None:
    there = config.train.model_copy(update={"features": "mapped"})
    moved = config.model_copy(update={"train": there})
    assert pipeline.default_run(moved) == pipeline.default_run(config)


def test_a_cache_that_is_made_anew_leaves_what_is_read_alone(
    config: Config, store: FeatureStore
) -> None:
    wanted = store.features()[ROWS]
    shutil.rmtree(store.folder)
    pipeline.embed(config)
    assert torch.equal(MappedFeatures(store)[ROWS], wanted)
