"""The user's own files in every form: what is recognised over the whole column or file, and what is
asked for because it is not certain."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.feather
import pytest
from PIL import Image as Pil

from pal.config import load
from pal.data.comparisons import Chunk
from pal.data.locate import splits_of_names
from pal.data.parts import read_parts
from pal.data.sources import adapter_for
from pal.embed.images import ImageReader
from pal.errors import ConfigError, DataError
from pal.items import Image, Text, image_content_id, items_of

Row = dict[str, Any]


def plain(n: int) -> Row:
    return {"user_id": f"ü{n % 4}", "prompt": f"p{n}", "chosen": f"good {n}", "rejected": "bad"}


ROWS = [plain(n) for n in range(12)]


def read(source: Path | str, kind: str = "pairs", **settings: Any) -> Chunk:
    given = {"kind": kind, "source": str(source), **settings}
    config = load(None, (), {"dataset": "mine", "data.mine": given}).config.dataset_config()
    return read_parts(adapter_for("mine", config)(config).parts(), None)


def texts(chunk: Chunk) -> set[str]:
    return set(chunk.items["text"].drop_nulls())


def reasons(chunk: Chunk) -> dict[str, int]:
    return dict(chunk.rejects.group_by("reason").len().iter_rows())


def assert_is_whole(chunk: Chunk) -> None:
    assert reasons(chunk) == {}
    assert set(chunk.pairs["user_id"]) == {"ü0", "ü1", "ü2", "ü3"}
    assert texts(chunk) >= {row["chosen"] for row in ROWS} | {row["prompt"] for row in ROWS}
    assert len(chunk.pairs) == len(ROWS)


def cells(rows: list[Row], delimiter: str = ",", start: str = "") -> str:
    header = delimiter.join(rows[0])
    return start + "\r\n".join([header, *(delimiter.join(map(str, r.values())) for r in rows)])


LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
FORMS: dict[str, tuple[str, bytes]] = {
    "bars": ("a.csv", cells(ROWS, "|").encode()),
    "tsv": ("a.tsv", cells(ROWS, "\t").encode()),
    "tsv, packed": ("a.tsv.gz", gzip.compress(cells(ROWS, "\t").encode())),
    "commas in cells": ("a.csv", cells([r | {"note": '"a, b; c"'} for r in ROWS], ";").encode()),
    "Excel's line": ("a.csv", cells(ROWS, ";", "sep=;\r\n").encode()),
    "Excel's line, tabs": ("a.csv", cells(ROWS, "\t", "sep=\t\r\n").encode()),
    "an end in capitals": ("A.CSV", cells(ROWS).encode()),
    "a packed end in capitals": ("A.JSONL.GZ", gzip.compress(LINES.encode())),
    "UTF-16 without a mark": ("a.csv", cells(ROWS).encode("utf-16-le")),
    "UTF-32": ("a.csv", cells(ROWS).encode("utf-32")),
    "lines of UTF-16": ("a.jsonl", LINES.encode("utf-16")),
    "lines, packed": ("a.ndjson", LINES.encode()),
    "array, packed": ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    "object of one line": ("a.json", json.dumps({"version": 1, "data": ROWS}).encode()),
    "object of many lines": ("a.json", json.dumps({"rows": ROWS, "n": [1]}, indent=1).encode()),
    "object in UTF-16": ("a.json", json.dumps({"data": ROWS}).encode("utf-16")),
    "empty cells behind": ("a.csv", cells(ROWS).replace("\r\n", "\r\n", 1).encode() + b",,"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_in_another_form_are_the_same(form: str) -> None:
    name, raw = FORMS[form]
    Path("own").mkdir()
    (Path("own") / name).write_bytes(raw)
    assert_is_whole(read(Path("own") / name))
    assert_is_whole(read("own"))


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.json", json.dumps({"data": ROWS, "rows": ROWS}), "rows under data and rows; keep one"),
        ("a.json", json.dumps({k: {"0": 1, "1": 2} for k in ROWS[0]}), "by columns, as pandas"),
        ("a.json", json.dumps({"columns": ["a"], "index": [0], "data": [["b"]]}), "orient="),
        ("a.csv", cells(ROWS).replace("prompt", "chosen"), "two columns are called 'chosen'"),
        ("a.xlsx", "PK", "none of .jsonl, .ndjson, .*e.g. a spreadsheet to .csv"),
    ],
)
def test_what_is_not_certain_is_one_sentence(name: str, raw: str, words: str) -> None:
    Path(name).write_text(raw)
    with pytest.raises(DataError, match=words):
        read(name)


def test_an_encoding_that_is_said_is_believed_unless_the_file_says_otherwise() -> None:
    Path("a.csv").write_bytes(cells(ROWS).encode("cp1252"))
    assert_is_whole(read("a.csv", encoding="cp1252"))
    with pytest.raises(DataError, match=r"12 of its 12 lines.*set data.mine.encoding: cp1252"):
        read("a.csv")
    Path("a.csv").write_bytes(cells(ROWS).encode())
    with pytest.raises(DataError, match="it is UTF-8, but data.mine.encoding says cp1252"):
        read("a.csv", encoding="cp1252")
    with pytest.raises(ConfigError, match="'cp9999' is no encoding"):
        read("a.csv", encoding="cp9999")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_few_damaged_rows_among_sound_ones_cost_only_themselves(name: str) -> None:
    raw = (cells(ROWS) if name == "a.csv" else LINES).encode().splitlines()
    bad = raw[5].replace("ü".encode(), b"\xfc")
    Path(name).write_bytes(b"\n".join([*raw, bad, bad, bad]))
    found = read(name)
    assert len(found.pairs) == 12
    assert sum(reasons(found).values()) == 3


# Columns and answers


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([1, 2, 2, 1], [1.0, 0.0, 0.0, 1.0]),
        (["1", "2.0", "tie", "2"], [1.0, 0.0, 0.5, 0.0]),
        ([0, 1, 1.0, 0.25], [0.0, 1.0, 1.0, 0.25]),
        (["left", "Right", " LEFT ", "right"], [1.0, 0.0, 1.0, 0.0]),
        (["model_a", "model_b", "tie (bothbad)", "model_a"], [1.0, 0.0, 0.5, 1.0]),
        ([True, False, True, "false"], [1.0, 0.0, 1.0, 0.0]),
        ([2, 2, 2, 2], [0.0, 0.0, 0.0, 0.0]),
        ([0, 1, 2, 2], r"label holds '2' \(6\), '0' \(3\), '1' \(3\), and what '2' means is not"),
        ([-1, 1, 1, -1], r"data.mine.values.label: {\"-1\": ..., \"1\": ...}"),
        ([1, 2, 3, 4], "'4'"),
        (["oui", "non", "oui", "non"], "say it with numbers from 0 to 1 .*oui"),
    ],
)
def test_what_labels_mean_is_said_by_the_whole_column(
    labels: list[Any], wanted: list[float] | str
) -> None:
    rows = [
        {"first": f"a{n}", "second": f"b{n}", "label": labels[n % 4], "prompt": f"p{n}"}
        for n in range(12)
    ]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=wanted.replace("{", r"\{")):
            read("a.jsonl")
    else:
        found = read("a.jsonl").pairs.sort("source_row")
        assert found["label"].to_list() == wanted * 3


def test_own_values_and_the_names_of_the_two_columns_are_answers() -> None:
    rows = [
        {"mine": f"a{n}", "yours": f"b{n}", "says": ("mine", "yours", 3, "neither")[n % 4]}
        for n in range(12)
    ]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = {"first": "mine", "second": "yours", "label": "says"}
    values = {"label": {3: 0.75, "Neither": 0.5}}
    found = read("a.jsonl", columns=columns, values=values).pairs.sort("source_row")
    assert found["label"].to_list() == [1.0, 0.0, 0.75, 0.5] * 3


@pytest.mark.parametrize("kind", ["pairs", "votes"])
def test_a_word_for_nothing_is_an_answer_where_the_user_says_what_it_means(kind: str) -> None:
    own: Row = {"pairs": {"first": "a{}", "second": "b"}, "votes": {"item": "a{}"}}[kind]
    name = {"pairs": "label", "votes": "vote"}[kind]
    answers = ["true", "false", "None", ""]
    rows = [
        {"user_id": "u", **{key: text.format(n) for key, text in own.items()}, name: answers[n % 4]}
        for n in range(12)
    ]
    Path("a.csv").write_text(cells(rows))
    nothing = {"pairs": "no-label", "votes": "no-vote"}[kind]
    assert reasons(read("a.csv", kind)) == {nothing: 6}
    found = read("a.csv", kind, values={name: {"none": 0.25}})
    assert reasons(found) == {nothing: 3}, "empty cells stay empty"
    assert 0.25 in {*found.pairs["label"], *(1.0 - found.pairs["label"])}


@pytest.mark.parametrize(
    ("votes", "wanted"),
    [
        ([1, -1, 0, 1], {"pass": 3}),
        (["yes", "no", "skip", ""], {"pass": 3, "no-vote": 3}),
        ([1, 0, 1, 0], r"the column vote holds '1' \(6\), '0' \(6\), and what '0' means"),
        ([1, 2, 1, 2], "'2' means is not certain"),
    ],
)
def test_what_votes_mean_is_said_by_the_whole_column(
    votes: list[Any], wanted: dict[str, int] | str
) -> None:
    rows = [{"voter": n % 3, "item": f"s{n}", "vote": votes[n % 4]} for n in range(12)]
    Path("a.csv").write_text(cells(rows))
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=wanted):
            read("a.csv", "votes")
        assert len(read("a.csv", "votes", values={"vote": {0: 0, 2: 0}}).pairs) == 12
    else:
        found = read("a.csv", "votes")
        assert reasons(found) == wanted
        assert set(found.pairs["user_id"]) == {"0", "1", "2"}


@pytest.mark.parametrize("kind", ["pairs", "votes", "ratings"])
def test_a_column_of_users_of_any_name_is_read_as_a_whole_over_all_files(kind: str) -> None:
    own: Row = {"chosen": "a{}", "rejected": "b"}
    own = {"pairs": own, "votes": {"item": "a{}", "vote": "agree"}}.get(
        kind, {"item": "a{}", "prompt": "p", "rating": "{}"}
    )
    for file, ids in {"a": ["7.0", "8.0", "nan"], "b": ["7", "8.0", ""]}.items():
        rows = [
            {"Participant ID": ids[n % 3]} | {k: v.format(n) for k, v in own.items()}
            for n in range(12)
        ]
        Path("raw").mkdir(exist_ok=True)
        Path(f"raw/{file}.csv").write_text(cells(rows))
    found = read("raw", kind)
    assert set(found.pairs["user_id"]) == {"7", "8"}
    assert reasons(found)["no-user"] == 8


def test_a_row_is_counted_as_a_spreadsheet_counts_it() -> None:
    lines = cells(ROWS).split("\r\n")
    lines[3] = 'ü1,p,"two\nlines",'
    Path("a.csv").write_text("\r\n".join([*lines[:2], "", *lines[2:]]), newline="")
    rejects = read("a.csv").rejects
    assert rejects.rows() == [("a.csv:0000005", "empty-cell", "nothing stands in rejected")]


# Messages and images


def test_messages_in_cells_are_messages_and_other_texts_are_not() -> None:
    said = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": "good"}]
    other = [said[0], {"role": "assistant", "content": "bad"}]
    call = [said[0], {"role": "assistant", "tool_calls": [{"id": "c"}]}]
    rows: list[Row] = [
        {"chosen": json.dumps(said), "rejected": str(other)},
        {"chosen": [*call, {"role": "tool", "content": "4"}, said[1]],
         "rejected": [*call, {"role": "tool", "content": "4"}, other[1]]},
        {"chosen": '[{"role": "admin", "id": 4}]', "rejected": '["a"]'},
        {"chosen": f"{str(said)[:-1]}\n {str(other)[1:]}", "rejected": "x"},  # as NumPy prints them
    ]  # fmt: skip
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read("a.jsonl")
    assert reasons(found) == {"bad-item": 1}
    assert "begins like chat messages but is no JSON" in found.rejects["message"].item()
    items = [item for item in items_of(found.items.to_arrow()) if isinstance(item, Text)]
    alone = {item.text for item in items if not item.context}
    assert alone == {"it's", "good", "bad", rows[2]["chosen"], '["a"]'}


def picture(n: int) -> bytes:
    out = io.BytesIO()
    Pil.new("RGB", (3, 3), (n, 5, 5)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("end", ["png", "TIF", "avif", "jfif", "webp"])
def test_a_path_is_an_image_and_a_sentence_is_none(end: str) -> None:
    Path("pictures").mkdir()
    for n in range(6):
        Path(f"pictures/a {n}.{end}").write_bytes(picture(n))
    rows = [
        {"chosen": f"pictures\\a {n}.{end}", "rejected": f"It is called a {n}.{end}"}
        for n in range(6)
    ]
    rows[5]["chosen"] = "gone"
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read("a.jsonl")
    assert reasons(found) == {"no-image": 1}, "among images everything is one"
    assert set(found.items["modality"]) == {"image", "text"}
    assert found.items["text"].drop_nulls().str.starts_with("It is").all()


def test_a_name_among_sentences_is_a_text_unless_an_image_is_there() -> None:
    rows = [{"chosen": f"say {n}", "rejected": "other"} for n in range(9)]
    rows.append({"chosen": "logo.svg", "rejected": "logo.png"})
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert texts(read("a.jsonl")) >= {"logo.svg", "logo.png"}
    Path("logo.png").write_bytes(picture(1))
    assert set(read("a.jsonl").items["modality"]) == {"image", "text"}
    heic = [{"chosen": f"{n}.heic", "rejected": f"data:image/png;base64,{n}"} for n in range(3)]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, heic)))
    told = read("a.jsonl").rejects["message"]
    assert told.str.contains("not decoded here; convert it to PNG or JPEG").all()


# Libraries' files


def with_pandas(path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS).astype({"user_id": "category"})
    frame[frame["prompt"] != "none"].to_parquet(path / "a.parquet")


def with_pandas_feather(path: Path) -> None:
    pytest.importorskip("pandas").DataFrame(ROWS).to_feather(path / "a.feather")


def with_polars(path: Path) -> None:
    frame = pl.DataFrame(ROWS).with_columns(pl.col("user_id").cast(pl.Categorical))
    frame.write_parquet(path / "a.parquet")


def with_polars_ipc(path: Path) -> None:
    pl.DataFrame(ROWS).write_ipc(path / "a.arrow")


def with_datasets(path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(path)
    pa.feather.write_feather(pa.Table.from_pylist(ROWS), path / "cache-0123.arrow")


def with_datasets_json(path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).to_json(path / "a.json")


@pytest.mark.parametrize(
    "write",
    [with_pandas, with_pandas_feather, with_polars, with_polars_ipc, with_datasets,
     with_datasets_json],
)  # fmt: skip
def test_a_library_s_own_files_are_read(write: Callable[[Path], None]) -> None:
    Path("raw").mkdir()
    write(Path("raw"))
    assert_is_whole(read("raw"))


def test_a_saved_dataset_with_splits_keeps_them() -> None:
    datasets = pytest.importorskip("datasets")
    whole = {
        name: datasets.Dataset.from_list([plain(n) for n in numbers])
        for name, numbers in {"train": range(8), "test": range(8, 12)}.items()
    }
    datasets.DatasetDict(whole).save_to_disk("raw")
    found = read("raw")
    assert_is_whole(found)
    assert found.pairs.group_by("split").len().sort("len").rows() == [("test", 4), ("train", 8)]


@pytest.mark.parametrize("is_stream", [False, True])
def test_images_of_arrow_files_are_found_again(is_stream: bool) -> None:
    rows = [{"chosen": picture(n), "rejected": picture(n + 50)} for n in range(9)]
    table = pa.Table.from_pylist(rows)
    new = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with new("a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=4)
    found, reader = read("a.arrow").items, ImageReader()
    names = found["item_id"].to_list()
    for name, item in zip(names, items_of(found.to_arrow()), strict=True):
        assert isinstance(item, Image)
        assert image_content_id(reader.bytes_of(item.place)) == name
    assert len(names) == 18


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["data/train-00000-of-00002.parquet", "data/test-0.parquet"], ["train", "test"]),
        (["train.jsonl", "dev.csv", "validation/0.csv"], ["train", "val", "val"]),
        (["default/train/0000.parquet", "default/test/0000.parquet"], ["train", "test"]),
        (["my_train.csv", "my_test.csv", "more.csv"], ["train", "test", None]),
        (["test.csv"], [None]),
        (["train.csv", "more.csv"], [None, None]),
        (["latest.csv", "contest.csv", "trained.csv"], [None, None, None]),
    ],
)
def test_names_of_files_say_splits_as_on_the_hub(
    names: list[str], wanted: list[str | None]
) -> None:
    assert splits_of_names(names) == wanted


@pytest.mark.parametrize("kind", ["votes", "ratings"])
def test_votes_and_ratings_keep_the_splits_of_their_files(kind: str) -> None:
    Path("raw").mkdir()
    for split in ("train", "test"):
        rows = [
            {"user": n % 3, "prompt": "p", "item": f"{split} {n}", "vote": "agree", "rating": n}
            for n in range(12)
        ]
        Path(f"raw/{split}.csv").write_text(cells(rows))
    found = read("raw", kind)
    said = dict(zip(found.items["item_id"], found.items["text"], strict=True))
    ids = ("prompt_id",) if kind == "votes" else ("first_id", "second_id")
    for row in found.pairs.iter_rows(named=True):
        assert {said[row[name]].split()[0] for name in ids} == {row["split"]}
