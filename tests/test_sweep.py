"""Many heads at once: the same heads that single runs give, whatever is killed on the way."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from pal import pipeline
from pal.cli import app
from pal.config import Config, TrainConfig
from pal.dataset import DatasetCard, PreparedDataset
from pal.errors import ConfigError, PalError, TrainError
from pal.evaluate import cross_fit
from pal.evaluate.folds import Fold
from pal.evaluate.records import Cell
from pal.evaluate.seen import cells_of_seen, predict_seen
from pal.records import write_table
from pal.sweep import fit, stacks
from pal.sweep.fit import World, together, train_alone, width_by_size
from pal.sweep.plan import Candidate, Planner, heads_of_sweep, in_stacks, split_stack
from pal.sweep.record import SweepRow, SweepSummary, open_results, read_results
from pal.sweep.run import Trainers, plan_stacks, train_planned
from pal.train.build import build_head, heads
from pal.train.fit import can_be_stacked
from pal.train.heads.things import Things
from pal.train.pairs import Step
from pal.train.run_record import RunRecord
from pal.train.stack import Stack, widen
from pal.train.stacked_adamw import StackedAdamW

Configure = Callable[..., Config]
TIMES = {"seconds"}


def sweeping(configure: Configure, axes: Mapping[str, Any], **options: Any) -> Config:
    settings = {
        "dataset": "simulated",
        "encoder": "identity",
        "train.head": "pal-a",
        "train.epochs": 3,
    }
    empty = {
        f"sweep.{axis}": value
        for axis, value in {"head": ["pal-a"], "k": [2], "seed": [0], **axes}.items()
    }
    config = configure(settings | empty | options)
    pipeline.embed(config)
    return config


def results(name: str) -> pl.DataFrame:
    return pl.read_parquet(f"sweeps/{name}/results.parquet")


@pytest.mark.parametrize("together", [1, 2, 12])
def test_each_head_is_the_one_that_a_single_run_trains(configure: Configure, together: int) -> None:
    """Tolerance: 1e-3 on metrics; batched products round differently, and Adam carries that on."""
    axes = {"k": [1, 2, 3], "seed": [0, 1], "lr": [1e-3, 3e-3]}
    config = sweeping(configure, axes, **{"sweep.together": together})
    summary = pipeline.sweep(config, "s", report=lambda line: None)
    assert (summary.heads, summary.trained, summary.failed) == (12, 12, 0)
    assert summary.mode == ("loop" if together == 1 else "stacked")
    for row in results("s").iter_rows(named=True):
        train = config.train.model_copy(update={"k": row["k"], "lr": row["lr"]})
        alone = pipeline.train(
            config.model_copy(update={"train": train, "seed": row["seed"]}), row["head_id"]
        )
        assert row["params"] == alone.params
        assert row["best_epoch"] == alone.best_epoch
        for metric in ("accuracy", "macro_accuracy", "nll", "ece"):
            other = getattr(alone.test_seen, metric)
            assert row[f"test_{metric}"] == pytest.approx(other, abs=1e-3)


@pytest.mark.parametrize("sampler", ["grid", "optuna"])
def test_every_head_can_be_swept_in_stacks(configure: Configure, sampler: str) -> None:
    names = sorted(heads())
    options = {
        "sweep.together": 2,
        "train.epochs": 2,
        "sweep.sampler": sampler,
        "sweep.samples": 40,
    }
    if sampler == "optuna":
        pytest.importorskip("optuna")
        names = ["bt-linear", "pal-a"]
    config = sweeping(configure, {"head": names, "seed": [0, 1]}, **options)
    needs_prompt = {"pal-b"} & set(names)  # the dataset has none
    pipeline.sweep(config, "s", report=lambda line: None)
    frame = results("s")
    assert set(frame.filter(pl.col("status") == "failed")["head"]) == needs_prompt
    stackable = {name for name in names if can_be_stacked(TrainConfig(head=name))} - needs_prompt
    alone = set(frame.filter(pl.col("together") == 1)["head"])
    assert not stackable & alone, "none fell back to being trained alone"
    assert set(frame["head"]) == set(names)
    for row in frame.filter(pl.col("status") == "ok", pl.col("seed") == 1).iter_rows(named=True):
        train = config.train.model_copy(update={"head": row["head"]})
        alone = pipeline.train(config.model_copy(update={"train": train, "seed": 1}), row["head"])
        assert alone.test_seen is not None
        assert row["test_nll"] == pytest.approx(alone.test_seen.nll, abs=1e-3), row["head"]


def test_one_step_of_a_stack_is_that_of_torch(configure: Configure) -> None:
    torch.manual_seed(0)
    values = torch.randn(3, 4, 5)
    rates, decays = torch.tensor([1e-3, 1e-2, 1e-1]), torch.tensor([0.0, 0.1, 0.01])
    stacked = {"p": values.clone()}
    ours = StackedAdamW(stacked, {"p": rates.double()}, {"p": decays.double()})
    single = [torch.nn.Parameter(value.clone()) for value in values]
    theirs = [
        torch.optim.AdamW([p], lr=float(r), weight_decay=float(d))
        for p, r, d in zip(single, rates, decays, strict=True)
    ]
    for _ in range(5):
        gradient = torch.randn(3, 4, 5)
        ours.step({"p": gradient})
        for parameter, optimiser, own in zip(single, theirs, gradient, strict=True):
            parameter.grad = own.clone()
            optimiser.step()
    torch.testing.assert_close(stacked["p"], torch.stack([p.detach() for p in single]))


def test_padding_with_prototypes_changes_no_margin_and_never_learns() -> None:
    head = build_head(TrainConfig(head="pal-a", k=2), 8, 5).eval()
    wide = widen(head, 4)
    prompt, first, second, user = (
        None,
        torch.randn(20, 8),
        torch.randn(20, 8),
        torch.randint(0, 5, (20,)),
    )
    torch.testing.assert_close(wide(prompt, first, second, user), head(prompt, first, second, user))
    wide(prompt, first, second, user).sum().backward()
    assert wide.users.logits.grad is not None
    assert not wide.users.logits.grad[:, 2:].any()
    assert not wide.prototypes_KD.grad[2:].any()  # type: ignore[union-attr, index]
    for name, value in widen(wide, 2).state_dict().items():
        assert torch.equal(value, head.state_dict()[name])


@pytest.mark.parametrize("name", ["pal-a", "pal-b"])
def test_a_stack_gives_each_head_its_own_margins(name: str) -> None:
    heads = []
    for seed in range(4):
        torch.manual_seed(seed)
        heads.append(build_head(TrainConfig(head=name, k=3), 8, 5).eval())
    rows = [(*torch.randn(3, 9, 8), torch.randint(0, 5, (9,))) for _ in range(2)]
    batches = [Step(Things.of(*row[:3]), row[3], torch.ones(9)) for row in rows]
    stack = Stack(heads, lanes=2).eval()
    wanted = [head(*rows[number // 2]) for number, head in enumerate(heads)]
    torch.testing.assert_close(stack.margins(batches)[0], torch.stack(wanted))
    torch.testing.assert_close(
        stack.margins(batches[:1])[0], torch.stack([head(*rows[0]) for head in heads])
    )


def test_a_rerun_trains_only_what_is_missing(configure: Configure) -> None:
    config = sweeping(configure, {"k": [1, 2], "seed": [0, 1]}, **{"sweep.together": 4})
    pipeline.sweep(config, "s")
    before = results("s")
    again = pipeline.sweep(config, "s")
    assert (again.trained, again.reused) == (0, 4)
    assert_frame_equal(results("s"), before)
    more = sweeping(configure, {"k": [1, 2, 3], "seed": [0, 1]}, **{"sweep.together": 4})
    grown = pipeline.sweep(more, "s")
    assert (grown.trained, grown.reused) == (2, 4)


def test_a_choice_by_folds_brings_no_test_of_an_earlier_sweep_along(configure: Configure) -> None:
    for folds in (None, 2):
        pipeline.sweep(sweeping(configure, {}, **{"sweep.folds": folds}), "s")
        assert Path("runs/s-best/head.safetensors").is_file()
        assert Path("runs/s-best/metrics.json").is_file() == (folds is None)
        assert Path("runs/s-best/predictions.parquet").is_file() == (folds is None)


def test_a_part_of_a_planned_stack_is_trained_by_its_own_seeds(configure: Configure) -> None:
    """Planned with three heads of two seeds and killed; then one of the first seed is asked for,
    and all of the second."""
    axes = {"seed": [0, 1], "lr": [1e-3, 2e-3, 3e-3]}
    config = sweeping(configure, axes, **{"sweep.together": 6})
    every, folder = list(Planner(config).grid()), Path("sweeps/s")
    with Trainers(config, folder, "cpu", lambda heads: None, lambda line: None) as trainers:
        assert len(plan_stacks(every, trainers)) == 1
        some = [one for one in every if one.config.seed == 1 or one.config.train.lr == 1e-3]
        train_planned(some, trainers)
    world, rows = World.of(every[0], "cpu"), read_results(folder)
    for one in some:
        assert rows[one.id].together == (3 if one.config.seed else 1), "none fell back"
        (alone,) = train_alone(world, one, "alone").trained
        cells = cells_of_seen(config.evaluate, predict_seen(alone, world.seen[0]))
        found = rows[one.id].val
        assert found is not None
        assert found.nll == pytest.approx(cells["val"].nll, abs=1e-4)
    with pytest.raises(AssertionError, match="not as many heads of every seed"):
        together(world, some)


def test_rows_of_another_rule_for_ties_are_other_rows(configure: Configure) -> None:
    config = sweeping(configure, {})

    def identity(**settings: Any) -> str:
        evaluate = config.evaluate.model_copy(update=settings)
        (one,) = Planner(config.model_copy(update={"evaluate": evaluate})).grid()
        return one.id

    assert len({identity(), identity(ties="drop"), identity(ties="pickscore")}) == 3
    assert identity(votes=9) == identity(), "which no row is made by"


def test_the_same_best_head_again_keeps_its_folds(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fit, "SHOTS", (0,))
    config = sweeping(configure, {})
    pipeline.sweep(config, "s", report=lambda line: None)
    pipeline.evaluate(config, ["s-best"], 2)
    pipeline.sweep(config, "s", report=lambda line: None)
    assert Path("runs/s-best/folds/of-2/metrics.json").is_file()
    pipeline.sweep(
        config.model_copy(
            update={"seed": 5, "sweep": config.sweep.model_copy(update={"seed": (5,)})}
        ),
        "s",
        report=lambda line: None,
    )
    assert not Path("runs/s-best/folds").exists(), "the best head is another one"


@pytest.mark.parametrize("folds", [None, 2])
def test_the_same_best_head_again_keeps_what_was_found_by_it(
    configure: Configure, folds: int | None
) -> None:
    config = sweeping(configure, {}, **{"sweep.folds": folds})
    first = pipeline.sweep(config, "s", report=lambda line: None)
    pipeline.evaluate(config, ["s-best"])
    pipeline.adapt(config, "s-best")
    run = Path("runs/s-best")
    before = (run / "metrics.json").read_bytes()
    for lost in (None, Path("sweeps/s/best/head.safetensors")):
        if lost is not None:
            lost.write_bytes(lost.read_bytes()[:-30])
        again = pipeline.sweep(config, "s", report=lambda line: None)
        assert (again.trained, again.best) == (0, first.best)
        assert (run / "metrics.json").read_bytes() == before
        assert {"1", "5"} <= json.loads(before)["test_unseen"].keys()
    assert RunRecord.read(Path("sweeps/s/best")).seal == RunRecord.read(run).seal
    (run / "head.safetensors").write_bytes(b"")
    pipeline.sweep(config, "s", report=lambda line: None)
    assert pipeline.evaluate(config, ["s-best"]).runs[0].test_seen is not None, "mended"


def test_a_head_that_folds_chose_keeps_no_evaluation_by_what_chose_it(
    configure: Configure,
) -> None:
    """Whatever came between: here a sweep of which no head succeeded."""
    evaluation = [Path("runs/s-best/metrics.json"), Path("sweeps/s/best/metrics.json")]
    for folds, is_evaluated in ((None, True), (500, None), (2, False)):
        config = sweeping(configure, {}, **{"sweep.folds": folds})
        pipeline.sweep(config, "s", report=lambda line: None)
        if is_evaluated is not None:
            assert [path.is_file() for path in evaluation] == [is_evaluated] * 2


def test_heads_of_earlier_settings_are_not_taken_for_further_seeds(configure: Configure) -> None:
    heads_of_1 = sweeping(configure, {}, **{"train.epochs": 1})
    pipeline.sweep(heads_of_1, "s")
    summary = pipeline.sweep(sweeping(configure, {}), "s")
    assert len(results("s")) == 2
    (row,) = pl.read_csv("sweeps/s/table.csv").to_dicts()
    assert row["seeds"] == 1
    assert summary.best is not None
    assert row["validation, by user"].startswith(f"{summary.best.val_macro_accuracy:.3f} ")


def test_seeds_meet_in_the_table_whatever_axes_they_were_first_asked_by(
    configure: Configure,
) -> None:
    """One seed, then further ones with a further axis, of which the first seed has the default."""
    pipeline.sweep(sweeping(configure, {"k": [1]}), "s")
    decay = configure({}).train.weight_decay
    axes = {"k": [1], "seed": [0, 1], "weight_decay": [decay, 0.1]}
    summary = pipeline.sweep(sweeping(configure, axes), "s")
    assert (summary.trained, summary.reused) == (3, 1)
    rows = pl.read_csv("sweeps/s/table.csv").sort("weight_decay")
    assert rows.select("weight_decay", "seeds").rows() == [(decay, 2), (0.1, 2)]
    assert results("s")["weight_decay"].null_count() == 0
    pipeline.sweep(sweeping(configure, {"k": [1], "seed": [0, 1]}), "s")
    (row,) = pl.read_csv("sweeps/s/table.csv").to_dicts()
    assert row["seeds"] == 2


def test_the_best_by_validation_is_an_ordinary_run(configure: Configure) -> None:
    config = sweeping(configure, {"k": [1, 2, 3], "lr": [1e-4, 3e-3]})
    summary = pipeline.sweep(config, "s")
    best = summary.best
    assert best is not None
    assert SweepSummary.read(Path("sweeps/s")) == summary
    frame = results("s")
    assert best.val_macro_accuracy == frame["val_macro_accuracy"].max()
    (metrics,) = pipeline.evaluate(config, ["s-best"]).runs
    row = frame.filter(pl.col("head_id") == best.head_id).to_dicts()[0]
    assert metrics.test_seen is not None
    assert metrics.test_seen.macro_accuracy == pytest.approx(row["test_macro_accuracy"])
    evaluated = {"metrics.json", "predictions.parquet"}
    assert {p.name for p in Path("runs/s-best").iterdir()} == evaluated | {
        p.name for p in Path("sweeps/s/best").iterdir()
    }
    assert Path("sweeps/s/accuracy_by_k.png").stat().st_size > 1000


def test_a_failing_head_is_a_row_and_is_tried_again(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pal.train import data as data_module

    original = data_module.build_head

    def fail_for_three(settings: TrainConfig, dim: int, users: int) -> Any:
        if settings.k == 3:
            raise RuntimeError("three is too many")
        return original(settings, dim, users)

    config = sweeping(configure, {"k": [1, 2, 3]}, **{"sweep.together": 3})
    with monkeypatch.context() as patch:
        patch.setattr(data_module, "build_head", fail_for_three)
        assert pipeline.sweep(config, "s").failed == 1
        failed = results("s").filter(pl.col("status") == "failed").to_dicts()
        assert [(row["k"], row["error"]) for row in failed] == [
            (3, "RuntimeError: three is too many")
        ]
    assert pipeline.sweep(config, "s").failed == 0
    assert set(results("s")["status"]) == {"ok"}


def test_a_sweep_whose_heads_all_fail_says_why_and_leaves_nothing_that_looks_new(
    configure: Configure,
) -> None:
    config = sweeping(configure, {"k": [1, 2]})
    pipeline.sweep(config, "s")
    settings = config.model_dump(mode="json")
    Path("few.yaml").write_text(json.dumps(settings))
    command = ["sweep", "--name", "s", "--folds", "500", "--config", "few.yaml"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "2 heads, 0 trained now" in done.stdout
    (why,) = [line for line in done.stdout.splitlines() if line.startswith("  2 failed: ")]
    assert "too few prompts for sweep.folds = 500; use fewer" in why
    assert "runs/s-best is the best head of an earlier sweep" in done.stderr
    assert not Path("sweeps/s/accuracy_by_k.png").exists()
    assert not Path("sweeps/s/best").exists()
    assert Path("runs/s-best/head.json").exists()
    told = CliRunner().invoke(app, [*command, "--json"])
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    assert (found["trained"], found["reused"], found["failed"]) == (0, 0, 2)
    assert list(found["why_failed"].values()) == [2]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_width_that_cannot_be_trained_is_not_taken(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    original = fit.step_seconds

    def fail_if_wide(world: World, stack: Sequence[Candidate]) -> float:
        if len(stack) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.\nMuch more text")
        return original(world, stack)

    monkeypatch.setattr(fit, "step_seconds", fail_if_wide)
    told: list[str] = []
    config = sweeping(configure, {"k": [1, 2, 3], "seed": [0, 1]})
    summary = pipeline.sweep(config, "s", report=told.append)
    assert (summary.trained, summary.failed) == (6, 0)
    assert summary.together <= max(1, most)
    wide = {0: 2, 1: 2, 2: 6}[most]
    why = "cannot be measured (OutOfMemoryError: CUDA out of memory.)"
    assert f"the time of {wide} heads together, or more, {why}" in told
    assert (f"the time of a head alone {why}" in told) == (most == 0)


@pytest.mark.parametrize(("gain", "expected"), [(1.0, [2, 8]), (0.5, [2, 8, 1]), (0.0, [2, 8, 1])])
def test_a_head_alone_is_not_tried_where_many_together_are_clearly_quicker(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, gain: float, expected: list[int]
) -> None:
    tried: list[int] = []

    def seconds(world: World, stack: Sequence[Candidate]) -> float:
        tried.append(len(stack))
        return len(stack) ** (1.0 - gain)

    monkeypatch.setattr(fit, "step_seconds", seconds)
    config = sweeping(configure, {"k": [1, 2, 3, 4], "seed": [0, 1]})
    summary = pipeline.sweep(config, "s", report=lambda line: None)
    assert tried == expected
    assert summary.together == (8 if gain else 2)


def test_widths_are_measured_where_the_caller_wants_no_gradients(configure: Configure) -> None:
    told: list[str] = []
    config = sweeping(configure, {"seed": [0, 1]})
    with torch.no_grad():
        summary = pipeline.sweep(config, "s", report=told.append)
    assert (summary.trained, summary.failed) == (2, 0)
    assert any(line.startswith("ms per head and step") for line in told)


@pytest.mark.parametrize(("saved", "expected"), [(3.0, 2), (6.0, 1)])
def test_heads_alone_must_save_more_than_the_import_of_what_trains_them(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, saved: float, expected: int
) -> None:
    config = sweeping(configure, {"seed": [0, 1]})
    dataset = PreparedDataset.open(config.paths.data / config.dataset)
    batches = math.ceil(len(dataset.pairs("train", "seen")) / config.train.batch_size)
    steps = 2 * config.train.epochs * batches

    def seconds(world: World, stack: Sequence[Candidate]) -> float:
        return 10.0 if len(stack) == 1 else 2 * (10.0 + saved / steps)

    monkeypatch.setattr(fit, "step_seconds", seconds)
    summary = pipeline.sweep(config, "s", report=lambda line: None)
    assert summary.together == expected


def test_halving_drops_the_worse_heads_and_keeps_the_better(configure: Configure) -> None:
    rates = [1e-6, 1e-5, 1e-3, 3e-3]
    config = sweeping(
        configure,
        {"lr": rates, "seed": [0, 1]},
        **{"sweep.halving": 2, "sweep.together": 8, "train.epochs": 8},
    )
    summary = pipeline.sweep(config, "s")
    assert summary.dropped == 6
    kept = results("s").filter(pl.col("status") == "ok")
    assert sorted(kept["seed"]) == [0, 1]
    assert set(kept["lr"]) <= {1e-3, 3e-3}


@pytest.mark.parametrize("quicker", [True, False])
def test_what_halving_drops_is_no_matter_of_a_clock(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, quicker: bool
) -> None:
    def seconds(world: World, stack: Sequence[Candidate]) -> float:
        return len(stack) ** (0.5 if quicker else 2.0)

    monkeypatch.setattr(fit, "step_seconds", seconds)
    options = {"sweep.halving": 2, "train.epochs": 4}
    config = sweeping(configure, {"k": [1, 2], "lr": [1e-2, 3e-3]}, **options)
    told: list[str] = []
    summary = pipeline.sweep(config, "s", report=told.append)
    assert (summary.together, summary.dropped) == (4, 3)
    assert "halving among up to 4 of 4 heads that can be trained together" in told
    assert not any("was not applied" in line for line in told)


def test_stacks_that_halve_are_as_large_as_memory_allows(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweeping(configure, {"lr": [1e-3 * n for n in range(1, 8)], "seed": [0, 1]})
    group = list(Planner(config).grid())
    world = World.of(group[0], "cpu")
    assert width_by_size(world, group) == 14
    found = []
    for least in (14, 13, 5, 2, 0):  # heads for which there is room
        weights = sum(p.numel() for p in world.data[0].new_head(config.train, 0).parameters())
        rows = min(config.train.batch_size, len(world.data[0].train))
        one = weights * (fit.COPIES + fit.ON_THE_WAY * rows / world.data[0].store.dim)
        monkeypatch.setattr(fit, "LARGEST_STACK", least * one * 1.01)
        found.append(width_by_size(world, group))
    assert found == [14, 8, 4, 2, 2], "parts of about equal size, with every seed"


@pytest.mark.parametrize("together", [1, 2])
def test_a_sweep_says_which_heads_it_could_not_halve(configure: Configure, together: int) -> None:
    """Solved heads, and those of other shapes or alone in a stack, have no rivals."""
    axes = {"head": ["pal-a", "lore"], "k": [1, 2], "seed": [0, 1]}
    options = {"sweep.halving": 2, "sweep.together": together}
    told: list[str] = []
    summary = pipeline.sweep(sweeping(configure, axes, **options), "s", report=told.append)
    (line,) = [line for line in told if line.startswith("sweep.halving = 2 was not applied to ")]
    assert line.startswith(f"sweep.halving = 2 was not applied to {summary.heads} heads: ")
    assert summary.dropped == 0


def test_axes_reach_encoders_layers_and_training_sets(configure: Configure) -> None:
    options = {
        "dataset": "demo",
        "encoder": "tiny-text",
        "data.demo.groups": 2,
        "data.demo.limit": None,
    }
    for layer in (-1, -2):
        sweeping(configure, {}, **options, **{"embed.tiny-text.layer": layer})
    config = sweeping(
        configure,
        {"layer": [-1, -2], "pairs_per_user": [2, 10], "head": ["pal-a", "pal-b"]},
        **options,
    )
    summary = pipeline.sweep(config, "s")
    assert (summary.heads, summary.failed) == (8, 0)
    assert results("s")["test_nll"].n_unique() == 8


def test_random_draws_are_repeatable_and_distinct(configure: Configure) -> None:
    drawn = {"sweep.sampler": "random", "sweep.samples": 20}
    axes = {"sweep.lr": [1e-4, 1e-3, 1e-2], "sweep.k": [1, 2, 3, 4]}
    config = configure({"dataset": "simulated", "encoder": "identity", **drawn, **axes})
    pipeline.embed(config)
    first = [one.id for one in Planner(config).random()]
    assert first == [one.id for one in Planner(config).random()]
    assert len(set(first)) == len(first) > 10


def test_stacks_hold_equal_shapes_and_whole_seeds(configure: Configure) -> None:
    axes = {
        "sweep.head": ["pal-a", "pal-b"],
        "sweep.k": [1, 2],
        "sweep.seed": [0, 1],
        "sweep.lr": [1e-3, 1e-2],
        "sweep.mlp": [None],
    }
    config = configure({"dataset": "simulated", "encoder": "identity", **axes})
    pipeline.embed(config)
    groups = in_stacks(list(Planner(config).grid()))
    assert [len(group) for group in groups] == [8, 4, 4]  # PAL-A pads over K, PAL-B does not
    for width in (1, 2, 4, 8):
        parts = split_stack(groups[0], width)
        assert sorted(one.id for part in parts for one in part) == sorted(
            one.id for one in groups[0]
        )
        assert all(len(part) <= width for part in parts)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({"sweep.nothing": [1]}, "unknown setting or axis of sweep 'nothing'; valid: sampler"),
        ({"sweep.havling": [2]}, "of sweep 'havling'; did you mean 'halving'?"),
        ({"sweep.k": [0]}, r"sweep.k = 0 is not valid"),
        ({"sweep.head": ["pal-c"]}, "unknown head 'pal-c'"),
        ({"sweep.k": []}, r"sweep.k = \[\] is not valid: the list is empty"),
    ],
)
def test_a_bad_axis_is_one_sentence(configure: Configure, axes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pipeline.sweep(sweeping(configure, {}, **axes), "s")
    assert not Path("sweeps").exists()


@pytest.mark.parametrize("storage", [None, "sqlite:///study.db"])
def test_optuna_asks_stacks_and_resumes(configure: Configure, storage: str | None) -> None:
    pytest.importorskip("optuna")
    options = {"sweep.sampler": "optuna", "sweep.samples": 6, "sweep.storage": storage}
    axes = {"lr": [1e-4, 1e-3, 3e-3], "k": [1, 2, 3], "user_lr": [1e-2, 1e-1]}
    config = sweeping(configure, axes, **options)
    first = pipeline.sweep(config, "s")
    assert first.failed == 0
    assert 1 <= first.heads <= 6
    again = pipeline.sweep(config, "s")
    assert (again.heads, again.trained) == (first.heads, 0)
    Path("sweeps/s/results.parquet").unlink()
    again = pipeline.sweep(config, "s")
    assert (again.heads, again.trained, again.best) == (first.heads, first.heads, first.best)
    study = Path("study.db" if storage else "sweeps/s/study.json")
    study.write_bytes(study.read_bytes()[:500])
    with pytest.raises(
        (TrainError, ConfigError), match=r"study.json is damaged|study.db.*cannot be"
    ):
        pipeline.sweep(config, "s")


@pytest.mark.parametrize("storage", ["sqlite:///study.db", "journal"])
def test_a_stored_study_of_other_axes_says_so(configure: Configure, storage: str) -> None:
    pytest.importorskip("optuna")
    options = {"sweep.sampler": "optuna", "sweep.samples": 2, "sweep.storage": storage}
    pipeline.sweep(sweeping(configure, {"k": [1, 2]}, **options), "s", report=lambda line: None)
    for axes, words in (
        ({"k": [1, 2, 3]}, r"over k = \[1, 2\], and this sweep is over k = \[1, 2, 3\]"),
        ({"k": [1, 2], "lr": [0.1]}, r"over no lr, and this sweep is over lr = \[0.1\]"),
    ):
        more = sweeping(configure, axes, **options | {"sweep.samples": 4})
        with pytest.raises(ConfigError, match=f"{words}.*choose another --name"):
            pipeline.sweep(more, "s", report=lambda line: None)


@pytest.mark.slow
def test_workers_share_the_stacks_and_give_the_same_heads(configure: Configure) -> None:
    axes = {"k": [1, 2], "seed": [0, 1], "lr": [1e-3, 3e-3], "head": ["pal-a", "lore"]}
    told: list[str] = []
    one, two = (
        sweeping(configure, axes, **{"sweep.together": 2, "sweep.workers": n}) for n in (1, 2)
    )
    assert pipeline.sweep(one, "one", report=told.append).trained == 12
    done: list[int] = []
    summary = pipeline.sweep(two, "two", done.append, told.append)
    # for lore, which takes no steps, the learning rates make no difference
    assert (summary.trained, summary.failed, sum(done)) == (12, 0, 16)
    alone, shared = results("one"), results("two")
    assert alone["head_id"].to_list() == shared["head_id"].to_list()
    for metric in ("val_macro_accuracy", "test_macro_accuracy", "test_nll"):
        assert shared[metric].to_list() == pytest.approx(alone[metric].to_list(), abs=1e-3)
    assert summary.best is not None
    assert RunRecord.read(Path("sweeps/two/best")).head_id == summary.best.head_id
    assert any(line.startswith("leading: ") for line in told)
    assert pipeline.sweep(two, "two").trained == 0
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_that_dies_is_one_sentence_and_loses_no_finished_head(
    configure: Configure,
) -> None:
    axes = {"k": [1, 2, 3], "seed": [0, 1], "lr": [1e-3, 3e-3]}
    config = sweeping(
        configure, axes, **{"sweep.together": 2, "sweep.workers": 2, "train.epochs": 20}
    )

    def kill_one(heads: int) -> None:
        first = multiprocessing.active_children()[0].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)

    with pytest.raises(TrainError, match=r"a sweep worker was ended .*; run the sweep again"):
        pipeline.sweep(config, "s", kill_one)
    kept = len(results("s"))
    assert 0 < kept < 12
    again = pipeline.sweep(config, "s")
    assert (again.heads, again.reused, again.failed) == (12, kept, 0)
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_that_try_failed_heads_again_keep_each_others_results(configure: Configure) -> None:
    config = sweeping(
        configure, {"seed": [0, 1], "lr": [1e-3, 2e-3, 3e-3]}, **{"sweep.together": 1}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stacks, "train_alone", lambda *_: 1 / 0)
        assert pipeline.sweep(config, "s").failed == 6
    two = config.model_copy(update={"sweep": config.sweep.model_copy(update={"workers": 2})})
    assert pipeline.sweep(two, "s").failed == 0
    assert set(results("s")["status"]) == {"ok"}


INTERRUPTED = """
import os, sys
from pathlib import Path
from pal.config import load
from pal.sweep.run import run_sweep

