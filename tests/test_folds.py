"""Cross-fitting: every prompt is tested once, by a head that never saw it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pal import pipeline
from pal.config import Config
from pal.dataset import DatasetCard, PreparedDataset
from pal.errors import EvaluationError
from pal.evaluate import cross_fit, few_shot
from pal.evaluate.compare import compare
from pal.evaluate.crossed import with_prompt_group
from pal.evaluate.folds import Fold, crossing_folds, with_answer
from pal.evaluate.report import write_report
from pal.records import write_table
from pal.train import fit as fitting
from pal.train.run_record import RunRecord

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
    dataset = PreparedDataset.open(Path("data/demo"))
    tested: list[str] = []
    for fold in Fold.all_of(dataset, FOLDS):
        test = groups(fold, "test", "seen") | groups(fold, "test", "unseen")
        assert not test & groups(fold, "train", "seen")
        assert not test & groups(fold, "val", "seen")
        assert not groups(fold, "val", "seen") & groups(fold, "train", "seen")
        assert not groups(fold, "val", "unseen") & groups(fold, "train", "seen")
        assert not test & groups(fold, "train", "unseen"), "a shot is no test"
        tested += fold.pairs("test", "seen")["pair_id"].to_list()
    everything = dataset.pairs(population="seen")["pair_id"].to_list()
    assert sorted(tested) == sorted(everything), "each pair of a seen user is tested once"
    assert crossing_folds(dataset, FOLDS) == 0


def test_over_answers_every_answer_is_tested_once_and_its_prompt_is_known(config: Config) -> None:
    dataset = PreparedDataset.open(Path("data/demo"))
    tested: list[str] = []
    for fold in Fold.all_of(dataset, FOLDS, "answers"):
        parts = {s: with_answer(fold.pairs(s, "seen")) for s in ("train", "val", "test")}
        named = {split: set(frame["prompt_group"]) for split, frame in parts.items()}
        assert not named["test"] & (named["train"] | named["val"])
        assert not named["train"] & named["val"]
        assert len(groups(fold, "test", "seen") & groups(fold, "train", "seen"))
        pool, judged = (with_answer(fold.pairs(s, "unseen")) for s in ("train", "test"))
        assert not set(pool["prompt_group"]) & set(judged["prompt_group"]), "a shot is no test"
        tested += parts["test"]["pair_id"].to_list()
    everything = dataset.pairs(population="seen")["pair_id"].to_list()
    assert sorted(tested) == sorted(everything)


def test_folds_of_answers_stand_beside_those_of_prompts(config: Config) -> None:
    pipeline.train(config, "one")
    pipeline.evaluate(config, ["one"], FOLDS)
    (found,) = pipeline.evaluate(config, ["one"], FOLDS, over="answers").runs
    assert found.folds_over == "answers"
    assert found.test_items_seen == found.test_seen
    assert found.test_items_seen is not None
    folders = sorted(path.name for path in Path("runs/one/folds").iterdir())
    assert folders == [f"of-{FOLDS}", f"of-{FOLDS}-answers"]


def test_damaged_predictions_of_folds_name_the_command_that_makes_them(config: Config) -> None:
    pipeline.train(config, "one")
    pipeline.evaluate(config, ["one"], FOLDS)
    Path(f"runs/one/folds/of-{FOLDS}/predictions.parquet").write_bytes(b"PAR1")
    command = rf"; run: pal evaluate one --folds {FOLDS}$"
    with pytest.raises(EvaluationError, match=r"predictions.parquet is damaged.*" + command):
        compare(config.evaluate, config.paths.runs, ["one"], FOLDS)


def divide_items(folder: Path) -> None:
    """Divide the items of a prepared dataset instead of its prompts."""
    card, path = DatasetCard.read(folder), folder / "pairs.parquet"
    pairs = pl.read_parquet(path).with_columns(group_id="first_id", other_group_id="second_id")
    files = {**card.files, path.name: write_table(path, pairs.to_arrow(), "pairs")}
    card.model_copy(update={"files": files}).write(folder)


def test_where_items_are_divided_no_item_is_read_and_tested(config: Config) -> None:
    divide_items(Path("data/demo"))
    dataset = PreparedDataset.open(Path("data/demo"))
    tested = 0
    for fold in Fold.all_of(dataset, FOLDS):

        def items(split: str, population: str, fold: Fold = fold) -> set[bytes]:
            rows = fold.pairs(split, population)  # type: ignore[arg-type]
            return {*rows["first_id"], *rows["second_id"]}

        test = items("test", "seen") | items("test", "unseen")
        assert not test & (items("train", "seen") | items("val", "seen") | items("val", "unseen"))
        assert not test & items("train", "unseen"), "a shot is no test"
        assert not items("train", "seen") & (items("val", "seen") | items("val", "unseen"))
        tested += len(fold.pairs("test", "seen"))
    seen = len(dataset.pairs(population="seen"))
    assert 0 < tested < seen
    unseen = len(dataset.pairs(population="unseen"))
    assert seen - tested <= crossing_folds(dataset, FOLDS) <= seen - tested + unseen


def test_folds_are_tested_together_and_kept(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fit, "SHOTS", (0,))
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


def test_unseen_users_are_adapted_by_answers_to_the_other_folds(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.train(config, "one")
    dataset = PreparedDataset.open(Path("data/demo"))
    shown: list[tuple[set[bytes], int]] = []
    original = few_shot.NewUsers.shots

    def watched(users: few_shot.NewUsers, count: int, repeat: int) -> object:
        shown.append((set(users.pool_ids.tolist()), count))
        return original(users, count, repeat)

    monkeypatch.setattr(few_shot.NewUsers, "shots", watched)
    found = pipeline.evaluate(config, ["one"], FOLDS)
    cells = found.runs[0].test_unseen
    assert list(cells) == ["0", "1", "5"], "nobody has 20 answers"
    assert len({cell.n_pairs for cell in cells.values()}) == 1
    tested = dataset.pairs(population="unseen").filter(
        (pl.col("split") == "val").any().over("user_id").not_()
    )
    assert cells["5"].n_pairs == len(tested), "each pair of a user kept for the test is tested once"
    assert cells["5"].macro_ci95 is not None
    assert {count for _, count in shown} >= {1, 5}
    tests = [set(fold.pairs("test")["pair_id"]) for fold in Fold.all_of(dataset, FOLDS)]
    for pool, _ in shown:
        assert any(not pool & test for test in tests), "of some fold, no pair that it tests"
    report = write_report(Path("runs"), found)
    assert f"{FOLDS} folds: every prompt was tested once" in report
    assert "| 5 shots" in report


def test_folds_trained_as_one_stack_are_those_that_are_trained_alone(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for rounding; tests/test_stack.py has no rounding, and no tolerance."""
    monkeypatch.setattr(cross_fit, "SHOTS", (0,))
    narrow = config.train.model_copy(
        update={
            "mlp": "mlp1-gelu-dropout0",
            "latent_dim": 4,
            "batch_size": 16,
            "epochs": 2,
            "device": "cpu",
        }
    )
    config = config.model_copy(update={"train": narrow})
    found = []
    for name, limit in (("stacked", 2_000_000), ("alone", 0)):
        monkeypatch.setattr(fitting, "SMALL_STEP", limit)
        pipeline.train(config, name)
        found.append(pipeline.evaluate(config, [name], FOLDS).runs[0])
    for number in range(FOLDS):
        stacked, alone = (
            RunRecord.read(Path(f"runs/{name}/folds/of-{FOLDS}/{number}"))
            for name in ("stacked", "alone")
        )
        assert stacked.best_epoch == alone.best_epoch
        assert stacked.users == alone.users
        assert stacked.seal != alone.seal, "they did go two ways"
    assert found[0].test_seen is not None
    assert found[1].test_seen is not None
    monkeypatch.setattr(fitting, "SMALL_STEP", 2_000_000)
    lost = Path(f"runs/stacked/folds/of-{FOLDS}/1")
    shutil.rmtree(lost)
    again = pipeline.evaluate(config, ["stacked"], FOLDS).runs[0]
    assert again.head_seal == found[0].head_seal, "one fold again is as it was among all"
    assert found[0].test_seen.nll == pytest.approx(found[1].test_seen.nll, abs=1e-3)


