"""One odd row costs only itself: in every source of rows, every kind of file, whatever is odd."""

from __future__ import annotations

import copy
import gzip
import json
import os
from collections.abc import Callable
from inspect import isabstract
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pal.config import Config
from pal.data.build import prepare
from pal.data.comparisons import UNEXPECTED, Chunk
from pal.data.parts import read_parts
from pal.data.rows import RowAdapter
from pal.data.sources import adapter_for, adapters
from pal.data.sources.personalllm import MODELS
from pal.errors import DataError, PalError
from pal.rows import DEEPEST, BadRow, rows_of_array, rows_of_lines

Configure = Callable[..., Config]
Row = dict[str, Any]


def pairs_row(n: int) -> Row:
    return {"user_id": f"u{n % 2}", "prompt": f"p{n}", "chosen": f"good {n}", "rejected": "bad"}


def sided_row(n: int) -> Row:
    sides = {"first": [{"role": "assistant", "content": f"good {n}"}], "second": "bad"}
    sides["second"] = [{"role": "assistant", "content": "bad"}]  # type: ignore[assignment]
    prompt = [{"role": "user", "content": f"p{n}"}]
    return {"user_id": n % 2, "prompt": prompt, **sides, "label": n % 2, "split": "train"}


def hh_row(n: int) -> Row:
    start = f"\n\nHuman: p{n}\n\nAssistant:"
    return {"chosen": f"{start} good", "rejected": f"{start} bad {n}"}


def tldr_row(n: int) -> Row:
    summaries = [{"text": f" long summary {n}", "policy": "sup4"}, {"text": " s", "policy": "sup4"}]
    info = {"id": f"t{n}", "post": f"post {n}"}
    rest = {"choice": n % 2, "worker": f"w{n % 2}", "split": "train"}
    return {"info": info, "summaries": summaries, **rest}


def prism_row(n: int) -> Row:
    history = [{"turn": 0, "role": "user", "content": f"question {n}"}]
    history += [
        {"turn": 0, "role": "model", "content": f"answer {k}", "score": 9 - k, "if_chosen": not k}
        for k in range(2)
    ]  # type: ignore[misc]
    return {"conversation_id": f"c{n}", "user_id": f"u{n % 2}", "conversation_history": history}


def utterance_row(n: int) -> Row:
    said = {"user_prompt": f"question {n // 2}", "model_response": f"answer {n % 2}", "turn": 0}
    ids = {"conversation_id": f"c{n // 2}", "user_id": "u"}
    return {**ids, **said, "score": n % 2, "if_chosen": n % 2 == 1}


def personalllm_row(n: int) -> Row:
    row: Row = {"prompt": f"p{n}"}
    for k in range(1, 9):
        row[f"response_{k}"] = f"response {k}"
        row |= {f"response_{k}_{model}": 0.1 * (k + n) for model in MODELS}
    return row


def ultrafeedback_row(n: int) -> Row:
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    completions = [
        {"response": f"r{k}", "annotations": {name: {"Rating": str(k)} for name in names}}
        for k in (1, 2)
    ]
    return {"instruction": f"p{n}", "completions": completions}


def votes_row(n: int) -> Row:
    return {"user_id": f"u{n % 2}", "item": f"item {n}", "vote": ("agree", -1)[n % 2]}


def ratings_row(n: int) -> Row:
    return {"user_id": "u", "prompt": "p", "item": f"item {n}", "rating": n}