def stop(heads):
    raise KeyboardInterrupt

run_sweep(load(Path("many.yaml")).config, "s", stop, print)
"""


@pytest.mark.slow
def test_an_interrupted_sweep_with_workers_ends_although_stacks_wait(configure: Configure) -> None:
    axes = {"seed": list(range(4)), "lr": [1e-3 + 1e-5 * step for step in range(20)]}
    config = sweeping(
        configure, axes, **{"sweep.together": 1, "sweep.workers": 2, "train.epochs": 1}
    )
    Path("many.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.count("Traceback") == 1, "the workers are quiet"
    assert done.stderr.strip().endswith("KeyboardInterrupt")
    assert 0 < len(results("s")) < 80


PROGRAM = """
import sys
from pathlib import Path
from pal.config import load
from pal.sweep.run import run_sweep
run_sweep(load(Path("small.yaml")).config, sys.argv[1], lambda heads: None, print)
"""


def small_sweep(configure: Configure) -> None:
    config = sweeping(
        configure,
        {"k": [1, 2, 3], "seed": [0, 1, 2], "lr": [1e-3, 3e-3]},
        **{"sweep.together": 3, "train.epochs": 4},
    )
    Path("small.yaml").write_text(json.dumps(config.model_dump(mode="json")))


def without_times(name: str) -> pl.DataFrame:
    frame = results(name)
    return frame.drop(set(frame.columns) & TIMES)


@pytest.mark.slow
def test_a_killed_sweep_ends_with_the_table_of_an_uninterrupted_one(configure: Configure) -> None:
    """SIGKILL once some stacks are recorded, sooner and later, then the same command again."""
    small_sweep(configure)
    run = [sys.executable, "-c", PROGRAM]
    subprocess.run([*run, "whole"], check=True)
    for count in (1, 3):
        name = f"killed-{count}"
        process = subprocess.Popen([*run, name])
        recorded = Path(f"sweeps/{name}/results.parquet")
        while process.poll() is None and not (
            recorded.is_file() and len(pl.read_parquet(recorded)) >= 3 * count
        ):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert len(results(name)) < 18
        subprocess.run([*run, name], check=True)
        assert_frame_equal(without_times(name), without_times("whole"))


KILLED = """
import sys
from pathlib import Path
from pal.config import load
from pal.sweep.run import run_sweep

