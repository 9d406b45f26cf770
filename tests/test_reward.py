"""Live rewards are those of the run's own predictions."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import pytest

from pal import pipeline
from pal.config import Config
from pal.errors import EvaluationError
from pal.reward.score import Scorer


@pytest.mark.parametrize("head", ["pal-a", "pal-b"])
def test_reward_differences_are_the_predicted_margins(configure: Callable[..., Config], head: str) -> None:
    config = configure({"train.head": head, "data.demo.groups": 2, "data.demo.limit": None})
    pipeline.embed(config)
    pipeline.train(config, "run")
    predictions = pl.read_parquet("runs/run/predictions.parquet").sample(12, seed=0)
    dataset = pipeline.open_dataset(config)
    items = dataset.items()
    texts = dict(zip(items.column("item_id").to_pylist(), items.column("text").to_pylist(), strict=True))
    rows = predictions.join(dataset.pairs(columns=["pair_id", "prompt_id", "first_id", "second_id"]), on="pair_id")
    users = [row["user_id"] if row["population"] == "seen" else None for row in rows.iter_rows(named=True)]
    scorer = Scorer(config, "run")
    prompts = [texts[key] for key in rows["prompt_id"]]
    rewards = [scorer.score(prompts, [texts[key] for key in rows[side]], users) for side in ("first_id", "second_id")]
    margins = [first - second for first, second in zip(*rewards, strict=True)]
    assert margins == pytest.approx(rows["margin"].to_list(), abs=5e-3)  # batches differ, storage is float16


def test_strangers_are_scored_as_the_population_with_one_warning(configure: Callable[..., Config]) -> None:
    config = configure({"train.head": "pal-a", "data.demo.groups": 2, "data.demo.limit": None})
    pipeline.embed(config)
    pipeline.train(config, "run")
    scorer = Scorer(config, "run")
    with pytest.warns(UserWarning, match="'nobody' was not trained on"):
        stranger = scorer.score(["p"], ["an item"], ["nobody"])
    assert stranger == scorer.score(["p"], ["an item"], [None]) == scorer.score(["p"], ["an item"], ["nobody"])
    with pytest.raises(EvaluationError, match="text 0 cannot be scored: the text is empty"):
        scorer.score(["p"], [""], [None])


def test_changed_encoder_settings_are_refused(configure: Callable[..., Config]) -> None:
    config = configure()
    pipeline.embed(config)
    pipeline.train(config, "run")
    with pytest.raises(EvaluationError, match="under other settings of encoder tiny-text"):
        Scorer(configure({"embed.tiny-text.pooling": "cls"}), "run")