UNCONTROVERSIAL = {"users": 4, "controversial": False}
SOURCES: dict[str, tuple[str, str, Callable[[int], Row], dict[str, Any]]] = {
    "pairs": ("pairs", "rows.jsonl", pairs_row, {}),
    "pairs with sides": ("pairs", "rows.jsonl", sided_row, {}),
    "hh": ("hh", "helpful-base/train.jsonl", hh_row, {}),
    "tldr-length": ("tldr-length", "batch3.json", tldr_row, {}),
    "tldr-real": ("tldr-real", "batch3.json", tldr_row, {}),
    "prism": ("prism", "conversations.jsonl", prism_row, {}),
    "prism by scores": ("prism", "conversations.jsonl", prism_row, {"rule": "scores"}),
    "prism by utterance": ("prism", "utterances.jsonl", utterance_row, {}),
    "personalllm": ("personalllm", "train.jsonl", personalllm_row, {"users": 2}),
    "ultrafeedback-p": ("ultrafeedback-p", "flan.jsonl", ultrafeedback_row, UNCONTROVERSIAL),
    "votes": ("votes", "votes.jsonl", votes_row, {}),
    "ratings": ("ratings", "ratings.jsonl", ratings_row, {}),
}
"""dataset, name of its file, its n-th good row, settings"""
HERE = [name for name, (dataset, *_) in SOURCES.items() if dataset in adapters()]
GOOD = 6
DEEP = b"[" * 9000 + b"]" * 9000
LINES = [
    b'{"prompt": "\xff"}',
    b"\xff\xfe\x00",
    b'{"n": 1' + b"0" * 5000 + b"}",
    b'{"n": ' + DEEP + b"}",
    b"[" * 100_000 + b"]" * 100_000,
    b"[1, 2]",
    b'"text"',
    b"5",
    b"null",
    b"NaN",
    b"-Infinity",
    b"{}",
    b'{"cut": tru}',
]
"""lines, and elements of arrays, that are no comparison in any source"""
VALUES: list[Any] = [
    None, True, False, 0, 1.0, -1, 7.5, float("nan"), float("inf"), 10**30, 10**400, "", " \n", "x",
    "half \ud800", "nul \0", "w " * 3000, {}, {"a": 1}, {"bytes": None, "path": None}, [], [1],
    [[]], [{}], [None], {"content": 5}, [{"role": 5, "content": [5]}],
]  # fmt: skip


def read(configure: Configure, source: str, folder: Path, name: str | None = None) -> Chunk:
    """Read a source as ``pal prepare`` does, up to the splits."""
    dataset, _, _, options = SOURCES[source]
    chosen = {"source": str(folder if name is None else folder / name), **options}
    config = configure({"dataset": dataset} | {f"data.{dataset}.{k}": v for k, v in chosen.items()})
    adapter = adapter_for(dataset, config.dataset_config())(config.dataset_config())
    return read_parts(adapter.parts(), None)


def write(folder: Path, source: str, lines: list[bytes]) -> None:
    path = folder / SOURCES[source][1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines))


def good_lines(source: str) -> list[bytes]:
    return [json.dumps(SOURCES[source][2](n)).encode() for n in range(GOOD)]


def compared(chunk: Chunk) -> list[tuple[Any, ...]]:
    """Return the comparisons, wherever their rows stand."""
    pairs = chunk.pairs.drop("source_row")
    return sorted((repr(row) for row in pairs.iter_rows()), key=str)  # type: ignore[arg-type]


def rows_told(chunk: Chunk) -> set[int]:
    """Return the numbers of the rows that became comparisons or rejects."""
    places = [*chunk.pairs["source_row"], *chunk.rejects["source_row"]]
    return {int(part.split("#")[0].rpartition(":")[2]) for p in places for part in p.split(" ")}


def test_every_source_of_rows_is_tried() -> None:
    tried = {dataset for dataset, *_ in SOURCES.values()}
    of_rows = {
        name
        for name, adapter in adapters().items()
        if issubclass(adapter, RowAdapter) and not isabstract(adapter)
    }
    assert of_rows <= tried, "add a good row of a new source to SOURCES"


@pytest.mark.parametrize("source", HERE)
def test_lines_that_are_no_row_are_rejects(
    source: str, configure: Configure, tmp_path: Path
) -> None:
    good = good_lines(source)
    write(tmp_path / "good", source, good)
    write(tmp_path / "both", source, [good[0], *LINES, *good[1:]])
    wanted, found = (read(configure, source, tmp_path / name) for name in ("good", "both"))
    assert len(wanted.pairs)
    assert compared(found) == compared(wanted)
    assert len(found.rejects) == len(wanted.rejects) + len(LINES)
    assert rows_told(found) >= set(range(1, len(LINES) + 1))
    assert UNEXPECTED not in set(found.rejects["reason"])