def tell(heads):
    import multiprocessing
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)

run_sweep(load(Path("many.yaml")).config, "s", tell, lambda line: None)
"""


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(configure: Configure) -> None:
    axes = {"seed": list(range(4)), "lr": [1e-3 + 1e-5 * step for step in range(20)]}
    options = {"sweep.together": 1, "sweep.workers": 2, "train.epochs": 1}
    config = sweeping(configure, axes, **options)
    Path("many.yaml").write_text(json.dumps(config.model_dump(mode="json")))
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        workers = [int(number) for number in process.stdout.readline().split()]
        assert len(workers) == 2
        process.kill()
    until = time.monotonic() + 20
    while time.monotonic() < until and any(is_running(worker) for worker in workers):
        time.sleep(0.05)
    assert not any(is_running(worker) for worker in workers)


def is_running(process: int) -> bool:
    """Say whether a process works; one that has ended may wait for somebody to collect it."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def flip_labels(folder: Path) -> None:
    """Turn every answer of a prepared dataset round, as another source would."""
    card, path = DatasetCard.read(folder), folder / "pairs.parquet"
    flipped = pl.read_parquet(path).with_columns(label=1.0 - pl.col("label"))
    files = {**card.files, path.name: write_table(path, flipped.to_arrow(), "pairs")}
    digests = card.digests.model_copy(update={"pairs": "flipped"})
    card.model_copy(update={"files": files, "digests": digests}).write(folder)


