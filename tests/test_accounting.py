"""No row of any source vanishes: after splits each is used, or left out with one reason."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import isabstract
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pil

from pal.config import load
from pal.data.parts import read_parts
from pal.data.sources import adapter_for, adapters
from pal.data.sources.personalllm import MODELS

ROWS = 240
ODD: list[Any] = [{}, {"user_id": None}, 5, "no row"]
Row = dict[str, Any]


def pair(n: int) -> Row:
    return {"user_id": f"u{n % 12}", "prompt": f"p{n}", "chosen": f"good {n}", "rejected": "bad"}


def vote(n: int) -> Row:
    said = "what" if n % 60 == 0 else ("agree", "disagree", "pass", None)[n % 4]
    return {"user_id": f"u{n % 12}", "item": f"item {n // 4}", "vote": said}


def rating(n: int) -> Row:
    stars = (1, 2, 5, None)[n // 12 % 4]
    return {"user_id": f"u{n % 12}", "prompt": f"p{n // 48}", "item": f"i{n}", "rating": stars}


def transcripts(n: int) -> Row:
    start = f"\n\nHuman: p{n}\n\nAssistant:"
    return {"chosen": f"{start} good", "rejected": f"{start} bad {n}" if n % 5 else f"{start} good"}


def summaries(n: int) -> Row:
    both = [{"text": f" {'long ' * (n % 3)}{n}", "policy": "sup4"}, {"text": " s", "policy": "sup"}]
    both[1]["policy"] = "ppo" if n % 7 == 0 else "sup"
    rest = {"choice": n % 2, "worker": f"w{n % 3}", "split": ("train", "valid1")[n % 4 == 0]}
    return {"info": {"post": f"post {n // 2}" if n % 9 else None}, "summaries": both, **rest}


def conversation(n: int) -> Row:
    said = [{"turn": 0, "role": "user", "content": f"question {n}"}]
    answers = [
        {"turn": 0, "role": "model", "content": f"answer {k}", "score": k, "if_chosen": k == n % 3}
        for k in range(2)
    ]
    return {"conversation_id": f"c{n}", "user_id": f"u{n % 12}",
            "conversation_history": [*said, *answers]}  # fmt: skip


def rewards(n: int) -> Row:
    row: Row = {"prompt": f"p{n}" if n % 6 else ""}
    for k in range(1, 9):
        row[f"response_{k}"] = f"response {k} to {n}"
        row |= {f"response_{k}_{model}": 0.1 * ((k * n) % 7) for model in MODELS}
    return row


def attributes(n: int) -> Row:
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    marks = [{name: {"Rating": str((k + i) % 3)} for i, name in enumerate(names)} for k in (1, 2)]
    rated = [{"response": f"r{k} {n}", "annotations": one} for k, one in enumerate(marks)]
    return {"instruction": f"p{n}", "completions": rated[: 1 + n % 4]}


def picture(n: int) -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (2, 2), (n % 250, n // 250, 1)).save(out, "PNG")
    return out.getvalue()


def pick(n: int) -> Row:
    label = (1.0, 0.0, 0.5, 7.0)[n % 4]
    return {"caption": f"c{n}", "user_id": n % 12, "label_0": label, "label_1": 1.0 - min(label, 1),
            "jpg_0": picture(n), "jpg_1": picture(n + 1000)}  # fmt: skip


def json_lines(name: str, make: Callable[[int], Row]) -> Callable[[], int]:
    """Return what writes good rows and odd ones, and says how many rows there are."""

    def write() -> int:
        rows = [*(make(n) for n in range(ROWS)), *ODD]
        Path("raw", name).parent.mkdir(parents=True, exist_ok=True)
        Path("raw", name).write_text("\n".join(map(json.dumps, rows)))
        return len(rows)

    return write


def parquet() -> int:
    Path("raw").mkdir()
    for split, numbers in {"train": range(160), "validation": range(160, 200)}.items():
        pq.write_table(pa.Table.from_pylist(list(map(pick, numbers))), f"raw/{split}-0.parquet")
    return 200


def table(name: str, rows: list[list[Any]]) -> None:
    Path("raw").mkdir(exist_ok=True)
    with open(Path("raw", name), "w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def polis() -> int:
    table("comments.csv", [["comment-id", "comment-body"], *([n, f"s{n}"] for n in range(29))])
    people = [[p, *((p * n) % 4 - 1 if n % 7 else "" for n in range(30))] for p in range(20)]
    table("participants-votes.csv", [["participant", *range(30)], *people])
    return 20 * 25  # of 30 statements, without every seventh


def remesh() -> int:
    words = ["Question ID", "Question Text", "Thought ID", "Thought Text"]
    table(
        "a_verbatim_map.csv", [words, *([f"q{n % 30}", "?", f"t{n}", f"T {n}"] for n in range(99))]
    )
    said = ["Thought A", "Thought B", "I agree with both", "I'm not sure", "what"]
    votes = [
        [f"q{n % 30}", f"p{n % 7}", f"t{n % 30}", f"t{n % 30 + 30 * (1 + n % 3)}", said[n % 5]]
        for n in range(200)
    ]
    header = ["Question ID", "Participant ID", "Thought A ID", "Thought B ID", "Vote"]
    table("a_preference.csv", [header, *votes])
    return 200


@dataclass(frozen=True)
class Source:
    """What writes a source, and how its rows become comparisons."""

    write: Callable[[], int]
    settings: dict[str, Any] = field(default_factory=dict)
    is_one_to_one: bool = True
    """whether a row is one comparison; else a row is several, or several rows are one"""


FEW = {"users": 6, "pairs_per_user": 30}
SOURCES = {
    "pairs": Source(json_lines("a.jsonl", pair)),
    "votes": Source(json_lines("a.jsonl", vote)),
    "ratings": Source(json_lines("a.jsonl", rating), is_one_to_one=False),
    "hh": Source(json_lines("helpful-base/train.jsonl", transcripts), {"users_per_subset": 3}),
    "tldr-length": Source(json_lines("batch3.json", summaries)),
    "tldr-real": Source(json_lines("batch3.json", summaries)),
    "prism": Source(json_lines("conversations.jsonl", conversation)),
    "personalllm": Source(json_lines("train.jsonl", rewards), FEW, is_one_to_one=False),
    "ultrafeedback-p": Source(json_lines("flan.jsonl", attributes), FEW, is_one_to_one=False),
    "pickapic": Source(parquet),
    "pickafilter": Source(parquet),
    "polis": Source(polis),
    "remesh": Source(remesh),
}
SIZES = {
    "users": 6, "unseen_users": 4, "validation_users": 2,
    "pairs_per_user": 10, "validation_pairs_per_user": 5, "test_pairs_per_user": 3,
}  # fmt: skip


def adapter_of(kind: str, **settings: Any) -> Any:
    given = {"kind": kind, **settings}
    config = load(None, (), {"dataset": "mine", "data.mine": given}).config.dataset_config()
    return adapter_for("mine", config)(config)


def places(source_row: str) -> list[str]:
    """Return the rows that a comparison, or a reject, is made of."""
    return [one.partition("#")[0] for one in source_row.split(" ")]


@pytest.mark.parametrize("kind", SOURCES)
def test_used_and_left_out_rows_are_all_rows(kind: str) -> None:
    source = SOURCES[kind]
    rows = source.write()
    adapter = adapter_of(kind, source="raw", **source.settings)
    read = read_parts(adapter.parts(), None)
    split = adapter.assign_splits(read.pairs)
    used = split.pairs["source_row"].to_list()
    lost = [*read.rejects["source_row"], *split.rejects["source_row"]]
    assert used
    assert lost
    told = {place for one in (*used, *lost) for place in places(one)}
    assert len(told) == rows, "each row is used or left out"
    if source.is_one_to_one:
        assert len(used) + len(lost) == rows, "and only once"


@pytest.mark.parametrize("kind", ["demo", "persona", "simulated"])
def test_users_who_are_made_up_have_the_pairs_that_were_asked_for(kind: str) -> None:
    options: dict[str, Any] = {**SIZES, "groups": 2}
    if kind == "persona":
        Path("raw").mkdir()
        names = ["one", "two"]
        for name in names:
            lines = [
                {"question": f"{name} {n}?", "answer_matching_behavior": (" Yes", " No")[n % 2]}
                for n in range(150)
            ]
            Path(f"raw/{name}.jsonl").write_text("\n".join(map(json.dumps, [*lines, lines[0], 5])))
        options |= {"source": "raw", "personas": names}
    read = read_parts(adapter_of(kind, **options).parts(), None)
    assert len(read.pairs) == 12 * 10 + (6 + 2) * 5 + (6 + 4) * 3
    assert len(read.rejects) == (4 if kind == "persona" else 0)


def test_every_source_is_counted() -> None:
    named = {name for name, adapter in adapters().items() if not isabstract(adapter)}
    assert named == {*SOURCES, "demo", "persona", "simulated"}
