"""What the doctor says of the user's own files: what was recognised, and the cause of what is
wrong."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from pal.cli.app import app

ROWS = [f"u{n % 4},p{n},good {n},bad {n},{'AB'[n % 2]}" for n in range(60)]
HEADER = "user_id,prompt,first,second,label"


@pytest.fixture(autouse=True)
def much_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**12))


def doctor(*options: str, kind: str = "pairs", text: str | None = None) -> str:
    """Return what the doctor says of a file, which leads to nobody but its reader."""
    if text is not None:
        Path("a.csv").write_text(text, encoding="utf-8")
    before = set(Path().rglob("*"))
    arguments = ["doctor", "--dataset", kind, "--source", "a.csv", *options]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert set(Path().rglob("*")) == before, "the doctor writes nothing"
    assert "pal doctor" not in result.stdout, "who has just asked the doctor"
    return result.stdout


def sheet(header: str = HEADER) -> str:
    return "\n".join([header, *ROWS])


def test_a_dataset_that_nobody_described_and_a_torchvision_of_another_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    said = CliRunner().invoke(app, ["doctor", "--dataset", "votse"]).stdout
    assert "did you mean 'votes'?" in said
    assert "pal init --source FILE describes a file of yours" in said
    assert "-> pal looks into pipeline.yaml of this folder" in said
    assert "PROBLEM  software: torchvision cannot be imported beside it" in said
    assert said.splitlines()[-1] == "2 problems"


def test_what_was_recognised_is_said() -> None:
    said = doctor(text=sheet().replace(",", ";").replace("bad 7", ""))
    for words in (
        "ok       file: a.csv: CSV, semicolons between cells, UTF-8, 60 rows",
        "ok       column: second: text, 59 filled, 1 empty",
        "read as {user_id: user_id, prompt: prompt, first: first, second: second, label: label}",
        "label: 'a' is 1 (30), 'b' is 0 (30)",
        "PROBLEM  dataset pairs: 1 rows empty-cell, e.g. a.csv:0000009: nothing stands in second",
        "-> fill in the cells, or remove the rows",
        "dataset pairs: cells: ",
    ):
        assert words in said
    shown = [line for line in said.splitlines() if line.startswith("ok       row: ")]
    assert len(shown) == 5
    for line in shown:
        number = line.split("prompt 'p")[1].split("'")[0]
        assert f"first 'good {number}'; second 'bad {number}'; prefers" in line
        assert line.endswith("prefers the first" if int(number) % 2 == 0 else "the second")


def test_columns_by_other_names_are_proposed_and_the_proposal_is_right() -> None:
    said = doctor(text=sheet("worker,Question,answer_1,answer_2,Winner"))
    line = next(line for line in said.splitlines() if "put into pipeline.yaml: " in line)
    proposal = yaml.safe_load(line.partition("pipeline.yaml: ")[2])
    wanted = {"user_id": "worker", "prompt": "Question", "first": "answer_1",
              "second": "answer_2", "label": "Winner"}  # fmt: skip
    assert proposal == {"data": {"pairs": {"columns": wanted}}}
    Path("pipeline.yaml").write_text(yaml.safe_dump(proposal))
    assert "60 comparisons of a.csv can be used" in doctor()


@pytest.mark.parametrize(
    ("text", "options", "kind", "words"),
    [
        (sheet(), ("--set=data.pairs.columns.label=lable",), "pairs",
         "data.pairs.columns.label names the column 'lable', which no row has; did you mean "
         "'label'? the columns are user_id, prompt, first, second, label"),
        (sheet(HEADER.replace("label", "odd")), (), "pairs",
         "have no chosen and rejected, nor label; their columns are user_id, "
         "prompt, first, second, odd; name yours with data.pairs.columns: {our name: yours}"),
        (sheet().replace(",A", ",1").replace(",B", ",-1"), (), "pairs",
         'data.pairs.values.label: {"-1": ..., "1": ...}'),
        ("who,what,vote\n1,a,1\n2,b,0\n", (), "votes",
         "have no user_id and item; their columns are who, what, vote"),
        # not "1,446 rows no-user": nobody would look for the cause in the columns
        ("Teilnehmer,item,vote\np,a,1\nq,b,0\n", (), "votes",
         "have no user_id; their columns are Teilnehmer, item, vote; name yours with "),
        ("who,item,rating\np,a,1\nq,b,0\n", (), "ratings",
         "if these are the right ones, set data.ratings.columns: {user_id: who}"),
    ],
)  # fmt: skip
def test_the_cause_is_named(text: str, options: tuple[str, ...], kind: str, words: str) -> None:
    assert words in doctor(*options, kind=kind, text=text)


def test_images_within_rows_are_looked_at_and_not_written() -> None:
    dot = "data:image/gif;base64,R0lGODdhAQABAIAAAAAAAAAAACwAAAAAAQABAAACAkQBADs="
    rows = [{"chosen": dot, "rejected": f"data:image/gif;base64,AAA{n}"} for n in range(4)]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["doctor", "--dataset", "pairs", "--source", "a.jsonl"]
    said = CliRunner().invoke(app, arguments).stdout
    assert "column: chosen: text, 4 filled, 4 that look like images" in said
    assert "4 comparisons of a.jsonl can be used" in said
    assert not Path("data").exists()


def decimals(kind: str, answers: Sequence[str]) -> str:
    column = {"pairs": "label", "votes": "vote", "ratings": "rating"}[kind]
    if kind == "pairs":
        rows = [f"u;p{n};good {n};bad {n};{answer}" for n, answer in enumerate(answers)]
        return "\n".join(["user_id;prompt;first;second;label", *rows])
    rows = [f"u;text, {n};{answer}" for n, answer in enumerate(answers)]
    return "\n".join([f"user_id;item;{column}", *rows])


@pytest.mark.parametrize(
    ("kind", "answers", "lines"),
    [
        ("ratings", ["1,75", "+3,5", "5", "4,0"] * 5,
         ["rating holds '1.75' (5), '+3.5' (5), '5' (5), '4' (5)",
          "rating: 15 numbers with a decimal comma; 1,5 is 1.5",
          "comparisons of a.csv can be used"]),
        ("pairs", ["0,25", "1,0", "0", "0,5"] * 10,
         ["'0.25' is 0.25 (10)", "label: 30 numbers with a decimal comma", "40 comparisons of"]),
        ("votes", ["1,0", "-1,0"] * 10,
         ["'1' is 1 (10), '-1' is 0 (10)", "vote: 20 numbers with a decimal comma",
          "20 comparisons of"]),
    ],
)  # fmt: skip
def test_a_decimal_comma_is_read_where_commas_stand_between_no_cells(
    kind: str, answers: list[str], lines: list[str]
) -> None:
    said = doctor(kind=kind, text=decimals(kind, answers))
    for line in lines:
        assert line in said
    assert "bad-label" not in said
    assert kind == "pairs" or "'text, " in said, "a comma in a text stays"


def test_marks_that_nobody_can_be_sure_of_are_refused_with_what_to_write() -> None:
    said = doctor(kind="ratings", text=decimals("ratings", ["1,75", "5", "3", "1.234,5"]))
    assert "1 rows bad-label, e.g. a.csv:0000005: the rating is '1.234,5', no finite number" in said
    assert "write it with a point before the decimals and no other mark" in said
    quoted = 'user_id,item,rating\nu,a,"1,75"\nu,b,3\nu,c,5\n'
    assert "the rating is '1,75', no finite number; write it with a point" in doctor(
        kind="ratings", text=quoted
    ), "between commas 1,75 may be two answers"
