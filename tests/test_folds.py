"""Cross-fitting: every prompt is tested once, by a head that never saw it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pal import pipeline
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.errors import EvaluationError
from pal.evaluate.crossed import with_prompt_group
from pal.evaluate.folds import Fold

Configure = Callable[..., Config]
FOLDS = 3


@pytest.fixture
def config(configure: Configure) -> Config:
    config = configure({"dataset": "demo", "train.head": "pal-a", "train.epochs": 1})
    pipeline.embed(config)
    return config


def groups(dataset: PreparedDataset, split: str, population: str) -> set[str]:
    return set(with_prompt_group(dataset.pairs(split, population))["prompt_group"])  # type: ignore[arg-type]


def test_no_prompt_is_trained_on_or_validated_on_and_tested(config: Config) -> None:
    pipeline.prepare(config)
    dataset = PreparedDataset.open(Path("data/demo"))
    tested: list[str] = []
    for number in range(FOLDS):
        fold = Fold.cut(dataset, number, FOLDS)
        test = groups(fold, "test", "seen") | groups(fold, "test", "unseen")
        assert not test & groups(fold, "train", "seen")
        assert not test & groups(fold, "val", "seen")
        assert not groups(fold, "val", "seen") & groups(fold, "train", "seen")
        assert not groups(fold, "val", "unseen") & groups(fold, "train", "seen")
        assert not test & groups(fold, "train", "unseen"), "a shot is no test"
        tested += fold.pairs("test", "seen")["pair_id"].to_list()
    everything = dataset.pairs(population="seen")["pair_id"].to_list()
    assert sorted(tested) == sorted(everything), "each pair of a seen user is tested once"


def test_folds_are_tested_together_and_kept(config: Config) -> None:
    pipeline.train(config, "one")
    pipeline.train(config.model_copy(update={"seed": 1}), "two")
    done: list[int] = []
    found = pipeline.evaluate(config, ["one", "two"], FOLDS, done.append)
    assert sum(done) == 2 * FOLDS
    metrics = found.runs[0]
    assert metrics.folds == FOLDS
    assert metrics.test_seen is not None
    dataset = PreparedDataset.open(Path("data/demo"))
    assert metrics.test_seen.n_pairs == len(dataset.pairs(population="seen"))
    assert metrics.test_unseen["0"].n_users == 4
    assert {row.cell for row in found.comparisons} == {"test_seen", "test_unseen_0"}
    head = Path(f"runs/one/folds/of-{FOLDS}/1/head.safetensors")
    was = head.stat().st_mtime_ns
    assert pipeline.evaluate(config, ["one", "two"], FOLDS) == found
    assert head.stat().st_mtime_ns == was, "nothing was trained again"
    rows = pl.read_parquet(head.parents[1] / "predictions.parquet").filter(
        pl.col("split") == "test"
    )
    assert rows.select("pair_id", "user_id").is_unique().all()
    assert pipeline.evaluate(config, ["one"]).runs[0].folds is None, "the run itself is untouched"


def test_too_many_folds_are_one_sentence(config: Config) -> None:
    pipeline.train(config, "one")
    with pytest.raises(EvaluationError, match="--folds 1 is no cross-fitting"):
        pipeline.evaluate(config, ["one"], 1)
    with pytest.raises(EvaluationError, match=r"fold .* of 500 of run one has no test pairs"):
        pipeline.evaluate(config, ["one"], 500)
