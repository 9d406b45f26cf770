"""Whatever the settings, a head gives the same numbers where it was trained, evaluated, loaded
again, and exported for one user."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pal import pipeline
from pal.config import Config, load_overrides
from pal.evaluate.inputs import open_dataset
from pal.reward import RewardModel
from pal.reward.export import Choice
from pal.train.build import defaults_of, heads

HEADS = heads()
PLENTY = {"k": [1, 2, 3], "mlp": ["mlp1-relu-dropout0", "mlp2-gelu-dropout5-residual", "identity"],
          "score": ["squared", "distance", "normalised", "angle"],
          "learner": ["f(Pw)", "f(P)w", "Pw"], "weights": ["mixture", "partition", "gumbel"],
          "loss": ["logistic", "hinge"], "view": ["response", "prompt+response"]}  # fmt: skip
"""values of settings that any head which reads them must be able to take"""


@st.composite
def chosen_settings(draw: st.DrawFn) -> dict[str, Any]:
    """Return settings of ``train:`` for any head, of those that it reads."""
    name = draw(st.sampled_from(sorted(HEADS)))
    read = {*defaults_of(HEADS[name]), "loss", "view"} & set(PLENTY)
    values = {key: draw(st.sampled_from(PLENTY[key])) for key in sorted(read)}
    return {"train.head": name, **{f"train.{key}": value for key, value in values.items()}}


@pytest.fixture(scope="module")
def embedded(
    configure: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, Path]:
    folder = tmp_path_factory.mktemp("embedded")
    config = configure(
        {
            "embed.tiny-text.store_dtype": "float32",
            "data.demo.limit": 120,
            "train.epochs": 1,
            **{
                f"paths.{name}": str(folder / name) for name in ("data", "cache", "runs", "exports")
            },
        }
    )
    pipeline.embed(config)
    return config, folder


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chosen=chosen_settings())
@pytest.mark.filterwarnings("ignore::pal.errors.PalWarning")
def test_exported_is_evaluated(embedded: tuple[Config, Path], chosen: dict[str, Any]) -> None:
    config, folder = embedded
    config = load_overrides(config, chosen)
    for name in ("runs", "exports"):
        shutil.rmtree(folder / name, ignore_errors=True)
    pipeline.train(config, "run")
    predicted = pl.read_parquet(folder / "runs/run/predictions.parquet")
    pipeline.evaluate(config, ["run"])
    again = pl.read_parquet(folder / "runs/run/predictions.parquet")
    # reloaded = trained, but for where tensors lie in memory, which decides upon instructions
    assert_frame_equal(predicted, again, rel_tol=1e-5, abs_tol=1e-6)

    dataset = open_dataset(config)
    texts = dict(pl.DataFrame(pl.from_arrow(dataset.items(["item_id", "text"]))).iter_rows())
    names = dataset.pairs(columns=["pair_id", "prompt_id", "first_id", "second_id"])
    user = predicted.filter(pl.col("population") == "seen")["user_id"].sort()[0]
    rows = predicted.filter(pl.col("user_id") == user).join(names, on="pair_id")
    folder_of_export = pipeline.export(config, "run", Choice("user", user=user)).dir
    model = RewardModel.from_pretrained(folder_of_export, device="cpu")
    for row in rows.iter_rows(named=True):
        prompt = texts[row["prompt_id"]]
        sides = [texts[row[f"{side}_id"]].removeprefix(prompt) for side in ("first", "second")]
        first, second = model.score(prompt, sides)
        assert first - second == pytest.approx(row["margin"], abs=2e-5, rel=1e-4)