def test_heads_of_other_answers_are_trained_again(configure: Configure) -> None:
    config = sweeping(configure, {"k": [1, 2]}, **{"sweep.together": 1})
    first = pipeline.sweep(config, "s")
    flip_labels(Path("data/simulated"))
    again = pipeline.sweep(config, "s")
    assert (again.heads, again.trained) == (2, 2)
    assert first.best is not None
    assert again.best is not None
    assert first.best.head_id != again.best.head_id
    assert len(results("s")) == 4, "the earlier heads stay on record"
    assert RunRecord.read(Path("runs/s-best")).pairs_digest == "flipped"


def test_what_cannot_differ_is_one_head(configure: Configure) -> None:
    rates = {"user_lr": [1e-2, 1e-1], "prototype_lr": [1e-3, 1e-2], "scale_lr": [1e-3, 1e-2]}
    axes: dict[str, list[Any]] = {"head": ["pal-a", "bt-linear", "drm"], "k": [1, 2], **rates}
    config = sweeping(configure, axes, **{"train.epochs": 1})
    counts = {
        (head, k): len({one.id for one in Planner(config).grid() if made(one) == (head, k)})
        for head in axes["head"]
        for k in axes["k"]
    }
    assert counts == {
        ("pal-a", 1): 2,  # the rates of prototypes; the only weight of a user is 1
        ("pal-a", 2): 4,
        ("bt-linear", 1): 1,
        ("bt-linear", 2): 1,
        ("drm", 1): 1,
        ("drm", 2): 1,
    }
    assert len({one.id for one in Planner(config).grid()}) == 9, "bt-linear has no prototypes"
    done: list[int] = []
    summary = pipeline.sweep(config, "s", done.append, lambda line: None)
    assert (summary.heads, summary.trained, sum(done)) == (9, 9, 48)