def places_in(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to all values within a row."""
    if not isinstance(value, dict | list):
        return [before]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [before] * bool(before) + [
        place for key, one in inner for place in places_in(one, (*before, key))
    ]


@pytest.mark.parametrize("source", HERE)
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.reuse, Phase.generate],  # the reject's message says enough; shrinking is slow
)
@given(data=st.data())
def test_an_odd_value_costs_only_its_row(
    source: str, configure: Configure, tmp_path: Path, data: st.DataObject
) -> None:
    make = SOURCES[source][2]
    odd = []
    for number in range(100, 112):
        row = copy.deepcopy(make(number))
        place = data.draw(st.sampled_from(places_in(row)))
        holder: Any = row
        for key in place[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()) or not isinstance(holder, dict):
            holder[place[-1]] = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
        else:
            del holder[place[-1]]
        odd.append(json.dumps(row).encode())
    good = good_lines(source)
    write(tmp_path / "good", source, good)
    write(tmp_path / "both", source, good + odd)
    wanted, found = (read(configure, source, tmp_path / name) for name in ("good", "both"))
    assert UNEXPECTED not in set(found.rejects["reason"]), found.rejects.rows()
    assert rows_told(found) >= set(range(GOOD + len(odd))) or source == "prism by utterance"
    if source in ("personalllm", "ultrafeedback-p", "ratings"):  # draws among all rows
        return
    assert set(compared(wanted)) <= set(compared(found))
    if not source.startswith("prism"):  # whose rows are several comparisons
        assert len(found.pairs) + len(found.rejects) == GOOD + len(odd)


def test_elements_of_a_json_array_are_read_one_by_one(configure: Configure, tmp_path: Path) -> None:
    good = good_lines("pairs")
    (tmp_path / "rows.json").write_bytes(
        b"\xef\xbb\xbf [\r\n" + b" ,\r\n".join([good[0], *LINES, b"", *good[1:]]) + b"\r\n] \n"
    )
    write(tmp_path / "good", "pairs", good)
    found = read(configure, "pairs", tmp_path, "rows.json")
    assert compared(found) == compared(read(configure, "pairs", tmp_path / "good"))
    assert len(found.rejects) == len(LINES) + 1


@given(
    st.lists(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
        )
    ),
    st.booleans(),
    st.none() | st.integers(0, 3),
)
def test_an_array_is_cut_as_json_reads_it(
    rows: list[Any], escaped: bool, indent: int | None
) -> None:
    raw = json.dumps(rows, ensure_ascii=escaped, indent=indent).encode("utf-8", "surrogatepass")
    found = list(rows_of_array(raw))
    assert len(found) == len(rows)
    for row, read_row in zip(rows, found, strict=True):
        if not isinstance(read_row, BadRow):
            assert read_row == row
        elif isinstance(row, dict):
            assert read_row.reason == "not UTF-8"


def test_the_deepest_row_that_is_read_can_be_written() -> None:
    for depth in (DEEPEST - 1, DEEPEST):
        row = b'{"a": ' + b"[" * depth + b"]" * depth + b"}"
        found = next(rows_of_lines([row]))
        assert isinstance(found, BadRow) == (depth == DEEPEST)
    strings = b'{"a": "' + b"[{" * 200 + b'\\"", "b": "' + b"[" * 200 + b'"}'
    assert isinstance(next(rows_of_lines([strings])), dict)


def test_odd_rows_of_a_csv_file_are_rejects(configure: Configure, tmp_path: Path) -> None:
    good = [",".join(pairs_row(n).values()).encode() for n in range(GOOD)]
    odd = [
        b"u,p,not \xff UTF-8,b",
        b"u\xff,p,a,b",
        b"u,p,a,b,c,d",
        b"u,p",
        b"u,p,,b",
        b'u,p,"quoted" oddly\\",quoted oddly\\',
        b",p,a,b",
        b"1" + b"0" * 5000 + b",p,a,a",
    ]
    header = b"\xef\xbb\xbfuser_id,prompt,chosen,rejected"
    (tmp_path / "rows.csv").write_bytes(b"\r\n".join([header, *good[:3], *odd, *good[3:]]))
    write(tmp_path / "good", "pairs", good_lines("pairs"))
    found = read(configure, "pairs", tmp_path, "rows.csv")
    wanted = set(compared(read(configure, "pairs", tmp_path / "good")))
    assert wanted <= set(compared(found))
    assert len(found.pairs) + len(found.rejects) == GOOD + len(odd)
    reasons = dict(found.rejects.group_by("reason").len().iter_rows())
    assert reasons == {
        "invalid-unicode": 2, "malformed": 1, "empty-cell": 2, "no-user": 1,
        "identical-items": 1,
    }  # fmt: skip
    (tmp_path / "open.csv").write_bytes(
        b"\n".join([header, good[0], b'u,p,"never closed,b', *good])
    )
    with pytest.raises(DataError, match="cannot read .*a quote is never closed, .*never closed"):
        read(configure, "pairs", tmp_path, "open.csv")


def test_odd_rows_of_a_parquet_file_are_rejects(configure: Configure, tmp_path: Path) -> None:
    texts = pa.array([b"a", b"not \xff UTF-8", b"a", b"a", b""], pa.binary())
    texts = pa.StringArray.from_buffers(5, *texts.buffers()[1:])
    table = pa.table(
        {
            "user_id": pa.array(["u", "u", None, "u", "u"]),
            "first": texts,
            "second": ["b"] * 5,
            "label": [1.0, 1.0, 1.0, float("nan"), 1.0],
            "when": pa.array([0, 0, 0, 1 << 62, 0], pa.timestamp("us")),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    found = read(configure, "pairs", tmp_path, "rows.parquet")
    assert len(found.pairs) == 1
    assert found.rejects["reason"].to_list() == [
        "malformed", "no-user", "malformed", "empty-text",
    ]  # fmt: skip
    for users in (pa.array([True, False]), pa.array([0.5, 1e300])):
        odd = pa.table(
            {"user_id": users, "first": ["a"] * 2, "second": ["b"] * 2, "label": [1] * 2}
        )
        pq.write_table(odd, tmp_path / "rows.parquet")
        found = read(configure, "pairs", tmp_path, "rows.parquet")
        assert set(found.rejects["reason"]) == {"bad-user"}
        assert len(found.rejects) == 2


@pytest.mark.parametrize(
    "columns",
    [
        {"label_0": ["x", "y"], "label_1": ["1", "0"]},
        {"label_0": [[1.0], [0.0]], "label_1": [[0.0], [1.0]]},
        {"label_0": [float("inf"), 1e308], "label_1": [0.0, 1e308]},
        {"caption": [5, 6]},
        {"caption": pa.StringArray.from_buffers(2, *pa.array([b"\xff", b"\xff"]).buffers()[1:])},
        {"user_id": [True, False]},
        {"jpg_0": ["text", "text"]},
        {"jpg_0": None, "image_0_url": [5, 6]},
        {"jpg_0": None, "image_0_url": ["http://[", "\0"]},
    ],
)
def test_odd_rows_of_pickapic_are_rejects(
    columns: dict[str, Any], configure: Configure, tmp_path: Path
) -> None:
    good = {
        "caption": ["a", "b"], "user_id": [1, 2], "label_0": [1.0, 0.0], "label_1": [0.0, 1.0],
        "jpg_0": [b"1", b"2"], "jpg_1": [b"3", b"4"], "ranking_id": [[1], [2]],
    }  # fmt: skip
    odd = {name: value for name, value in {**good, **columns}.items() if value is not None}
    pq.write_table(pa.table(good), tmp_path / "train-0.parquet")
    pq.write_table(pa.table(odd), tmp_path / "train-1.parquet")
    config = configure({"dataset": "pickapic", "data.pickapic.source": str(tmp_path)})
    own = config.dataset_config()
    found = read_parts(adapter_for("pickapic", own)(own).parts(), None)
    assert (len(found.pairs), len(found.rejects)) == (2, 2)
    assert UNEXPECTED not in set(found.rejects["reason"])


def test_odd_lines_of_persona_are_rejects(configure: Configure, tmp_path: Path) -> None:
    rows = [
        {"question": f"Is {n} nice?", "answer_matching_behavior": (" Yes", " No")[n % 2]}
        for n in range(60)
    ]
    odd = [
        {"question": "half \ud800", "answer_matching_behavior": " Yes"},
        {"question": "q", "answer_matching_behavior": ["x" * 9000]},
        {"question": {"a": 1}, "answer_matching_behavior": " Yes"},
    ]
    lines = [json.dumps(row).encode() for row in rows + odd] + LINES
    (tmp_path / "one.jsonl").write_bytes(b"\r\n".join(lines))
    few = dict.fromkeys(("pairs_per_user", "validation_pairs_per_user", "test_pairs_per_user"), 1)
    options = {"source": str(tmp_path), "personas": ["one"], "groups": 1, **few}
    config = configure(
        {"dataset": "persona"} | {f"data.persona.{name}": value for name, value in options.items()}
    )
    own = config.dataset_config()
    card = prepare("persona", own, Path("data/persona"), adapter_for("persona", own)).card
    assert card.rejects == {"malformed": len(odd) + len(LINES)}
    rejects = pl.read_parquet("data/persona/rejects.parquet")
    assert rejects["message"].str.len_chars().max() <= 500  # type: ignore[operator]


def test_what_is_no_file_of_rows_is_one_sentence(configure: Configure, tmp_path: Path) -> None:
    whole = b"\n".join(good_lines("pairs"))
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "gzip.jsonl").write_bytes(gzip.compress(whole))
    (tmp_path / "gzip.csv").write_bytes(gzip.compress(whole))
    (tmp_path / "gzip.json").write_bytes(gzip.compress(whole))
    pq.write_table(pa.table({"chosen": ["a"], "rejected": ["b"]}), tmp_path / "whole.parquet")
    raw = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "parquet.jsonl").write_bytes(raw)
    (tmp_path / "cut.parquet").write_bytes(raw[:-20])
    (tmp_path / "text.parquet").write_bytes(whole)
    (tmp_path / "cut.json").write_bytes(b'[{"chosen": "a", "rejected": "b"}, {"chosen"')
    for name in (
        "pipe.jsonl", "folder.jsonl", "gzip.jsonl", "gzip.csv", "gzip.json", "parquet.jsonl",
        "cut.parquet", "text.parquet", "cut.json", "x" * 300 + ".jsonl", "no\0path",
    ):  # fmt: skip
        with pytest.raises(PalError) as told:
            read(configure, "pairs", tmp_path, name)
        assert name[:20].replace("\0", r"\x00") in str(told.value)


def test_a_name_that_is_no_utf8_is_a_source_too(configure: Configure, tmp_path: Path) -> None:
    name = os.fsdecode(b"rows \xff.jsonl")
    (tmp_path / name).write_bytes(b"\n".join([*good_lines("pairs"), b"no JSON"]))
    config = configure(
        {"dataset": "pairs", "data.pairs.source": str(tmp_path), "data.pairs.min_pairs": 1}
    )
    own = config.dataset_config()
    adapter = adapter_for("pairs", own)(own)
    assert list(adapter.inputs()) == ["rows \\udcff.jsonl"]
    assert read_parts(adapter.parts(), None).rejects["source_row"].item().startswith("rows \\udcff")
