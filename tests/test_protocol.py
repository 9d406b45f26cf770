"""Ties, votes, free baselines and paired comparisons, on numbers that can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from pal import pipeline
from pal.config import Config
from pal.dataset import PreparedDataset
from pal.errors import EvaluationError
from pal.evaluate.compare import Comparison, chance_of_harm, compare_runs, holm
from pal.evaluate.free import free_baselines, free_margins
from pal.evaluate.metrics import (
    calibration_error,
    credit_with_ties,
    tie_baseline,
    tie_threshold,
)
from pal.evaluate.predict import cell_of
from pal.evaluate.sentences import difference_sentence, plurality_sentence
from pal.evaluate.ties import TieRule, folds_of, of_folds
from pal.evaluate.votes import by_division, with_votes

Configure = Callable[..., Config]


def test_pickscore_credit_is_its_table() -> None:
    p = np.array([0.9, 0.9, 0.9, 0.52, 0.52, 0.52, 0.1])
    label = np.array([1.0, 0.0, 0.5, 1.0, 0.0, 0.5, 0.0])
    assert credit_with_ties(p, label, 0.1).tolist() == [1.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0]


def test_threshold_is_the_first_best_of_tenths() -> None:
    p, label = np.array([0.55, 0.55, 0.95]), np.array([0.5, 0.5, 1.0])
    assert tie_threshold(p, label) == pytest.approx(
        0.2
    )  # |p0 - p1| = 0.1 is not certain to be <= 0.1 in floats
    assert tie_threshold(np.array([0.9, 0.1]), np.array([1.0, 0.0])) == 0.0


def test_random_baseline_counts_ties() -> None:
    assert tie_baseline(np.array([0.5, 1.0]), 0.2) == pytest.approx((0.2 + 0.4) * 0.5 + 0.25)


def predictions(label: list[float], margin: list[float], users: list[str]) -> pl.DataFrame:
    prompts = [f"{number}" for number in range(len(users))]
    given = {
        "user_id": users,
        "prompt_group": prompts,
        "other_group": prompts,
        "margin": margin,
        "label": label,
    }
    return pl.DataFrame({**given, "p": [0.5] * len(label)})


def test_each_tie_rule_counts_as_it_says(configure: Configure) -> None:
    frame = predictions([1.0, 0.5, 0.0], [2.0, 0.01, 1.0], ["a", "a", "b"])
    rules = TieRule("half"), TieRule("drop"), TieRule("pickscore", (0.1,))
    evaluate = configure().evaluate
    half, drop, pick = (cell_of(evaluate, frame, rule) for rule in rules)
    assert half.accuracy == pytest.approx(0.5)
    assert (drop.accuracy, drop.n_pairs, drop.n_ties) == (0.5, 2, 1)
    assert pick.accuracy == pytest.approx(2 / 3)
    assert pick.tie_threshold == 0.1
    with pytest.raises(EvaluationError, match="all pairs to be evaluated are ties"):
        cell_of(evaluate, predictions([0.5], [1.0], ["a"]), TieRule("drop"))
    for rule in rules:
        with pytest.raises(EvaluationError, match="there is no pair to be evaluated: the dataset"):
            cell_of(evaluate, frame.head(0), rule)


def test_each_fold_has_the_threshold_that_its_own_validation_chose() -> None:
    # in the first fold all answers are ties, in the second none is
    folds = [
        predictions([label] * 4, [0.3, -0.3, 0.5, -0.5], ["a", "b", "c", "d"])
        for label in (0.5, 1.0)
    ]
    folds = [fold.with_columns(p=1 / (1 + (-pl.col("margin")).exp())) for fold in folds]
    both = of_folds(folds)
    rule = TieRule.choose("pickscore", both)
    assert rule.thresholds[0] > 0.2
    assert rule.thresholds[1] == 0.0
    margin, label = both["margin"].to_numpy(), both["label"].to_numpy()
    assert rule.credit(margin, label, folds_of(both)).tolist() == [1, 1, 1, 1, 1, 0, 1, 0]


def test_votes_leave_the_own_answer_out_and_know_the_sides() -> None:
    pairs = pl.DataFrame(
        {
            "pair_id": [b"1", b"2", b"3", b"4"],
            "prompt_id": [None] * 4,
            "first_id": [b"x", b"y", b"x", b"z"],
            "second_id": [b"y", b"x", b"y", b"x"],
            "user_id": ["a", "b", "c", "a"],
            "label": [1.0, 0.0, 0.0, 1.0],
        },
        schema_overrides={"prompt_id": pl.Binary},
    )
    found = with_votes(pairs)
    assert found["votes"].to_list() == [2, 2, 2, 0]
    # a: others say x over y (b, swapped) and y over x (c); b: a says x, c says y; c: both say x
    assert found["vote_share"].to_list() == [0.5, 0.5, 1.0, None]
    judged = found.select("pair_id", "label").with_columns(margin=pl.lit(1.0))
    cells = by_division(
        judged, found.select("pair_id", "votes", "vote_share"), least=2, ties=TieRule("half")
    )
    assert (cells.n_controversial, cells.n_consensus) == (2, 1)
    assert cells.controversial_accuracy == 0.5
    assert cells.consensus_accuracy == 0.0
    assert by_division(judged, found, 9, TieRule("half")).controversial_accuracy is None


def test_pairs_that_divide_people_follow_the_rule_for_ties() -> None:
    judged = pl.DataFrame(
        {"pair_id": [b"1", b"2"], "margin": [0.1, 3.0], "label": [0.5, 1.0]},
    )
    votes = judged.select("pair_id", votes=pl.lit(4), vote_share=pl.lit(0.5))
    found = [
        by_division(judged, votes, 2, rule)
        for rule in (TieRule("half"), TieRule("drop"), TieRule("pickscore", (0.2,)))
    ]
    assert [one.n_controversial for one in found] == [2, 1, 2]
    assert [one.controversial_accuracy for one in found] == [0.75, 1.0, 1.0]


def test_a_fold_without_validation_pairs_predicts_no_ties() -> None:
    rule = TieRule("pickscore", (0.5,))
    margin, label = np.full(2, 0.1), np.full(2, 0.5)
    assert rule.credit(margin, label, np.array([0, 1])).tolist() == [1.0, 0.5]


def test_calibration_is_the_same_in_any_order_of_equal_probabilities() -> None:
    generator = np.random.default_rng(0)
    label = (generator.random(1000) < 0.7).astype(float)
    margin = np.repeat([np.log(0.7 / 0.3), 1e-3], 500)
    sorted_label = np.concatenate([np.sort(label[:500]), np.sort(label[500:])])
    mixed = calibration_error(margin, label, 15)
    assert calibration_error(margin, sorted_label, 15) == pytest.approx(mixed, abs=1e-12)


def test_free_baselines_read_no_test_label(configure: Configure) -> None:
    config = configure({"dataset": "demo"})
    pipeline.prepare(config)
    dataset = PreparedDataset.open(config.paths.data / "demo")
    frame = dataset.pairs("test", "seen")
    other = frame.with_columns(label=1.0 - pl.col("label"))
    for which in ("first", "length", "majority"):
        assert np.array_equal(
            free_margins(dataset, frame, which), free_margins(dataset, other, which)
        )
    rows = {row.baseline: row.test_seen for row in free_baselines(config.evaluate, [dataset])}
    assert rows["majority"] is not None
    assert rows["first"] is not None
    assert rows["majority"].accuracy == 0.5, "test statements are not among the training ones"
    assert 0.3 < rows["first"].accuracy < 0.7


@pytest.mark.parametrize("rule", ["drop", "pickscore"])
def test_ties_count_for_free_baselines_as_for_heads(configure: Configure, rule: str) -> None:
    config = configure({"dataset": "demo", "evaluate.ties": rule})
    pipeline.prepare(config)

    class Tied(PreparedDataset):
        """Every third answer is a tie."""

        def pairs(self, *chosen: Any) -> pl.DataFrame:
            tied = pl.int_range(pl.len()) % 3 == 0
            label = pl.when(tied).then(0.5).otherwise("label")
            frame = super().pairs(*chosen)
            return frame.with_columns(label=label) if "label" in frame.columns else frame

    plain = PreparedDataset.open(config.paths.data / "demo")
    dataset = Tied(plain.folder, plain.card)
    tested = dataset.pairs("test", "seen")
    for row in free_baselines(config.evaluate, [dataset]):
        cell = row.test_seen
        assert cell is not None
        assert (cell.ties, cell.n_ties) == (rule, int((tested["label"] == 0.5).sum()))
        assert cell.n_pairs == (tested["label"] != 0.5).sum() if rule == "drop" else len(tested)
        assert (cell.tie_threshold is not None) == (rule == "pickscore")


def test_seen_users_of_free_baselines_are_those_of_heads(configure: Configure) -> None:
    """A fold may have all answers of somebody: for heads a stranger, and in no cell."""
    config = configure({"dataset": "demo"})
    pipeline.prepare(config)

    class Untrained(PreparedDataset):
        def pairs(self, *chosen: Any) -> pl.DataFrame:
            frame = super().pairs(*chosen)
            return frame.filter(pl.col("user_id") != first) if chosen[0] == "train" else frame

    plain = PreparedDataset.open(config.paths.data / "demo")
    first = plain.pairs("train", "seen")["user_id"].min()
    rows = free_baselines(config.evaluate, [Untrained(plain.folder, plain.card)])
    others = plain.pairs("test", "seen").filter(pl.col("user_id") != first)
    assert {row.test_seen and row.test_seen.n_pairs for row in rows} == {len(others)}


def test_length_prefers_the_longer_text(configure: Configure) -> None:
    config = configure({"dataset": "demo"})
    pipeline.prepare(config)
    dataset = PreparedDataset.open(config.paths.data / "demo")
    texts = dict(
        zip(*(dataset.items().column(c).to_pylist() for c in ("item_id", "text")), strict=True)
    )
    frame = dataset.pairs("test", "seen")
    expected = [
        np.sign(len(texts[a]) - len(texts[b]))
        for a, b in zip(frame["first_id"], frame["second_id"], strict=True)
    ]
    assert free_margins(dataset, frame, "length").tolist() == expected


def test_holm_adjusts_in_steps() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_harm_by_chance_is_that_of_coins() -> None:
    assert chance_of_harm(np.array([2])) == pytest.approx(0.5 * (1 - 0.5))
    assert chance_of_harm(np.array([0])) == 0.0
    assert chance_of_harm(np.array([1, 3])) == 0.5
    assert chance_of_harm(np.array([10**6])) == pytest.approx(0.5, abs=1e-3)


def test_comparison_is_paired_by_pair_and_user(configure: Configure) -> None:
    base = pl.DataFrame(
        {
            "pair_id": [bytes([n]) for n in range(8)], "user_id": ["a"] * 4 + ["b"] * 4,
            "prompt_group": [f"{n % 4}" for n in range(8)],
            "other_group": [f"{n % 4}" for n in range(8)], "split": ["test"] * 8,
            "population": ["seen"] * 8,
            "margin": [1.0, 1.0, -1.0, -1.0] * 2, "label": [1.0] * 8,
        }
    )  # fmt: skip
    better = base.with_columns(margin=pl.lit(1.0)).reverse()
    (row,) = compare_runs(configure().evaluate, ("base", base), [("better", better)])
    assert row.difference == pytest.approx(0.5)
    assert row.harmed == 0.0
    assert (row.n_pairs, row.n_users, row.n_prompts) == (8, 2, 4)


def test_comparisons_count_ties_as_the_settings_say(configure: Configure) -> None:
    base = pl.DataFrame(
        {
            "pair_id": [bytes([n]) for n in range(6)],
            "user_id": ["a"] * 6,
            "prompt_group": [f"{n}" for n in range(6)],
            "other_group": [f"{n}" for n in range(6)],
            "split": ["val"] * 2 + ["test"] * 4,
            "population": ["seen"] * 6,
            "margin": [0.1, 5.0, 5.0, 5.0, 5.0, 5.0],
            "label": [0.5, 1.0, 1.0, 1.0, 0.5, 0.5],
        }
    )
    unsure = base.with_columns(
        margin=pl.when(pl.col("label") == 0.5).then(0.1).otherwise(pl.col("margin"))
    )
    tables = [t.with_columns(p=1 / (1 + (-pl.col("margin")).exp())) for t in (base, unsure)]
    found = {}
    for rule in ("half", "drop", "pickscore"):
        settings = configure({"evaluate.ties": rule}).evaluate
        (row,) = compare_runs(settings, ("base", tables[0]), [("unsure", tables[1])])
        found[rule] = (row.n_pairs, row.difference)
    assert found == {"half": (4, 0.0), "drop": (2, 0.0), "pickscore": (4, pytest.approx(0.25))}


@pytest.mark.parametrize(("p", "said"), [(1.0, "is not shown"), (2.0**-19, "is shown")])
def test_sentences_follow_p_where_there_is_no_interval(p: float, said: str) -> None:
    found = Comparison(
        a="one", b="many", cell="test_seen", n_users=20, n_prompts=20, n_pairs=400, difference=1.0,
        ci95=None, ci95_from="users", nll_difference=-1.0, nll_ci95=None, p=p, harmed=0.0,
        harmed_by_chance=0.0, p_holm=p,
    )  # fmt: skip
    runs: Any = {
        "one": SimpleNamespace(head="pal-a", k=1),
        "many": SimpleNamespace(head="pal-a", k=3),
    }
    assert f"Plurality {said}: " in plurality_sentence(found, runs)
    assert ("many is better" in difference_sentence(found)) == (p < 0.05)