def made(one: Candidate) -> tuple[str, int]:
    return one.config.train.head, one.config.train.k


def test_only_a_sweep_gives_way_to_a_sweep(configure: Configure) -> None:
    config = sweeping(configure, {})
    Path("sweeps/mine").mkdir(parents=True)
    Path("sweeps/mine/notes.txt").write_text("keep")
    with pytest.raises(PalError, match=r"sweeps/mine exists and is no sweep of ours"):
        pipeline.sweep(config, "mine")
    with pytest.raises(ConfigError, match="cannot be the name of a sweep"):
        pipeline.sweep(config, "../mine")
    pipeline.train(config, "s-best")
    with pytest.raises(TrainError, match=r"runs/s-best is a run of its own.*another --name"):
        pipeline.sweep(config, "s")
    assert [path.name for path in Path("sweeps").rglob("*")] == ["mine", "notes.txt"]


def test_a_sweep_says_how_many_heads_it_asks_for(configure: Configure) -> None:
    axes = {"sweep.head": ["pal-a"], "sweep.k": [1, 2, 3], "sweep.seed": [0, 1]}
    assert heads_of_sweep(configure(axes).sweep) == 6
    assert heads_of_sweep(configure({"sweep.sampler": "random", "sweep.samples": 9}).sweep) == 9


