"""Answers of real people as their platforms export them, and the user's own votes and ratings."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pal import pipeline
from pal.config import Config
from pal.dataset import FEWEST, PreparedDataset
from pal.errors import DataError
from pal.evaluate.free import free_margins

Configure = Callable[..., Config]
REAL = Path(__file__).resolve().parents[2] / "shared" / "real"
PEOPLE, STATEMENTS = 24, 40


def write_csv(path: Path, rows: list[list[Any]]) -> None:
    with open(path, "w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def prepared(configure: Configure, kind: str, source: str, **settings: Any) -> PreparedDataset:
    given = {"kind": kind, "source": source, **settings}
    config = configure({"dataset": "mine", "data.mine": given, "encoder": "tiny-text"})
    return pipeline.prepare(config)


def vote(person: int, statement: int) -> int:
    """Odd people agree with odd statements, even ones with even; each passes now and then."""
    return 0 if (person + statement) % 9 == 0 else 1 if (person + statement) % 2 == 0 else -1


@pytest.fixture
def polis() -> str:
    Path("polis").mkdir()
    numbers = range(STATEMENTS)
    comments = [[n, f"Statement {n} is right.", -1 if n == 3 else 1] for n in numbers]
    write_csv(Path("polis/comments.csv"), [["comment-id", "comment-body", "moderated"], *comments])
    people = [[p, *(vote(p, n) if n != p else "" for n in numbers)] for p in range(PEOPLE)]
    people.append([99, *[1] * 3, *[""] * (STATEMENTS - 3)])
    write_csv(Path("polis/participants-votes.csv"), [["participant", *numbers], *people])
    return "polis"


def test_a_polis_export_is_votes_and_every_vote_is_told(configure: Configure, polis: str) -> None:
    card = prepared(configure, "polis", polis, min_answers=10, min_pairs=2).card
    votes = sum(1 for p in range(PEOPLE) for n in range(STATEMENTS) if n != p) + 3
    assert card.counts.pairs + sum(card.rejects.values()) == votes
    assert card.rejects["too-few-answers"] == 3
    passes = sum(vote(p, n) == 0 for p in range(PEOPLE) for n in range(STATEMENTS) if n != p)
    assert card.rejects["pass"] == passes
    assert "Computational Democracy Project" in card.licence
    half = prepared(configure, "polis", polis, passes="half", moderated="drop").card
    assert half.counts.ties > 0
    assert half.rejects["moderated"] == PEOPLE - 1, "who all saw it but for one"


def test_votes_in_rows_are_those_in_columns(configure: Configure, polis: str) -> None:
    wide = prepared(configure, "polis", polis)
    rows = [
        [p, n, value]
        for p in range(PEOPLE)
        for n in range(STATEMENTS)
        for value in ((-vote(p, n), vote(p, n)) if n == 0 else (vote(p, n),))
        if n != p
    ]
    rows += [[99, n, 1] for n in range(3)]
    Path("polis/participants-votes.csv").unlink()
    write_csv(Path("polis/votes.csv"), [["voter-id", "comment-id", "vote"], *rows])
    assert prepared(configure, "polis", polis).pairs_digest == wide.pairs_digest


def test_own_votes_are_those_of_polis(configure: Configure, polis: str) -> None:
    words = {1: "oui", -1: "non", 0: "pass"}
    rows = [
        [p, f"Statement {n} is right.", words[vote(p, n)]]
        for p in range(PEOPLE)
        for n in range(STATEMENTS)
        if n != p
    ]
    rows += [[99, f"Statement {n} is right.", "oui"] for n in range(3)]
    write_csv(Path("own.csv"), [["user_id", "what", "vote"], *rows])
    values = {"vote": {"oui": 1, "non": 0}}
    own = prepared(configure, "votes", "own.csv", columns={"item": "what"}, values=values)
    assert own.pairs_digest == prepared(configure, "polis", polis).pairs_digest


def test_the_own_mean_of_a_user_is_how_often_the_user_agrees(
    configure: Configure, polis: str
) -> None:
    dataset = prepared(configure, "polis", polis, min_answers=4)
    train = dataset.pairs("train", "seen")
    test = dataset.pairs("test", "seen")
    margin = free_margins(dataset, test, "user-mean")
    texts = dataset.items(["text", "context", "item_id"]).to_pylist()
    agree = next(
        item["item_id"] for item in texts if (item["text"], item["context"]) == ("Agree", None)
    )
    of_agree = (
        pl.Series(margin)
        * test.select(pl.when(pl.col("first_id") == agree).then(1.0).otherwise(-1.0)).to_series()
    )
    said = train.with_columns(
        yes=pl.when(pl.col("first_id") == agree).then("label").otherwise(1.0 - pl.col("label"))
    )
    rate = said.group_by("user_id").agg(pl.col("yes").mean())
    both = test.select("user_id").with_columns(margin=of_agree).unique().join(rate, on="user_id")
    assert len(both) == test["user_id"].n_unique(), "one margin for each user"
    assert both["yes"].n_unique() > 5
    assert both.select(pl.corr("margin", "yes")).item() > 0.9


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "is no Polis export: it needs comments.csv"),
        ([["id", "text"], [1, "x"]], "has no column comment-id, comment-body, as a Polis export"),
    ],
)
def test_what_is_no_export_is_one_sentence(
    configure: Configure, polis: str, rows: list[list[Any]] | None, words: str
) -> None:
    path = Path("polis/comments.csv")
    path.unlink()
    if rows is not None:
        write_csv(path, rows)
    with pytest.raises(DataError, match=words):
        prepared(configure, "polis", polis)


def test_a_remesh_export_is_comparisons_with_the_ties_that_votes_say(configure: Configure) -> None:
    Path("remesh").mkdir()
    about = [["Name", "A talk"], ["", ""]]
    thoughts = [
        [f"q{n % 30}", f"Question {n % 30}?", "p", f"t{n}", f"Thought {n}."] for n in range(180)
    ]
    header = ["Question ID", "Question Text", "Participant ID", "Thought ID", "Thought Text"]
    write_csv(Path("remesh/talk_verbatim_map.csv"), [*about, header, *thoughts])
    said = ["Thought A", "Thought B", "I agree with both", "I disagree with both", "I'm not sure"]
    votes = [
        [f"q{n % 30}", f"p{n % 7}", f"t{n % 30}", f"t{n % 30 + 30 * (1 + n % 4)}", said[n % 5]]
        for n in range(300)
    ]
    votes.append(["q0", "p0", "t0", "gone", "Thought A"])
    header = ["Question ID", "Participant ID", "Thought A ID", "Thought B ID", "Vote"]
    write_csv(Path("remesh/talk_preference.csv"), [*about, header, *votes])
    card = prepared(configure, "remesh", "remesh", grouping="prompt", salt="v2").card
    assert card.counts.pairs + sum(card.rejects.values()) == 301
    assert (card.rejects["disagree-with-both"], card.rejects["not-sure"]) == (60, 60)
    assert card.rejects["no-text"] == 1
    assert card.counts.ties > 0
    half = prepared(configure, "remesh", "remesh", grouping="prompt", salt="v2", not_sure="half")
    assert "not-sure" not in half.card.rejects


def test_ratings_are_compared_within_a_user_and_a_prompt(configure: Configure) -> None:
    rows = [
        [f"u{u}", f"Question {q}?", f"Answer {a} to {q}.", 1 + (a + u) % 5]
        for u in range(8)
        for q in range(30)
        for a in range(4)
    ]
    rows += [["u0", "Question 0?", "Another.", "many"], ["", "Question 0?", "Another.", 3]]
    write_csv(Path("stars.csv"), [["user_id", "prompt", "response", "stars"], *rows])
    dataset = prepared(configure, "ratings", "stars.csv", most_per_user=50, least_difference=2)
    card, pairs = dataset.card, dataset.pairs()
    assert (card.rejects["bad-label"], card.rejects["no-user"]) == (1, 1)
    assert pairs.group_by("user_id").len()["len"].max() == 50
    prompts = pairs.group_by("user_id", "prompt_id").len()["len"]
    assert int(prompts.max()) - int(prompts.min()) <= 1, "evenly over prompts"  # type: ignore[arg-type]
    assert set(pairs["label"]) <= {0.0, 1.0}
    soft = prepared(configure, "ratings", "stars.csv", strength="soft").pairs()
    assert set(soft["label"].round(3)) <= {0.125, 0.25, 0.375, 0.0, 0.625, 0.75, 0.875, 1.0}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no answers of real people at {REAL}")
def test_real_people_come_in(configure: Configure) -> None:
    source = str(REAL / "polis" / "15-per-hour-seattle")
    card = prepared(configure, "polis", source).card
    with open(REAL / "polis/15-per-hour-seattle/participants-votes.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    votes = sum(bool(v) for row in rows for k, v in row.items() if k is not None and k.isdigit())
    assert card.counts.pairs + sum(card.rejects.values()) == votes
    splitting = card.splitting
    assert (splitting.divided, splitting.shared_answers) == ("prompt+items", 2)
    assert splitting.prompt_groups == 54
    for cell in ("val_seen", "test_seen", "val_unseen", "test_unseen"):
        assert card.counts.cell_users[cell] >= FEWEST
        assert card.counts.cell_groups[cell] >= FEWEST
    said = [row for row in rows if any(row[k] in ("1", "-1") for k in row if k and k.isdigit())]
    left_out = sum(splitting.users_left_out.values())
    assert card.counts.seen_users + card.counts.unseen_users + left_out == len(said)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no answers of real people at {REAL}")
def test_thirteen_questions_with_thousands_of_answers_are_divided_by_the_answers(
    configure: Configure,
) -> None:
    dataset = prepared(configure, "remesh", str(REAL / "polarized-issues"))
    card, pairs = dataset.card, dataset.pairs()
    assert card.splitting.divided == "items"
    assert card.counts.pairs + sum(card.rejects.values()) == 18_135
    assert card.counts.unseen_users > 100

    def items(part: pl.DataFrame) -> set[bytes]:
        return {*part["group_id"], *part["other_group_id"]}

    trained = items(pairs.filter(population="seen", split="train"))
    assert not trained & items(pairs.filter(pl.col("split") != "train"))
