"""Metrics with known values, and runs that are judged only on the data they belong to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import polars as pl
import pytest
import torch

from pal import pipeline
from pal.cache.mapped import features_of
from pal.cache.reader import FeatureStore
from pal.config import Config
from pal.dataset import ids_of
from pal.errors import EvaluationError, PalWarning, TrainError
from pal.evaluate import adaptation, hull
from pal.evaluate.compare import compare
from pal.evaluate.crossed import Crossing
from pal.evaluate.free import FreeBaseline, free_baselines
from pal.evaluate.hull import OutsideUser
from pal.evaluate.inputs import inputs_of_run
from pal.evaluate.metrics import (
    brier,
    calibration_error,
    credit,
    negative_log_likelihoods,
    sigmoid,
    summarize,
)  # fmt: skip
from pal.evaluate.predict import load_run, pairs_of, predict
from pal.evaluate.records import Cell, Metrics
from pal.evaluate.report import as_markdown

Configure = Callable[..., Config]


def test_metrics_at_known_values() -> None:
    margin, label = np.array([2.0, -1.0, 0.0, 3.0]), np.array([1.0, 1.0, 0.0, 0.5])
    assert credit(margin, label).tolist() == [1.0, 0.0, 0.5, 0.5]
    zeros = np.zeros(4)
    assert negative_log_likelihoods(zeros, label).mean() == pytest.approx(np.log(2))
    assert brier(zeros, np.array([1.0, 0.0, 1.0, 0.0])) == 0.25
    p = 1 / (1 + np.exp(-2.0))
    assert negative_log_likelihoods(margin[:1], label[:1]) == pytest.approx(-np.log(p))
    assert np.isfinite(negative_log_likelihoods(np.array([1e4, -1e4]), np.array([0.0, 1.0]))).all()
    assert sigmoid(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]


def test_users_count_equally_in_the_macro_mean() -> None:
    values, users = np.array([1.0, 1.0, 1.0, 0.0]), np.array([7, 7, 7, 9])
    crossing = Crossing.of_names(users, np.arange(4))
    assert crossing.user_means(values).tolist() == [1.0, 0.0]
    assert crossing.macro(values).value == 0.5
    assert crossing.micro(values).value == 0.75


def test_a_calibrated_model_has_a_small_error_and_an_overconfident_one_a_large() -> None:
    generator = np.random.default_rng(0)
    margin = 1.2 * generator.standard_normal(50_000)
    label = (generator.random(50_000) < sigmoid(margin)).astype(float)
    assert calibration_error(margin, label, 15) < 0.015
    assert calibration_error(5 * margin, label, 15) > 0.1


@pytest.mark.parametrize(("of_users", "of_prompts"), [(0.5, 0.5), (0.5, 0.0), (0.0, 0.5)])
def test_crossed_intervals_hold_the_truth_at_their_rate(of_users: float, of_prompts: float) -> None:
    """The campaign is benchmarks/coverage.py; intervals over users alone hold 0.4 here."""
    generator = np.random.default_rng(0)
    users, prompts = np.divmod(np.arange(60 * 15), 15)
    crossing, held = Crossing(users, prompts), 0
    for _ in range(400):
        own, shared = of_users * generator.normal(size=60), of_prompts * generator.normal(size=15)
        found = crossing.macro(own[users] + shared[prompts] + generator.normal(size=900)).ci95
        assert found is not None
        held += found[0] <= 0.0 <= found[1]
    assert held / 400 >= 0.92


def test_a_crossed_error_is_that_of_its_larger_side() -> None:
    users, prompts = np.divmod(np.arange(40), 4)
    by_prompt = Crossing(users, prompts).macro(prompts.astype(float))
    assert (by_prompt.value, by_prompt.side, by_prompt.freedom) == (1.5, "prompts", 3)
    assert by_prompt.error == pytest.approx(np.std([0, 1, 2, 3], ddof=1) / 2)
    by_user = Crossing(users, prompts).macro(users.astype(float))
    assert by_user.side == "users"
    assert by_user.error == pytest.approx(np.std(np.arange(10), ddof=1) / np.sqrt(10))
    assert by_user.p < 0.02
    assert Crossing(np.zeros(40, np.int64), prompts).macro(prompts.astype(float)).ci95 is None


def test_swapping_items_changes_no_metric() -> None:
    generator = np.random.default_rng(1)
    margin, users = generator.standard_normal(500), generator.integers(0, 20, 500)
    label = generator.choice([0.0, 0.5, 1.0], 500)
    swap = generator.random(500) < 0.5
    crossing = Crossing.of_names(users, generator.integers(0, 30, 500))
    other = summarize(
        np.where(swap, -margin, margin), np.where(swap, 1 - label, label), crossing, 15
    )
    for key, value in summarize(margin, label, crossing, 15).model_dump().items():
        assert getattr(other, key) == pytest.approx(value)


def trained(configure: Configure, **options: object) -> Config:
    config = configure(
        {"dataset": "simulated", "encoder": "identity", "train.head": "pal-a", **options}
    )
    pipeline.embed(config)
    return config


def test_metrics_are_functions_of_the_predictions(configure: Configure) -> None:
    config = trained(configure)
    metrics = pipeline.train(config, "run")
    assert Metrics.read(Path("runs/run")) == metrics
    assert metrics.test_seen is not None
    frame = pl.read_parquet("runs/run/predictions.parquet")
    told = [
        "pair_id",
        "user_id",
        "prompt_group",
        "other_group",
        "split",
        "population",
        "margin",
        "p",
        "label",
    ]
    assert frame.columns == told
    assert set(frame.select("split", "population").unique().rows()) == {
        ("val", "seen"),
        ("test", "seen"),
        ("test", "unseen"),
    }
    seen = frame.filter((pl.col("split") == "test") & (pl.col("population") == "seen"))
    right = seen.with_columns(right=(pl.col("margin") > 0) == (pl.col("label") == 1.0))
    assert metrics.test_seen.accuracy == pytest.approx(right["right"].mean())
    per_user = right.group_by("user_id").agg(pl.col("right").mean())["right"]
    assert metrics.test_seen.macro_accuracy == pytest.approx(per_user.mean())
    assert metrics.test_seen.n_users == 6
    assert metrics.test_seen.macro_ci95 is not None
    low, high = metrics.test_seen.macro_ci95
    assert low <= metrics.test_seen.macro_accuracy <= high
    assert metrics.test_unseen["0"].n_users == 4


def test_evaluating_again_gives_the_same_metrics(configure: Configure) -> None:
    config = trained(configure)
    metrics = pipeline.train(config, "run")
    assert pipeline.evaluate(config, ["run"]).runs == [metrics]


def test_people_of_the_table_and_strangers_may_stand_in_one_table(configure: Configure) -> None:
    config = trained(configure)
    pipeline.train(config, "run")
    run = load_run(config.paths.runs, "run")
    dataset, store = inputs_of_run(config.paths, run.metadata)
    parts = [
        pairs_of(dataset, store, run.users, "test", population) for population in ("seen", "unseen")
    ]
    together = pl.concat(parts).sort("pair_id")
    features = features_of(store)
    apart = pl.concat([predict(run, part, store, features) for part in parts]).sort("pair_id")
    found = predict(run, together, store, features)
    assert found["user_id"].to_list() == apart["user_id"].to_list()
    assert len(found.filter(pl.col("population") == "seen")) not in (0, len(found))
    np.testing.assert_allclose(found["margin"], apart["margin"], rtol=1e-5, atol=1e-6)


def test_a_run_is_not_judged_on_another_split(configure: Configure) -> None:
    config = trained(configure)
    pipeline.train(config, "run")
    trained(configure, **{"data.simulated.salt": "other"})
    with pytest.raises(EvaluationError, match="run run was trained on simulated with split digest"):
        pipeline.evaluate(configure({"data.simulated.salt": "other"}), ["run"])


def test_a_missing_or_damaged_run_is_one_sentence(configure: Configure) -> None:
    config = trained(configure)
    with pytest.raises(
        EvaluationError, match=r"runs/absent holds no trained head; run: pal train --run absent"
    ):
        pipeline.evaluate(config, ["absent"])
    pipeline.train(config, "run")
    Path("runs/run/head.safetensors").write_bytes(b"12345678")
    with pytest.raises(EvaluationError, match=r"runs/run/head.safetensors is damaged.*train --run"):
        pipeline.evaluate(config, ["run"])
    with pytest.raises(EvaluationError, match="cannot be the name of a run"):
        pipeline.evaluate(config, ["../run"])


def test_metrics_have_the_keys_of_the_contract_and_no_number_that_is_none() -> None:
    cell = summarize(np.zeros(4), np.full(4, 0.5), Crossing(np.arange(4), np.arange(4)), 15)
    assert cell.auc is None, "of ties alone there is no such area"
    plain = cell.model_dump(mode="json")
    assert {"n_pairs", "n_users", "accuracy", "macro_accuracy", "macro_ci95", "nll"} <= set(plain)
    assert not {"ties", "repeats", "n_controversial"} & set(plain)
    empty = cell.model_copy(update={"n_controversial": 0, "controversial_accuracy": None})
    assert empty.model_dump(mode="json")["controversial_accuracy"] is None
    assert Cell.model_validate_json(json.dumps(plain, allow_nan=False)) == cell
    baseline = FreeBaseline(baseline="first", test_seen=cell, test_unseen=None)
    assert baseline.model_dump(mode="json")["test_unseen"] == {}
    assert FreeBaseline.model_validate(baseline.model_dump(mode="json")) == baseline


def test_numbers_of_another_head_are_never_read(configure: Configure) -> None:
    config = trained(configure)
    for run, seed in (("one", 0), ("two", 1), ("three", 2)):
        pipeline.train(config.model_copy(update={"seed": seed}), run)
    runs = config.paths.runs
    assert len(compare(config.evaluate, runs, ["one", "two", "three"])) == 4
    for name in ("metrics.json", "predictions.parquet"):
        shutil.copy(runs / "one" / name, runs / "two" / name)
    with pytest.raises(
        EvaluationError, match=r"two/predictions.parquet .* run: pal evaluate --run two"
    ):
        compare(config.evaluate, runs, ["one", "two"])
    (runs / "three" / "predictions.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        EvaluationError, match=r"three/predictions.parquet is damaged.*evaluate --run th"
    ):
        compare(config.evaluate, runs, ["one", "three"])
    with pytest.warns(PalWarning, match=r"two/metrics.json is missing, damaged or of another head"):
        found = pipeline.evaluate(config, ["two", "three"])
    assert [metrics.run for metrics in found.runs] == ["two", "three"]
    assert compare(config.evaluate, runs, ["two", "three"])


def test_cells_of_new_users_stay_while_the_head_does(configure: Configure) -> None:
    config = trained(configure, **{"adapt.shots": (0, 3), "adapt.repeats": 2})
    pipeline.train(config, "run")
    found = pipeline.adapt(config, "run")
    assert set(found.test_unseen) == {"0", "3"}
    again = pipeline.evaluate(config, ["run"]).runs[0]
    assert (again.adapted_by, set(again.test_unseen)) == ("map", {"0", "3"})
    shutil.rmtree("runs/run")
    other = pipeline.train(config.model_copy(update={"seed": 1}), "run")
    assert (other.adapted_by, set(other.test_unseen)) == (None, {"0"})
    assert "adapted_by" not in other.model_dump()


def test_adapting_leaves_the_zero_shot_cell_to_the_evaluation(configure: Configure) -> None:
    """Whatever the method: it is the mean probability, of all new users, with its divisions."""
    config = trained(configure, **{"adapt.shots": (0, 3), "adapt.repeats": 2})
    before = pipeline.train(config, "run").test_unseen["0"]
    for method in ("map", "sgd"):
        settings = config.adapt.model_copy(update={"method": method})
        pipeline.adapt(config.model_copy(update={"adapt": settings}), "run")
        after = Metrics.read(Path("runs/run"))
        assert (after.adapted_by, set(after.test_unseen)) == (method, {"0", "3"})
        cell = after.test_unseen["0"]
        assert cell == before.model_copy(update={"harmed_vs_0": 0.0, "repeats": 1})
        assert pipeline.evaluate(config, ["run"]).runs[0] == after


@pytest.mark.parametrize("other", [{"ties": "pickscore"}, {"ece_bins": 5}])
def test_cells_judged_by_other_settings_never_stand_in_one_row(
    configure: Configure, other: dict[str, object]
) -> None:
    config = trained(configure, **{"adapt.shots": (0, 3), "adapt.repeats": 2})
    pipeline.train(config, "run")
    pipeline.adapt(config, "run")

    def judged_by(settings: dict[str, object]) -> Config:
        changed = config.evaluate.model_copy(update=settings)
        return config.model_copy(update={"evaluate": changed})

    kept = pipeline.evaluate(judged_by({"votes": 3}), ["run"]).runs[0]
    assert set(kept.test_unseen) == {"0", "3"}, "those cells say nothing of divisions"
    with pytest.warns(PalWarning, match=r"was not judged by .*so cells of adaptation .* are lost"):
        apart = pipeline.evaluate(judged_by(other), ["run"]).runs[0]
    assert (apart.adapted_by, set(apart.test_unseen)) == (None, {"0"})
    assert pipeline.evaluate(config, ["run"]).runs[0].adapted_by is None, "nothing is left to lose"


def test_an_adaptation_that_no_file_keeps_says_so(configure: Configure) -> None:
    config = trained(configure, **{"adapt.shots": (0, 3), "adapt.repeats": 2})
    pipeline.train(config, "run")
    file = Path("runs/run/metrics.json")
    of_half = file.read_bytes()
    changed = config.evaluate.model_copy(update={"ties": "pickscore"})
    with pytest.warns(PalWarning, match=r"metrics.json was not judged by evaluate.* = 'pickscore'"):
        pipeline.adapt(config.model_copy(update={"evaluate": changed}), "run")
    assert file.read_bytes() == of_half
    file.unlink()
    with pytest.warns(
        PalWarning, match="does not keep what this.*run pal evaluate --run run, then"
    ):
        assert set(pipeline.adapt(config, "run").test_unseen) == {"0", "3"}
    with pytest.warns(PalWarning, match="that it may have held are lost; run: pal adapt"):
        pipeline.evaluate(config, ["run"])
    pipeline.adapt(config, "run")
    assert set(Metrics.read(Path("runs/run")).test_unseen) == {"0", "3"}


def test_a_grown_run_is_a_run_of_its_own(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trained(configure, **{"train.epochs": 1, "adapt.shots": (0,)})
    pipeline.train(config, "run")
    assert pipeline.adapt(config, "run", grow=1).grown is None
    _, store = inputs_of_run(config.paths, load_run(config.paths.runs, "run").metadata)
    stranger = OutsideUser(user_id="unseen-test-00001", surprise=1.0)
    for module in (hull, adaptation):
        monkeypatch.setattr(module, "outside_users", lambda *_: [stranger])
    first = pipeline.adapt(config, "run", grow=2).grown
    assert first is not None
    assert (first.run, first.k, first.cache_fingerprint) == ("run-grown", 4, store.fingerprint)
    assert load_run(config.paths.runs, "run-grown").metadata.grown_from == "run"
    assert pipeline.adapt(config, "run", grow=2).grown == first
    with pytest.raises(TrainError, match=r"run-grown holds a run with train.k = 4, not 5; remove"):
        pipeline.adapt(config, "run", grow=3)


def test_tables_are_aligned() -> None:
    lines = as_markdown([["a", "long header"], ["longer cell", "1"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_a_reference_reads_the_response_behind_its_prompt(configure: Callable[..., Config]) -> None:
    rows = [
        {"user_id": f"u{n % 3}", "prompt": f"Question {n}?", "chosen": "Yes.", "rejected": "No."}
        for n in range(90)
    ]
    Path("own.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = configure({"dataset": "pairs", "data.pairs.source": "own.jsonl",
                        "data.pairs.grouping": "prompt"})  # fmt: skip
    dataset = pipeline.prepare(config)
    asked: list[np.ndarray] = []

    class RewardModelCache:
        manifest = SimpleNamespace(errors=0)

        def score_weight(self) -> torch.Tensor:
            return torch.ones(1, 1)

        def index(self, ids: np.ndarray) -> np.ndarray:
            asked.append(ids)
            return np.zeros(len(ids), np.int64)

        def gather(self, numbers: np.ndarray) -> torch.Tensor:
            return torch.zeros(len(numbers), 1)

    store = cast(FeatureStore, RewardModelCache())
    found = free_baselines(config.evaluate, [dataset], {"rm": store})
    assert [row.baseline for row in found][-1] == "reference rm"
    behind = dataset.viewed("prompt+response").pairs("test", "seen")
    assert set(ids_of(behind["first_id"]).tolist()) <= set(np.concatenate(asked).tolist())
    plain = dataset.pairs("test", "seen")
    assert not set(ids_of(plain["first_id"]).tolist()) & set(np.concatenate(asked).tolist())