def test_a_damaged_file_of_a_sweep_is_refused_or_made_anew(configure: Configure) -> None:
    config = sweeping(configure, {"k": [1, 2]})
    before = pipeline.sweep(config, "s")
    for name in ("best/head.safetensors", "plan.json", "summary.json"):
        path = Path("sweeps/s") / name
        path.write_bytes(path.read_bytes()[:-30])
        told: list[str] = []
        again = pipeline.sweep(config, "s", report=told.append)
        assert (again.trained, again.best) == (0, before.best), name
        assert any("plan.json was damaged" in line for line in told) == (name == "plan.json")
    table = Path("sweeps/s/results.parquet")
    table.write_bytes(table.read_bytes()[:-30])
    with pytest.raises(TrainError, match=r"results.parquet is damaged.*remove it, and pal sweep"):
        pipeline.sweep(config, "s")
    table.unlink()
    assert pipeline.sweep(config, "s").trained == 2


def test_rows_are_read_as_they_were_written() -> None:
    cell = Cell(
        n_pairs=4, n_users=2, n_prompts=1, accuracy=0.5, macro_accuracy=0.5,
        macro_ci95=(0.25, 0.75), ci95_from="users", worst_decile=0.0, nll=0.7, nll_ci95=None,
        brier=0.25, ece=0.1, auc=None,
    )  # fmt: skip
    rows = {
        "a": SweepRow(
            head_id="a", head="pal-a", k=2, seed=0, lr=1e-3, encoder="e", status="ok", together=3,
            axes={"mlp": None, "bound": 1.0}, val=cell,
            test=cell.model_copy(update={"n_ties": 3, "ties": "half"}),
        ),
        "b": SweepRow(
            head_id="b", head="lore", k=2, seed=1, lr=1e-3, encoder="e", status="failed",
            together=1, axes={"mlp": "identity", "bound": 0.5}, error="it would not",
        ),
    }  # fmt: skip
    with open_results(Path("s")) as found:
        found.update(rows)
    assert read_results(Path("s")) == rows
    columns = set(pl.read_parquet("s/results.parquet").columns)
    assert {"head", "k", "seed", "lr", "status", "val_macro_accuracy", "test_accuracy"} <= columns
    assert not {"axes", "val", "test"} & columns


