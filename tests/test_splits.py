"""Splits that answers of real people survive: what is divided, who stays, and what nobody read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pal import pipeline
from pal.config import ComparisonsConfig, Config
from pal.data import groups
from pal.data.comparisons import Comparison, Recorder
from pal.data.roles import divided_by_hash, fewest_of
from pal.data.splits import SplitPairs, assign_splits
from pal.dataset import SPLITS, PreparedDataset
from pal.errors import DataError
from pal.evaluate.crossed import with_prompt_group
from pal.evaluate.folds import Fold
from pal.items import Text, question

Configure = Callable[..., Config]
Answer = tuple[str, str, str, str]
"""user, prompt (empty: none), first and second item; the first is preferred"""


def divided(answers: Sequence[Answer], **settings: Any) -> SplitPairs:
    recorder = Recorder()
    for number, (user, prompt, first, second) in enumerate(answers):
        asked = question(prompt or None)
        recorder.add(Comparison(f"{number:05d}", user, asked, Text(first), Text(second), 1.0))
    return assign_splits(recorder.chunk().pairs, ComparisonsConfig(**settings))


def survey(people: int, statements: int, answers: int) -> list[Answer]:
    """Return votes of people on statements, each on others of them."""
    return [
        (f"p{p}", f"Statement {(p * 7 + n * 3) % statements}.", "Agree", "Disagree")
        for p in range(people)
        for n in range(answers)
    ]


def thousand_answers(people: int = 60, items: int = 200, each: int = 30) -> list[Answer]:
    """Return comparisons of the many answers to one question."""
    draws = np.random.default_rng(0)
    pairs = (draws.choice(items, 2, replace=False) for _ in range(people * each))
    return [
        (f"p{n % people}", "What shall we do?", f"answer {one}", f"answer {two}")
        for n, (one, two) in enumerate(pairs)
    ]


def units_read(pairs: pl.DataFrame) -> set[bytes]:
    names = [pairs["group_id"]]
    if "other_group_id" in pairs.columns:
        names.append(pairs["other_group_id"])
    return {name for column in names for name in column.drop_nulls()}


def require_no_leak(split: SplitPairs) -> None:
    """No group, or item, that anybody is evaluated on was trained on by seen users; no user is
    evaluated on what gave the shots."""
    pairs = split.pairs
    trained = units_read(pairs.filter(population="seen", split="train"))
    assert not trained & units_read(pairs.filter(pl.col("split") != "train"))
    unseen = pairs.filter(population="unseen")
    shots = units_read(unseen.filter(split="train"))
    assert not shots & units_read(unseen.filter(pl.col("split") != "train"))


def test_shared_answers_join_nothing() -> None:
    answers = survey(40, 60, 20)
    split = divided(answers)
    assert split.details.divided == "prompt+items"
    assert (split.details.shared_answers, split.details.prompt_groups) == (2, 60)
    assert set(split.pairs["split"]) == set(SPLITS)
    assert set(split.pairs["population"]) == {"seen", "unseen"}
    require_no_leak(split)


def test_without_the_rule_of_shared_answers_all_would_be_one_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(groups, "MOST_PROMPTS", 10**9)
    monkeypatch.setattr(groups, "LARGEST_SHARE", 1.0)
    assert divided(survey(40, 60, 20), grouping="prompt+items").details.prompt_groups == 1


@pytest.mark.parametrize(
    ("prompts", "under", "is_shared"),
    [(10, 2, False), (10, 3, True), (50, 10, False), (50, 11, True), (200, 20, False),
     (200, 21, True)],
)  # fmt: skip
def test_an_item_under_many_prompts_is_a_shared_answer(
    prompts: int, under: int, is_shared: bool
) -> None:
    answers = [
        (f"p{n % 12}", f"question {n}?", "stock phrase" if n < under else f"good {n}", f"bad {n}")
        for n in range(prompts)
    ]
    details = divided(answers, grouping="prompt+items").details
    assert details.shared_answers == is_shared
    assert details.prompt_groups == (prompts if is_shared else prompts - under + 1)


def test_one_question_with_many_answers_is_divided_by_them() -> None:
    answers = thousand_answers()
    split = divided(answers)
    assert split.details.divided == "items"
    assert "1 prompt groups, the largest of 1,800 of 1,800 pairs" in str(split.details.why)
    require_no_leak(split)
    reasons = dict(split.rejects["reason"].value_counts().iter_rows())
    assert len(split.pairs) + sum(reasons.values()) == len(answers)
    # .6, .2 and .2 of the items: .36 + .04 + .04 of the comparisons have both in one split
    assert reasons["items-in-two-splits"] / len(answers) == pytest.approx(0.56, abs=0.05)
    cells = split.pairs.group_by("split", "population").len()
    assert len(cells) == 6, "each split has both populations"


def test_questions_of_the_same_many_answers_are_divided_by_items_and_not_by_seven_questions() -> (
    None
):
    answers = [(u, f"{q} {n % 7}", a, b) for n, (u, q, a, b) in enumerate(thousand_answers())]
    split = divided([(u, q, f"{q} {a}", f"{q} {b}") for u, q, a, b in answers])
    assert split.details.divided == "items"
    require_no_leak(split)


def test_an_item_that_all_others_are_compared_with_is_no_unit() -> None:
    answers = [
        (f"p{n % 30}", "", *(("usual", f"new {n % 300}") if n % 2 else (f"new {n % 300}", "usual")))
        for n in range(900)
    ]
    split = divided(answers)
    assert split.details.divided == "items"
    assert split.details.shared_answers == 1
    assert "items-in-two-splits" not in set(split.rejects["reason"])
    require_no_leak(split)


def test_chains_of_items_that_join_everything_are_divided_by_items() -> None:
    answers = [
        (f"p{n % 40}", f"question {n % 200}?", f"answer {n % 200}", f"answer {(n + 1) % 200}")
        for n in range(1200)
    ]
    assert divided(answers).details.divided == "items"
    by_prompt = divided(answers, grouping="prompt")
    assert by_prompt.details.divided == "prompt"
    assert by_prompt.details.prompt_groups == 200


def test_few_prompts_are_in_all_splits_whatever_their_hashes() -> None:
    for salt in ("a", "b", "c", "d"):
        answers = [
            (f"p{u}", f"question {q}?", f"good {q} {u % 3}", f"bad {q}")
            for u in range(12)
            for q in range(15)
        ]
        split = divided(answers, salt=salt)
        seen = split.pairs.filter(population="seen")
        sizes = dict(seen.group_by("split").agg(pl.col("group_id").n_unique()).iter_rows())
        assert sizes == {"train": 9, "val": 3, "test": 3}


def test_places_next_to_a_cut_fill_a_split_that_is_too_small() -> None:
    places = np.array([0.1, 0.5, 0.79, 0.7, 0.2, 0.85])
    assert divided_by_hash(places, (0.8, 0.9), (0, 0)).tolist().count("test") == 0
    found = divided_by_hash(places, (0.8, 0.9), (1, 2))
    assert found.tolist() == ["train", "train", "test", "val", "train", "test"]
    assert [fewest_of(count) for count in (2, 3, 9, 10, 49, 50, 1000)] == [0, 1, 1, 2, 9, 10, 10]


def test_no_test_is_one_question() -> None:
    for salt in map(str, range(10)):
        answers = survey(20, 40, 15) + [
            (f"p{n % 20}", "The large one.", "Agree", "Disagree") for n in range(200)
        ]
        pairs = divided(answers, salt=salt).pairs
        large = pairs["group_id"].value_counts().sort("count")["group_id"][-1]
        assert set(pairs.filter(group_id=large)["split"]) == {"train"}


def test_nine_of_ten_new_users_stay_in_a_small_survey() -> None:
    split = divided(survey(40, 60, 37))
    kept = split.pairs["user_id"].n_unique()
    assert sum(split.details.users_left_out.values()) == 40 - kept <= 1
    assert split.pairs.filter(population="unseen", split="test")["user_id"].n_unique() >= 5
    assert split.details.min_pairs in (1, 2, 5)
    strict = divided(survey(40, 60, 37), min_pairs=30)
    assert "unseen" not in set(strict.pairs["population"])
    assert strict.details.min_pairs == 30
    lost = strict.details.users_left_out
    assert sum(lost.values()) == 40 - strict.pairs["user_id"].n_unique() > 5


def test_min_pairs_is_what_nine_of_ten_new_users_have() -> None:
    many = divided(survey(60, 200, 190))
    assert many.details.min_pairs == 10
    assert many.details.users_left_out == {}
    few = divided(survey(60, 60, 8))
    assert few.details.min_pairs == 1
    assert few.details.evaluated_share == pytest.approx(0.15, abs=0.1)


def test_people_with_too_few_answers_are_counted() -> None:
    answers = [*survey(20, 40, 30), ("rare", "Statement 1.", "Agree", "Disagree")]
    split = divided(answers, min_answers=5)
    assert split.details.users_left_out["too-few-answers"] == 1
    nobody = divided(answers, min_answers=100)
    assert nobody.details.users_left_out == {"too-few-answers": 21}
    assert nobody.pairs.is_empty()


def own_pairs(answers: Sequence[Answer], name: str = "own.jsonl") -> str:
    keys = ("user_id", "prompt", "chosen", "rejected")
    rows = [dict(zip(keys, answer, strict=True)) for answer in answers]
    Path(name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    return name


def config_of(configure: Configure, source: str | None, **settings: Any) -> Config:
    given = {"source": source, **settings}
    return configure({"dataset": "pairs", "data.pairs": given, "encoder": "tiny-text"})


@pytest.mark.parametrize("answers", [survey(30, 50, 20), thousand_answers(30, 120, 20)])
def test_groups_are_stored_and_are_those_of_intervals_and_folds(
    configure: Configure, answers: list[Answer]
) -> None:
    dataset = pipeline.prepare(config_of(configure, own_pairs(answers)))
    pairs = dataset.pairs()
    assert pairs["group_id"].null_count() == 0
    assert with_prompt_group(pairs)["prompt_group"].to_list() == [
        name.hex() for name in pairs["group_id"]
    ]
    assert dataset.card.splitting.divided in ("prompt+items", "items")
    for fold in Fold.all_of(PreparedDataset.open(dataset.folder), 3):
        tested = units_read(fold.pairs("test"))
        assert tested
        assert not tested & units_read(fold.pairs("train", "seen"))
        assert not tested & units_read(fold.pairs("val", "seen"))


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (survey(20, 2, 2), "it takes at least three prompts, or fifteen items of one prompt"),
        ([(f"p{n}", "One?", "yes", "no") for n in range(9)], "the val split of the seen users is"),
    ],
)
def test_what_cannot_be_divided_says_what_it_takes(
    configure: Configure, answers: list[Answer], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        pipeline.prepare(config_of(configure, own_pairs(answers)))


def test_a_folder_of_an_earlier_version_is_prepared_anew(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pal.dataset import DatasetCard

    source = own_pairs(survey(20, 40, 15))
    with monkeypatch.context() as earlier:
        earlier.setattr(DatasetCard, "version", DatasetCard.version - 1)
        old = pipeline.prepare(config_of(configure, source))
    card = old.folder / "dataset.json"
    was = card.read_bytes()
    with pytest.raises(DataError, match="is not known; run: pal prepare --dataset pairs --source"):
        pipeline.prepare(config_of(configure, None))
    assert card.read_bytes() == was
    new = pipeline.prepare(config_of(configure, source))
    assert new.card.splitting.divided is not None
    assert PreparedDataset.open(new.folder).card == new.card