def test_folds_that_were_ready_when_it_was_killed_are_kept(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fit, "SHOTS", (0,))
    monkeypatch.setattr(fitting, "SMALL_STEP", 0)  # one by one
    pipeline.train(config, "one")
    own, calls = fitting.fit_head, iter(range(FOLDS))

    def killed_in_the_last(*args: Any) -> Any:
        if next(calls) == FOLDS - 1:
            raise KeyboardInterrupt
        return own(*args)

    monkeypatch.setattr(fitting, "fit_head", killed_in_the_last)
    with pytest.raises(KeyboardInterrupt):
        pipeline.evaluate(config, ["one"], FOLDS)
    folder = Path(f"runs/one/folds/of-{FOLDS}")
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1"]
    monkeypatch.setattr(fitting, "fit_head", own)
    done: list[int] = []
    pipeline.evaluate(config, ["one"], FOLDS, done.append)
    assert done == [FOLDS - 1, 1]


def test_the_same_run_again_keeps_its_folds_and_no_others(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fit, "SHOTS", (0,))
    pipeline.train(config, "one")
    found = pipeline.evaluate(config, ["one"], FOLDS)
    head = Path(f"runs/one/folds/of-{FOLDS}/1/head.safetensors")
    was = head.stat().st_mtime_ns
    pipeline.train(config, "one")
    assert pipeline.evaluate(config, ["one"], FOLDS) == found
    assert head.stat().st_mtime_ns == was, "nothing was trained again"
    record = RunRecord.read(Path("runs/one"))
    record.model_copy(update={"seed": 7}).keep_folds(Path("runs/one"), Path("other"))
    assert not Path("other").exists(), "another head has other folds"


def test_a_few_prompts_leave_some_for_validation(config: Config) -> None:
    fold = Fold.all_of(PreparedDataset.open(Path("data/demo")), 2)[0]
    names = [f"{number}" for number in range(4)]
    pairs = pl.DataFrame({"prompt_group": names, "other_group": names})
    counts = fold._dealt(pairs)["dealt"].value_counts()
    assert dict(counts.iter_rows()) == {"test": 2, "val": 1, "train": 1}


def test_too_many_folds_are_one_sentence(config: Config) -> None:
    pipeline.train(config, "one")
    with pytest.raises(EvaluationError, match="--folds 1 is no cross-fitting"):
        pipeline.evaluate(config, ["one"], 1)
    with pytest.raises(EvaluationError, match=r"fold .* of 500 of run one has no test .* fewer"):
        pipeline.evaluate(config, ["one"], 500)