def test_the_bound_holds_in_a_stack(configure: Configure) -> None:
    config = sweeping(configure, {"lr": [1e-3, 3e-3], "bound": [None, 1e-3]})
    config = config.model_copy(update={"sweep": config.sweep.model_copy(update={"together": 4})})
    assert pipeline.sweep(config, "s", report=lambda line: None).mode == "stacked"
    frame = results("s")
    assert frame["test_nll"].n_unique() == 4
    for row in frame.iter_rows(named=True):
        train = config.train.model_copy(update={"lr": row["lr"], "bound": row["bound"]})
        alone = pipeline.train(config.model_copy(update={"train": train}), row["head_id"])
        assert alone.test_seen is not None
        assert row["test_nll"] == pytest.approx(alone.test_seen.nll, abs=1e-3)


def test_a_head_of_fewer_users_is_evaluated_by_those_users_on_every_road(
    configure: Configure,
) -> None:
    config = sweeping(configure, {"k": [1]}, **{"train.users": 3, "sweep.together": 1})
    pipeline.sweep(config, "s")
    metrics = pipeline.evaluate(config, ["s-best"]).runs[0]
    assert metrics.test_seen is not None
    row = results("s").row(0, named=True)
    assert metrics.test_seen.n_users == row["test_n_users"] == 3
    assert metrics.test_seen.macro_accuracy == row["test_macro_accuracy"]


FOLDS = 3


def test_a_sweep_by_folds_judges_each_head_as_evaluate_does(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fit, "SHOTS", (0,))
    options = {"sweep.folds": FOLDS, "sweep.together": 4, "train.device": "cpu"}
    config = sweeping(configure, {"k": [1, 2], "seed": [0, 1]}, **options)
    summary = pipeline.sweep(config, "s", report=lambda line: None)
    assert (summary.heads, summary.failed, summary.mode) == (4, 0, "stacked")
    of_fold: list[dict[str, pl.DataFrame]] = [{} for _ in range(FOLDS)]
    dataset = PreparedDataset.open(Path("data/simulated"))
    for row in results("s").iter_rows(named=True):
        train = config.train.model_copy(update={"k": row["k"]})
        one = config.model_copy(update={"train": train, "seed": row["seed"]})
        pipeline.train(one, row["head_id"])
        (alone,) = pipeline.evaluate(one, [row["head_id"]], FOLDS).runs
        assert alone.test_seen is not None
        assert row["test_n_pairs"] == alone.test_seen.n_pairs
        for metric in ("accuracy", "macro_accuracy", "nll"):
            wanted = getattr(alone.test_seen, metric)
            assert row[f"test_{metric}"] == pytest.approx(wanted, abs=2e-3)
        assert row["test_ci95_low"] < row["test_macro_accuracy"] < row["test_ci95_high"]
        path = f"runs/{row['head_id']}/folds/of-{FOLDS}/predictions.parquet"
        predicted = pl.read_parquet(path).filter(pl.col("population") == "seen")
        for number, fold in enumerate(Fold.all_of(dataset, FOLDS)):
            tested = fold.pairs("test", "seen")["pair_id"].implode()
            of_fold[number][row["head_id"]] = predicted.filter(
                (pl.col("split") == "test") & pl.col("pair_id").is_in(tested)
            )
    chosen = summary.cross_fitted
    assert chosen is not None
    by_hand = []
    for number, best in enumerate(chosen.chosen):
        inner = pl.col("inner_accuracies").list.get(number)
        likelihood = pl.col("inner_nlls").list.get(number)
        ranked = results("s").sort(inner, -likelihood, descending=True)
        assert ranked["head_id"][0] == best.head_id, "by the validation of its fold alone"
        by_hand.append(of_fold[number][best.head_id])
    (cell,) = [cells_of_seen(config.evaluate, pl.concat([*by_hand, as_val(by_hand[0])]))["test"]]
    assert chosen.test.n_pairs == cell.n_pairs == len(dataset.pairs(population="seen"))
    assert chosen.test.macro_accuracy == pytest.approx(cell.macro_accuracy, abs=2e-3)
    assert chosen.n_crossing_folds == 0
    assert not Path("runs/s-best/metrics.json").exists(), "its test had a part in the choice"
    assert Path("sweeps/s/table.csv").read_text().count("\n") == 3


def as_val(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(split=pl.lit("val"))


def test_a_sweep_by_folds_goes_on_where_it_was(configure: Configure) -> None:
    options = {"sweep.folds": FOLDS, "train.epochs": 1, "train.device": "cpu"}
    config = sweeping(configure, {"k": [1, 2]}, **options, **{"sweep.together": 1})
    before = pipeline.sweep(config, "s")
    assert before.best is not None
    place = Path(f"sweeps/s/folds/of-{FOLDS}")
    for path in place.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    again = pipeline.sweep(config, "s")
    assert (again.trained, again.best) == (0, before.best)
    assert again.cross_fitted == before.cross_fitted, "what was lost is trained again"
    plain = config.model_copy(update={"sweep": config.sweep.model_copy(update={"folds": None})})
    other = pipeline.sweep(plain, "s")
    assert (other.trained, other.cross_fitted) == (2, None)
    assert other.best is not None
    assert other.best.head_id != before.best.head_id
    assert Path("runs/s-best/metrics.json").exists()


def test_a_choice_among_fewer_heads_trains_the_chosen_one_again_once(configure: Configure) -> None:
    """What the best of more heads predicts is kept beside it: neither choice costs the other."""
    options = {"sweep.folds": FOLDS, "train.epochs": 1, "train.device": "cpu"}
    more = sweeping(configure, {"k": [1, 2]}, **options, **{"sweep.together": 1})
    both = pipeline.sweep(more, "s").cross_fitted
    assert both is not None
    (beaten,) = {1, 2} - {both.chosen[0].k}
    fewer = sweeping(configure, {"k": [beaten]}, **options, **{"sweep.together": 1})
    (head,) = (one.id for one in Planner(fewer).grid())
    for path in Path(f"sweeps/s/folds/of-{FOLDS}").glob(f"*-{head}.parquet"):
        path.unlink()  # as if it had been trained after the other
    told: list[list[str]] = []
    for config in (fewer, fewer, more, fewer):
        lines: list[str] = []
        summary = pipeline.sweep(config, "s", report=lines.append)
        assert summary.trained == 0
        told.append([line for line in lines if line.startswith("trained again")])
    assert told == [[f"{AGAIN}head pal-a, k {beaten}, seed 0"], [], [], []]


AGAIN = "trained again, for what it predicts in its folds: "


def test_halving_by_folds_drops_a_head_from_all_of_them(configure: Configure) -> None:
    axes = {"lr": [1e-6, 1e-5, 1e-3, 3e-3]}
    options = {"sweep.halving": 2, "sweep.together": 4, "train.epochs": 8, "sweep.folds": 2}
    config = sweeping(configure, axes, **options)
    assert pipeline.sweep(config, "s").dropped == 3
    kept = results("s").filter(pl.col("status") == "ok")
    assert [len(kept[name][0]) for name in ("inner_nlls", "inner_accuracies")] == [2, 2]


def test_too_many_folds_of_a_sweep_are_one_sentence(configure: Configure) -> None:
    config = sweeping(configure, {}, **{"sweep.folds": 5000, "sweep.together": 1})
    pipeline.sweep(config, "s")
    (row,) = results("s").to_dicts()
    assert "too few prompts for sweep.folds = 5000; use fewer" in row["error"]


def test_a_fold_without_validation_pairs_asks_for_more_folds(configure: Configure) -> None:
    """As ``pal evaluate --folds`` does: of one person's few prompts none may be among the share
    that validates."""
    people = ("users", "unseen_users", "validation_users", "groups")
    one = {f"data.simulated.{name}": 1 for name in people}
    config = sweeping(configure, {"k": [1]}, **one, **{"sweep.folds": FOLDS})
    pipeline.sweep(config, "s")
    (row,) = results("s").to_dicts()
    wanted = "has no val pairs of seen users: too few prompts for sweep.folds = 3; use more"
    assert wanted in row["error"]
