"""The user's own comparisons in every form, their awkward rows, and the doctor who reads them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from pal import doctor, pipeline
from pal.cli import main
from pal.cli.app import app
from pal.config import Config
from pal.data.sources.pairs import OwnPairs, PairsConfig
from pal.dataset import PreparedDataset
from pal.embed.images import ImageReader
from pal.errors import DataError, PalWarning
from pal.evaluate.inputs import open_inputs
from pal.files import locked
from pal.items import Image as ImageItem
from pal.items import Place, Text, Turn, image_content_id, items_of
from pal.train.build import resolve
from pal.train.data import TrainingData
from pal.train.fit import fit_head

Configure = Callable[..., Config]
Row = dict[str, Any]
ROWS, USERS = 240, 14


def message(role: str, content: Any) -> Row:
    return {"role": role, "content": content}


def plain(number: int) -> Row:
    """Return a comparison as texts, with two users for each prompt."""
    return {
        "user_id": f"u{number % USERS:02d}",
        "prompt": f"question {number // 2}",
        "chosen": f"good answer {number} ü猫",
        "rejected": f"bad answer {number}",
    }


def plain_rows() -> list[Row]:
    return [plain(number) for number in range(ROWS)]


def as_messages(row: Row) -> Row:
    sides = {side: [message("assistant", row[side])] for side in ("chosen", "rejected")}
    return row | sides | {"prompt": [message("user", row["prompt"])]}


def as_answers_to_a_text(row: Row) -> Row:
    return as_messages(row) | {"prompt": row["prompt"]}


def as_conversations(row: Row) -> Row:
    whole = {
        side: [message("user", row["prompt"]), message("assistant", row[side])]
        for side in ("chosen", "rejected")
    }
    return {"user_id": row["user_id"]} | whole


def as_conversations_with_their_prompt(row: Row) -> Row:
    return as_conversations(row) | {"prompt": row["prompt"]}


def as_conversations_with_their_messages(row: Row) -> Row:
    return as_conversations(row) | {"prompt": [message("user", row["prompt"])]}


def in_parts(row: Row) -> Row:
    def parts(text: str) -> list[Row]:
        return [{"type": "text", "text": text[:3]}, {"type": "text", "text": text[3:]}]

    sides = {side: [message("assistant", parts(row[side]))] for side in ("chosen", "rejected")}
    return row | sides | {"prompt": [message("user", parts(row["prompt"]))]}


def explicit(row: Row, words: bool) -> Row:
    """Return a comparison with sides, the chosen item first in every other one."""
    first, second = (
        ("chosen", "rejected")
        if row["chosen"][12:].split()[0][-1] in "02468"
        else ("rejected", "chosen")
    )
    label: Any = 1 if first == "chosen" else 0
    if words:
        label = ("second", " First ")[label]
    sides = {"first": row[first], "second": row[second], "label": label}
    return {"user_id": row["user_id"], "prompt": row["prompt"]} | sides


def write(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    """Write rows in the form that the name's end says; a text among JSON lines is a line as it
    stands."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
    elif name.endswith(".csv"):
        out = io.StringIO()
        writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        file.write_text(out.getvalue(), encoding="utf-8")
    elif name.endswith(".json"):
        file.write_text(
            json.dumps(rows, indent=1), encoding="utf-8-sig" if "bom" in name else "utf-8"
        )
    else:
        text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
        file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return folder


def settings(configure: Configure, source: Path | None, /, **options: Any) -> Config:
    chosen = {
        f"data.pairs.{key.replace('__', '.')}": value
        for key, value in ({"min_pairs": 1} | options).items()
    }
    return configure(
        {"dataset": "pairs", **chosen} | ({"data.pairs.source": str(source)} if source else {})
    )


def prepared(configure: Configure, source: Path, /, **options: Any) -> PreparedDataset:
    config = settings(configure, source, **options)
    paths = config.paths.model_copy(update={"data": Path(f"prepared-{source.name}")})
    return pipeline.prepare(config.model_copy(update={"paths": paths}))


def rejects_of(dataset: PreparedDataset) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(dataset.rejects()))


def texts_of(dataset: PreparedDataset) -> dict[bytes, str]:
    items = dataset.items(["item_id", "text"])
    return dict(
        zip(items.column("item_id").to_pylist(), items.column("text").to_pylist(), strict=True)
    )


def preferred_texts(dataset: PreparedDataset) -> list[str]:
    texts = texts_of(dataset)
    sides = dataset.pairs().select("first_id", "second_id", "label").iter_rows()
    return [texts[first if label > 0.5 else second] for first, second, label in sides]


def picture(number: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (number % 256, number // 256, 5)).save(out, "PNG")
    return out.getvalue()


# What a row may look like


def test_every_form_of_preference_data_gives_the_same_dataset(
    configure: Configure, tmp_path: Path
) -> None:
    forms: list[Callable[[Row], Row]] = [
        dict,
        as_messages,
        as_answers_to_a_text,
        as_conversations,
        as_conversations_with_their_prompt,
        as_conversations_with_their_messages,
        in_parts,
    ]
    datasets = [
        prepared(configure, write(tmp_path / f"form{number}", [form(row) for row in plain_rows()]))
        for number, form in enumerate(forms)
    ]
    first = datasets[0].card
    assert first.counts.prompts == ROWS // 2
    assert first.views == ("response", "prompt+response")
    assert first.counts.pairs + sum(first.rejects.values()) == ROWS
    assert set(first.rejects) <= {"not-its-role", "too-few-pairs", "user-not-in-train"}
    for form, dataset in zip(forms, datasets, strict=True):
        assert all(text.startswith("good") for text in preferred_texts(dataset))
        for key in ("digests", "split_digest", "counts", "rejects"):
            assert getattr(dataset.card, key) == getattr(first, key), form


def test_explicit_sides_take_numbers_and_words(configure: Configure, tmp_path: Path) -> None:
    datasets = [
        prepared(
            configure,
            write(tmp_path / f"words{words}", [explicit(row, words) for row in plain_rows()]),
        )
        for words in (False, True)
    ]
    assert datasets[0].card.digests == datasets[1].card.digests
    assert all(text.startswith("good") for text in preferred_texts(datasets[0]))
    assert 0.3 < datasets[0].pairs()["label"].mean() < 0.7  # type: ignore[operator]
    chosen = prepared(configure, write(tmp_path / "chosen", plain_rows()))
    assert chosen.card.digests.items == datasets[0].card.digests.items
    assert 0.3 < chosen.pairs()["label"].mean() < 0.7  # type: ignore[operator]  # not all chosen items come first


@pytest.mark.parametrize(
    "name", ["rows.csv", "rows.json", "bom.json", "rows.jsonl.gz", "rows.parquet"]
)
def test_every_kind_of_file_gives_the_same_dataset(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    cards = [
        prepared(configure, write(tmp_path / kind, plain_rows(), kind)).card
        for kind in ("rows.jsonl", name)
    ]
    for key in ("digests", "split_digest", "counts", "rejects"):
        assert getattr(cards[0], key) == getattr(cards[1], key)


def test_messages_in_parquet_are_those_of_json(configure: Configure, tmp_path: Path) -> None:
    for form in (as_messages, as_conversations):
        rows = [form(row) for row in plain_rows()]
        cards = [
            prepared(configure, write(tmp_path / f"{form.__name__}-{kind}", rows, kind)).card
            for kind in ("rows.jsonl", "rows.parquet")
        ]
        assert cards[0].digests == cards[1].digests


def test_a_single_file_is_a_source(configure: Configure, tmp_path: Path) -> None:
    folder = write(tmp_path / "raw", plain_rows())
    cards = [prepared(configure, source).card for source in (folder, folder / "rows.jsonl")]
    assert cards[0].digests == cards[1].digests


def test_longer_conversations_are_cut_where_they_part(configure: Configure, tmp_path: Path) -> None:
    def conversation(number: int, answer: str) -> list[Row]:
        turns = [
            ("system", "be kind"),
            ("user", f"q{number}"),
            ("assistant", "well"),
            ("user", "go on"),
        ]
        return [message(*turn) for turn in [*turns, ("assistant", answer)]]

    rows = [
        {"chosen": conversation(n, f"good {n}"), "rejected": conversation(n, f"bad {n}")}
        for n in range(60)
    ]
    dataset = prepared(configure, write(tmp_path / "raw", rows))
    items = dataset.items().to_pylist()
    behind = [item for item in items if item["text"] == "good 7" and item["context"]]
    assert [turn["content"] for turn in json.loads(behind[0]["context"])] == [
        "be kind",
        "q7",
        "well",
        "go on",
    ]
    prompts = set(dataset.pairs()["prompt_id"])
    assert {item["text"] for item in items if item["item_id"] in prompts} == {"go on"}
    assert len(prompts) == 60


def test_prompts_and_responses_keep_the_roles_of_their_turns(
    configure: Configure, tmp_path: Path
) -> None:
    def conversation(number: int, answer: str) -> list[Row]:
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "c1"}]}
        turns = [message("system", "be kind"), message("user", f"q{number}"), call]
        return [*turns, message("tool", "42"), message("narrator", answer)]

    rows = [
        {"chosen": conversation(n, f"good {n}"), "rejected": conversation(n, f"bad {n}")}
        for n in range(60)
    ]
    dataset = prepared(configure, write(tmp_path / "raw", rows))
    ids = dataset.items(["item_id"]).column("item_id").to_pylist()
    items = dict(zip(ids, items_of(dataset.items()), strict=True))
    prompt = items[dataset.pairs()["prompt_id"][0]]
    assert isinstance(prompt, Text)
    assert (prompt.text, prompt.role) == ("42", "tool")
    assert [turn.role for turn in prompt.context] == ["system", "user", "assistant"]
    assert prompt.context[2].content == ""
    response = items[dataset.viewed("prompt+response").pairs()["first_id"][0]]
    assert isinstance(response, Text)
    assert response.turns == (*prompt.turns, Turn("narrator", response.text))


def test_the_role_of_a_prompt_makes_another_item(tmp_path: Path) -> None:
    def items_under(role: str) -> pl.DataFrame:
        prompt = [message("system", "be kind"), message(role, "say it")]
        rows = [row | {"prompt": prompt} for row in plain_rows()]
        source = OwnPairs(PairsConfig(source=str(write(tmp_path / role, rows))))
        return source.parts()[0]().items

    one, other = items_under("user"), items_under("assistant")
    alone = pl.col("context").is_null()
    assert set(one.filter(alone)["item_id"]) == set(other.filter(alone)["item_id"])
    assert set(one.filter(~alone)["item_id"]).isdisjoint(other.filter(~alone)["item_id"])
    prompts = [frame.filter(text="say it")["role"].to_list() for frame in (one, other)]
    assert prompts == [["user"], ["assistant"]]


def test_columns_go_by_other_names(configure: Configure, tmp_path: Path) -> None:
    names = {"user_id": "worker", "prompt": "instruction", "chosen": "win", "rejected": "lose"}
    renamed = [
        {names[key]: value for key, value in row.items()} | {"noise": [1, {}]}
        for row in plain_rows()
    ]
    mapping = {f"columns__{key}": name for key, name in names.items()}
    cards = [
        prepared(configure, write(tmp_path / "plain", plain_rows())).card,
        prepared(configure, write(tmp_path / "renamed", renamed), **mapping).card,
    ]
    assert cards[0].digests == cards[1].digests
    words = "no chosen and rejected, .*; their columns are worker, instruction, win, lose, noise"
    with pytest.raises(DataError, match=words):
        prepared(configure, tmp_path / "renamed")


def test_a_mistyped_column_of_users_does_not_make_everyone_one_user(
    configure: Configure, tmp_path: Path
) -> None:
    rows = [without(row, "user_id") | {"worker": row["user_id"]} for row in plain_rows()]
    words = "names the column 'wroker', which no row has; did you mean 'worker'. the columns are"
    with pytest.raises(DataError, match=words):
        prepared(configure, write(tmp_path / "raw", rows), columns__user_id="wroker")


def test_the_splits_of_the_source_are_kept(configure: Configure, tmp_path: Path) -> None:
    words = ["train", "train", "val", "validation", "test", None]
    rows = [
        plain(number) | {"prompt": f"q{number}", "split": words[number % 6]}
        for number in range(ROWS)
    ]
    rows += [plain(1) | {"split": "dev"}, plain(2) | {"split": ["train"]}]
    dataset = prepared(
        configure, write(tmp_path / "raw", rows), test_user_share=0.0, validation_user_share=0.0
    )
    assert dataset.card.rejects["bad-split"] == 2
    texts = texts_of(dataset)
    own = {f"q{number}": words[number % 6] for number in range(ROWS)}
    for prompt, split in dataset.pairs().select("prompt_id", "split").iter_rows():
        assert own[texts[prompt]] in (split, "validation" if split == "val" else None, None)


def test_integers_are_names_of_users_too(configure: Configure, tmp_path: Path) -> None:
    numbers = [row | {"user_id": int(row["user_id"][1:])} for row in plain_rows()]
    texts = [row | {"user_id": str(row["user_id"])} for row in numbers]
    cards = [
        prepared(configure, write(tmp_path / f"raw{n}", rows)).card
        for n, rows in enumerate((numbers, texts))
    ]
    assert cards[0].digests == cards[1].digests


# Users


def without(row: Row, key: str) -> Row:
    return {name: value for name, value in row.items() if name != key}


def test_a_source_without_users_is_everyones(configure: Configure, tmp_path: Path) -> None:
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        dataset = prepared(
            configure,
            write(tmp_path / name, [without(row, "user_id") for row in plain_rows()], name),
        )
        assert dataset.card.rejects == {}
        assert set(dataset.pairs().select("user_id", "population").unique().rows()) == {
            ("everyone", "seen")
        }


@pytest.mark.parametrize("files", [1, 2])
def test_where_some_rows_name_their_user_the_others_are_rejects(
    files: int, configure: Configure, tmp_path: Path
) -> None:
    nameless = [without(plain(number), "user_id") for number in range(300, 305)]
    null = [plain(number) | {"user_id": None} for number in range(310, 313)] + [
        plain(320) | {"user_id": "  "}
    ]
    if files == 1:
        write(tmp_path / "raw", plain_rows() + nameless + null)
    else:
        write(tmp_path / "raw", plain_rows() + null, "a.jsonl")
        write(tmp_path / "raw", nameless, "b.jsonl")
    dataset = prepared(configure, tmp_path / "raw")
    assert dataset.card.rejects["no-user"] == 5 + 4
    assert "everyone" not in set(dataset.pairs()["user_id"])


def test_a_user_may_be_called_everyone(configure: Configure, tmp_path: Path) -> None:
    first = plain(0)["user_id"]
    rows = [
        row | ({"user_id": "everyone"} if row["user_id"] == first else {}) for row in plain_rows()
    ]
    dataset = prepared(configure, write(tmp_path / "raw", rows))
    before = prepared(configure, write(tmp_path / "before", plain_rows()))
    assert dataset.card.rejects.get("no-user", 0) == 0
    assert dataset.card.counts.pairs == pytest.approx(before.card.counts.pairs, rel=0.2)
    assert "everyone" in set(dataset.pairs()["user_id"])


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_user_is_one_user_whatever_type_the_id_has(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    spell: list[Callable[[int], Any]] = [int, float]
    spell += [str] if name == "rows.jsonl" else []
    rows = [
        plain(number) | {"user_id": spell[number % len(spell)](number % 7)}
        for number in range(ROWS)
    ]
    dataset = prepared(configure, write(tmp_path / "raw", rows, name))
    assert dataset.card.rejects == {}
    assert set(dataset.pairs()["user_id"]) == set("0123456")


def test_ids_of_a_text_file_are_read_by_the_whole_column(
    configure: Configure, tmp_path: Path
) -> None:
    ids = ["7", "7.0", " 8", "8.00", "9"]
    numbers = [plain(number) | {"user_id": ids[number % 5]} for number in range(ROWS)]
    dataset = prepared(configure, write(tmp_path / "numbers", numbers, "rows.csv"))
    assert set(dataset.pairs()["user_id"]) == {"7", "8", "9"}
    texts = [
        row | {"user_id": "u7" if row["user_id"] == "9" else row["user_id"]} for row in numbers
    ]
    dataset = prepared(configure, write(tmp_path / "texts", texts, "rows.csv"))
    assert set(dataset.pairs()["user_id"]) == {"7", "7.0", " 8", "8.00", "u7"}


def test_missing_ids_of_a_text_file_name_nobody(configure: Configure, tmp_path: Path) -> None:
    gaps = {5: "", 6: "NaN", 7: "null", 8: "  ", 9: "nan"}
    rows = [plain(n) | ({"user_id": gaps[n % 20]} if n % 20 in gaps else {}) for n in range(ROWS)]
    dataset = prepared(configure, write(tmp_path / "raw", rows, "rows.csv"))
    assert dataset.card.rejects["no-user"] == ROWS // 20 * 5
    assert all(user.startswith("u") for user in dataset.pairs()["user_id"])


@pytest.mark.parametrize("user", [True, 7.5, ["u"], {"id": 7}, 10**120])
def test_what_is_no_id_is_a_reject(user: Any, configure: Configure, tmp_path: Path) -> None:
    rows = [*plain_rows(), plain(1) | {"user_id": user}]
    dataset = prepared(configure, write(tmp_path / "raw", rows))
    assert dataset.card.rejects["bad-user"] == 1
    message = rejects_of(dataset).filter(reason="bad-user")["message"].item()
    assert message.startswith("a user's id is ")


# Awkward rows

P = {"user_id": "u01", "prompt": "p"}
SAID = [message("user", "hi"), message("assistant", "well")]
AWKWARD: list[tuple[Any, str]] = [
    (P | {"chosen": "same", "rejected": "same"}, "identical-items"),
    (
        P | {"chosen": [message("assistant", "a")], "rejected": [message("assistant", "a")]},
        "identical-items",
    ),
    (P | {"chosen": "", "rejected": "b"}, "empty-text"),
    (P | {"chosen": "a", "rejected": " \n"}, "empty-text"),
    (P | {"chosen": None, "rejected": "b"}, "empty-cell"),
    (P | {"chosen": "a"}, "missing-column"),
    (P | {"first": "a", "second": "b"}, "missing-column"),
    (P | {"first": "a", "second": "b", "label": None}, "no-label"),
    ({}, "missing-column"),
    (P | {"first": "a", "second": "b", "label": 1.5}, "bad-label"),
    (P | {"first": "a", "second": "b", "label": -0.001}, "bad-label"),
    (P | {"first": "a", "second": "b", "label": "perhaps"}, "bad-label"),
    (P | {"first": "a", "second": "b", "label": [1]}, "bad-label"),
    (P | {"first": "a", "second": "b", "label": float("nan")}, "no-label"),
    (P | {"first": "a", "second": "b", "label": float("inf")}, "bad-label"),
    (P | {"first": "a", "second": "b", "label": 10**400}, "bad-label"),
    (P | {"first": "a", "second": "b", "label": "\ud800"}, "bad-label"),
    (P | {"chosen": "half \ud800", "rejected": "b"}, "invalid-unicode"),
    (P | {"chosen": "a", "rejected": "b", "prompt": "\udfff"}, "invalid-unicode"),
    (P | {"chosen": "a", "rejected": "b", "user_id": "\ud800"}, "invalid-unicode"),
    (
        P | {"chosen": [message("\ud800", "a")], "rejected": [message("assistant", "\ud800")]},
        "invalid-unicode",
    ),
    (P | {"chosen": "\ud800.png", "rejected": "b"}, "no-image"),
    (P | {"chosen": "http://\ud800.example/a.png", "rejected": "b"}, "no-image"),
    (P | {"chosen": "nowhere/a.png", "rejected": "b"}, "no-image"),
    (P | {"chosen": "word_" * 10_000 + "photo.JPG", "rejected": "b"}, "no-image"),
    (P | {"chosen": "nul\0.png", "rejected": "b"}, "no-image"),
    (P | {"chosen": 5, "rejected": "b"}, "bad-item"),
    (P | {"chosen": {"text": "a"}, "rejected": "b"}, "bad-item"),
    (P | {"chosen": {"bytes": None, "path": None}, "rejected": "b"}, "bad-item"),
    (P | {"chosen": SAID, "rejected": "b"}, "bad-item"),
    (P | {"chosen": ["a"], "rejected": ["b"]}, "bad-item"),
    (P | {"chosen": [{"role": "assistant"}], "rejected": SAID}, "bad-item"),
    (P | {"chosen": [message("assistant", 5)], "rejected": SAID}, "bad-item"),
    (P | {"chosen": [message("assistant", None)], "rejected": SAID[1:]}, "empty-text"),
    (
        P
        | {
            "chosen": [message("assistant", [{"text": 5}])],
            "rejected": [message("assistant", "b")],
        },
        "empty-text",
    ),
    (P | {"chosen": SAID, "rejected": [*SAID, message("user", "more")]}, "unclear-response"),
    (P | {"chosen": SAID, "rejected": [message("user", "ho"), SAID[1]]}, "unclear-response"),
    (P | {"chosen": [], "rejected": []}, "unclear-response"),
    (P | {"chosen": "a", "rejected": "b", "split": "dev"}, "bad-split"),
    (P | {"chosen": "a", "rejected": "b", "split": {}}, "bad-split"),
    ("{not json", "malformed"),
    ("[1, 2]", "malformed"),
    ("null", "malformed"),
    ('{"chosen": "cut off', "malformed"),
    ("[" * 100_000, "malformed"),
]


def awkward_rows() -> list[Any]:
    return [row for row, _ in AWKWARD]


def test_every_awkward_row_is_a_reject_with_its_reason_and_place(
    configure: Configure, tmp_path: Path
) -> None:
    dataset = prepared(
        configure, write(tmp_path / "raw", awkward_rows() + plain_rows(), "mine.jsonl")
    )
    found = dict(rejects_of(dataset).select("source_row", "reason").iter_rows())
    for number, (row, reason) in enumerate(AWKWARD):
        assert found[f"mine.jsonl:{number:07d}"] == reason, str(row)[:200]
    assert dataset.card.counts.pairs + sum(dataset.card.rejects.values()) == ROWS + len(AWKWARD)
    assert dataset.card.rejects["malformed"] == 5
    assert rejects_of(dataset)["message"].str.len_chars().max() < 1000  # type: ignore[operator]


def test_awkward_rows_of_csv_and_parquet_are_rejects_too(
    configure: Configure, tmp_path: Path
) -> None:
    rows = [
        *plain_rows(),
        plain(1) | {"user_id": ""},
        plain(2) | {"chosen": ""},
        plain(3) | {"rejected": " "},
    ]
    write(tmp_path / "csv", rows, "rows.csv")
    with open(tmp_path / "csv" / "rows.csv", "a") as stream:
        stream.write("u01,q,a,b,too,many\nu01,short\n")
    card = prepared(configure, tmp_path / "csv").card
    assert (
        card.rejects["malformed"],
        card.rejects["no-user"],
        card.rejects["empty-text"],
    ) == (1, 1, 1)
    assert card.rejects["empty-cell"] == 2
    assert card.counts.pairs + sum(card.rejects.values()) == len(rows) + 2
    rows = [*plain_rows(), plain(1) | {"user_id": None}, plain(2) | {"chosen": None}]
    card = prepared(configure, write(tmp_path / "parquet", rows, "rows.parquet")).card
    assert (card.rejects["no-user"], card.rejects["empty-cell"]) == (1, 1)
    assert card.counts.pairs + sum(card.rejects.values()) == len(rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", b"[{}, {"),
        ("deep.json", b"[" * 100_000),
        ("cut.jsonl.gz", gzip.compress(b'{"chosen": "a"}\n' * 1000, mtime=0)[:-12]),
        ("bad.jsonl.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\0 this is no deflate stream"),
        ("no.jsonl.gz", b"plain"),
        ("rows.parquet", b"PAR1 this is none PAR1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unreadable_file_is_named_in_one_sentence(
    name: str, content: bytes, configure: Configure, tmp_path: Path
) -> None:
    write(tmp_path / "raw", plain_rows())
    (tmp_path / "raw" / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"cannot read .*{name} .*; fix or remove it"):
        prepared(configure, tmp_path / "raw")


def test_a_source_is_needed(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="dataset pairs needs to know its source; give --source"):
        pipeline.prepare(settings(configure, None))
    with pytest.raises(DataError, match=r"holds no file like \*.jsonl"):
        prepared(configure, write(tmp_path / "raw", [], "rows.txt"))


def test_a_text_of_two_megabytes_is_kept_whole(configure: Configure, tmp_path: Path) -> None:
    huge = "wörd " * 400_000
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        rows = [
            without(row, "user_id")
            for row in [*plain_rows(), plain(0) | {"prompt": "long", "chosen": huge}]
        ]
        dataset = prepared(configure, write(tmp_path / name, rows, name))
        assert huge in texts_of(dataset).values()


def test_ties_repeats_and_contradictions_are_counted(configure: Configure, tmp_path: Path) -> None:
    rows = [explicit(row, words=False) for row in plain_rows()]
    for number, label in enumerate(["tie", 0.5, "TIE", "0.5"]):
        rows[number] |= {"label": label}
    again = rows[10:13]
    other_way = [
        row | {"first": row["second"], "second": row["first"], "label": 1 - row["label"]}
        for row in rows[20:22]
    ]
    against = [row | {"label": 1 - row["label"]} for row in rows[30:35]]
    shares = {"test_user_share": 0.0, "validation_user_share": 0.0}
    dataset = prepared(
        configure, write(tmp_path / "raw", rows + again + other_way + against), **shares
    )
    counts = dataset.card.counts
    assert counts.pairs == ROWS + 10
    assert (counts.ties, counts.repeated, counts.contradictory) == (4, 10, 5)
    assert dataset.pairs()["pair_id"].n_unique() == ROWS + 10
    soft = prepared(
        configure, write(tmp_path / "soft", [row | {"label": 0.25} for row in rows]), **shares
    )
    assert set(soft.pairs()["label"]) == {0.25}


# Images


def image_rows(count: int = 60) -> list[Row]:
    return [
        {"prompt": f"draw {n}", "chosen": picture(n), "rejected": picture(n + 500)}
        for n in range(count)
    ]


def assert_bytes_are_found(dataset: PreparedDataset, count: int) -> None:
    table = dataset.items()
    reader, found = ImageReader(), 0
    for name, item in zip(table.column("item_id").to_pylist(), items_of(table), strict=True):
        if isinstance(item, ImageItem):
            assert image_content_id(reader.bytes_of(item.place)) == name
            found += 1
    assert found == count


def places_of(dataset: PreparedDataset) -> list[Place]:
    return [item.place for item in items_of(dataset.items()) if isinstance(item, ImageItem)]


@pytest.mark.parametrize("is_struct", [False, True])
def test_images_of_parquet_columns_are_found_again_by_their_pointers(
    is_struct: bool, configure: Configure, tmp_path: Path
) -> None:
    rows = image_rows()
    if is_struct:
        rows = [
            row | {side: {"bytes": row[side], "path": "x.png"} for side in ("chosen", "rejected")}
            for row in rows
        ]
    dataset = prepared(configure, write(tmp_path / "raw", rows, "rows.parquet"))
    assert dataset.card.rejects == {}
    assert dataset.card.counts.items_by_modality == {"image": 120, "text": 60}
    assert_bytes_are_found(dataset, 120)
    places = {(place.group, place.row) for place in places_of(dataset)}
    assert places == {(number // 7, number % 7) for number in range(60)}
    assert {place.column for place in places_of(dataset)} == {"chosen", "rejected"}


def test_pointers_follow_a_file_that_was_written_anew(configure: Configure, tmp_path: Path) -> None:
    source = write(tmp_path / "raw", image_rows(), "rows.parquet")
    prepared(configure, source)
    pq.write_table(pa.Table.from_pylist(image_rows(80)), source / "rows.parquet", row_group_size=11)
    assert_bytes_are_found(prepared(configure, source), 160)


def test_an_image_in_two_places_is_one_item_whatever_holds_it(
    configure: Configure, tmp_path: Path
) -> None:
    write(tmp_path / "raw", image_rows(), "rows.parquet")
    sides = [("chosen", 0), ("rejected", 500)]
    named = []
    for number in range(60):
        row: Row = {"prompt": f"draw {number}"}
        for side, start in sides:
            path = Path("pictures") / f"{number + start}.PNG"
            (tmp_path / "raw" / "pictures").mkdir(exist_ok=True)
            (tmp_path / "raw" / path).write_bytes(picture(number + start))
            row[side] = str(path)
        named.append(row)
    write(tmp_path / "raw", named)
    both = prepared(configure, tmp_path / "raw")
    assert both.card.counts.items_by_modality["image"] == 120
    assert both.card.counts.repeated == 60
    (tmp_path / "raw" / "rows.parquet").unlink()
    alone = prepared(configure, tmp_path / "raw")
    assert alone.card.rejects == {}
    assert alone.card.digests.items == both.card.digests.items
    assert_bytes_are_found(alone, 120)
    assert {Path(str(place.file)).parent.name for place in places_of(alone)} == {"pictures"}


def test_what_a_string_is_can_be_said(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    for number in range(60):
        (tmp_path / "raw" / f"{number}.pic").write_bytes(picture(number))
        (tmp_path / "raw" / f"{number}.png").write_bytes(picture(number + 500))
    rows = [{"prompt": f"p{n}", "chosen": f"{n}.pic", "rejected": f"{n}.png"} for n in range(60)]
    for name, items, modalities in (
        ("auto", "auto", {"image": 60, "text": 180}),  # of a text also one behind its prompt
        ("image", "image", {"image": 120, "text": 60}),
        ("text", "text", {"text": 300}),
    ):
        source = write(tmp_path / "raw", rows)
        dataset = pipeline.prepare(settings(configure, source, items=items))
        assert dataset.card.counts.items_by_modality == modalities, name
    structs = [
        row | {side: {"bytes": None, "path": row[side]} for side in ("chosen", "rejected")}
        for row in rows
    ]  # the image feature says that it is one, whatever its file is called
    shutil.rmtree("data")
    dataset = pipeline.prepare(settings(configure, write(tmp_path / "raw", structs)))
    assert dataset.card.counts.items_by_modality == {"image": 120, "text": 60}


# Splits


@pytest.mark.parametrize("seed", range(6))
def test_order_and_files_change_no_digest(seed: int, configure: Configure, tmp_path: Path) -> None:
    chance = random.Random(seed)
    rows: list[Any] = (
        plain_rows() + [explicit(plain(n), words=True) for n in range(20)] + awkward_rows()
    )
    for _ in range(40):  # repeats, contradictions, shared prompts and shared items
        row = plain(chance.randrange(ROWS))
        row |= {"prompt": f"question {chance.randrange(12)}"} if chance.random() < 0.5 else {}
        if chance.random() < 0.5:
            row |= {"chosen": row["rejected"], "rejected": row["chosen"]}
        rows += [row] * chance.randrange(1, 3)
    rows += [without(plain(number), "user_id") for number in range(5)]
    cards = []
    for name in ("one", "shuffled", "several"):
        files = 1 if name == "one" else chance.randrange(2, 5) if name == "several" else 1
        mixed = rows if name == "one" else chance.sample(rows, len(rows))
        for number in range(files):
            write(
                tmp_path / name / ("deeper" if number else ""),
                mixed[number::files],
                f"rows{number}.jsonl",
            )
        cards.append(prepared(configure, tmp_path / name).card)
    assert cards[0].counts.pairs + sum(cards[0].rejects.values()) == len(rows)
    assert cards[0].counts.unseen_users > 0
    for key in ("digests", "split_digest", "counts", "rejects", "splitting"):
        assert getattr(cards[0], key) == getattr(cards[1], key) == getattr(cards[2], key), key


def test_no_prompt_crosses_splits(configure: Configure, tmp_path: Path) -> None:
    chance = random.Random(1)
    rows = []
    for number in range(600):
        space = chance.choice([" ", "  ", "\n"])
        row = plain(number) | {
            "prompt": f"question{space}{chance.randrange(150)}{chance.choice(['', ' '])}"
        }
        rows.append(
            row | ({"rejected": f"shared {chance.randrange(100)}"} if number % 3 == 0 else {})
        )
    dataset = prepared(configure, write(tmp_path / "raw", rows), grouping="prompt")
    texts = texts_of(dataset)
    pairs = dataset.pairs()
    splits: dict[str, set[str]] = {}
    for prompt, split in pairs.select("prompt_id", "split").iter_rows():
        splits.setdefault(re.sub(r"\s+", " ", texts[prompt]).strip(), set()).add(split)
    assert all(len(found) == 1 for found in splits.values())
    assert set().union(*splits.values()) == {"train", "val", "test"}
    assert Counter(pairs["population"]).keys() == {"seen", "unseen"}
    joined = prepared(configure, write(tmp_path / "joined", rows[:200])).pairs()
    of_items = pl.concat(
        [joined.select("split", item=side) for side in ("first_id", "second_id", "prompt_id")]
    )
    assert of_items.group_by("item").agg(pl.col("split").n_unique())["split"].max() == 1


def test_pal_a_and_pal_b_train_on_their_views(configure: Configure, tmp_path: Path) -> None:
    sides = [
        {"chosen": f"good {number % 16}", "rejected": f"bad {number % 16}"} for number in range(200)
    ]
    rows = [plain(number) | both for number, both in enumerate(sides)]  # few items, to encode fast
    config = settings(configure, write(tmp_path / "raw", rows), grouping="prompt")
    counts = pipeline.prepare(config).card.counts
    assert counts.unseen_users > 0
    assert counts.cells["test_unseen"] > 0
    assert pipeline.embed(config).errors == 0
    for head, view in (("pal-a", "prompt+response"), ("pal-b", "response")):
        chosen = config.model_copy(update={"train": config.train.model_copy(update={"head": head})})
        metrics = pipeline.train(chosen, run=head)
        assert metrics.head == head
        assert metrics.test_seen.n_pairs == counts.cells["test_seen"]
        assert metrics.test_unseen
        assert open_inputs(chosen)[0].view == view


def test_a_pair_without_a_prompt_is_used_where_it_can_be(
    configure: Configure, tmp_path: Path
) -> None:
    rows = [
        {**plain(n), "chosen": f"good {n % 16}", "rejected": f"bad {n % 16}"} for n in range(200)
    ]
    for row in rows[::5]:
        del row["prompt"]
    config = settings(configure, write(tmp_path / "raw", rows), grouping="prompt")
    dataset = PreparedDataset.open(Path(pipeline.prepare(config).folder))
    pairs = dataset.pairs(population="seen")
    for split in ("train", "val", "test"):
        assert 0 < pairs.filter(split=split)["prompt_id"].null_count() < 40
    pipeline.embed(config)
    chosen = config.model_copy(update={"train": config.train.model_copy(update={"head": "pal-a"})})
    metrics = pipeline.train(chosen, run="pal-a")
    assert metrics.test_seen.n_pairs == dataset.card.counts.cells["test_seen"]
    train = resolve(config.train.model_copy(update={"head": "pal-b"}))
    _, store = open_inputs(config)
    with pytest.warns(PalWarning, match=r"have no prompt and are left out.*; pal-a uses them"):
        data = TrainingData.load(train, dataset.viewed("response"), store, "cpu")
    assert data.train.prompt is not None
    with_prompt = pairs.filter(pl.col("prompt_id").is_not_null())
    assert len(data.train) == len(with_prompt.filter(split="train"))
    assert len(data.val) == len(with_prompt.filter(split="val"))
    assert fit_head(data, train, 0).head.uses_prompt


# The doctor


@pytest.fixture
def much_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**12))


def files() -> set[Path]:
    return set(Path().rglob("*"))


def examined(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout


def test_the_doctor_names_each_reason_with_an_example_and_a_fix(
    tmp_path: Path, much_disk: None
) -> None:
    source = write(
        tmp_path / "raw",
        awkward_rows() + plain_rows() + [without(plain(0), "user_id")],
        "mine.jsonl",
    )
    before = files()
    arguments = ("--dataset", "pairs", "--source", str(source), "--set=data.pairs.min_pairs=1")
    code, text = examined(*arguments)
    lines = text.splitlines()
    first = {reason: number for number, (_, reason) in reversed(list(enumerate(AWKWARD)))}
    for reason, number in (first | {"no-user": len(AWKWARD) + ROWS}).items():
        count = sum(one == reason for _, one in AWKWARD) + (reason == "no-user")
        at = next(at for at, line in enumerate(lines) if f": {count} rows {reason}, e.g. " in line)
        assert lines[at].startswith("PROBLEM  dataset pairs: ")
        assert f"e.g. mine.jsonl:{number:07d}: " in lines[at]
        assert lines[at + 1] == f"         -> {doctor.FIXES[reason]}"
    assert code == 1
    report = json.loads(examined(*arguments, "--json")[1])
    problems = [finding for finding in report["findings"] if finding["state"] == "problem"]
    found = {re.sub(r"^\d+ rows (\S+), e\.g\. .*", r"\1", finding["what"]) for finding in problems}
    assert found == set(first) | {"no-user", "too-few-pairs"}
    assert report["problems"] == len(problems) == len(found)
    assert all(finding["fix"] for finding in problems)
    assert lines[-1] == f"{len(problems)} problems"
    assert files() == before


def test_the_doctor_is_content_with_a_good_source(tmp_path: Path, much_disk: None) -> None:
    source = write(tmp_path / "raw", [plain(number) for number in range(ROWS * 4)], "rows.csv")
    before = files()
    code, text = examined(
        "--dataset", "pairs", "--source", str(source), "--set=data.pairs.min_pairs=1"
    )
    assert (code, text.splitlines()[-1]) == (0, "0 problems")
    assert re.search(r"ok       dataset pairs: \d+ comparisons of .*raw can be used", text)
    assert re.search(
        r"note     dataset pairs: \d+ rows not-its-role", text
    )  # which is no fault of the source
    assert files() == before


def test_the_doctor_looks_at_no_dataset_unless_told(much_disk: None) -> None:
    code, text = examined()
    assert code == 0
    assert "dataset" not in text
    assert files() == set()


def test_the_doctor_reads_what_was_prepared_last(
    configure: Configure, tmp_path: Path, much_disk: None
) -> None:
    assert examined("--dataset", "pairs")[0] == 1
    pipeline.prepare(
        settings(
            configure, write(tmp_path / "raw", [without(row, "user_id") for row in plain_rows()])
        )
    )
    assert examined("--dataset", "pairs") == examined(
        "--dataset", "pairs", "--source", str(tmp_path / "raw")
    )
    assert examined("--dataset", "pairs")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--dataset", "pairs", "--source", "absent"),
            "the source 'absent' of dataset pairs does not exist",
        ),
        (("--dataset", "pairs"), "dataset pairs needs to know its source"),
        (("--dataset", "nothing"), "unknown dataset 'nothing'"),
        (
            ("--dataset", "pairs", "--source", "raw"),
            "the rows of dataset pairs have no chosen and rejected, nor first, second and label",
        ),
    ],
)
def test_a_source_that_cannot_be_used_is_a_problem(
    arguments: tuple[str, ...], words: str, much_disk: None
) -> None:
    write(Path("raw"), [{}])
    code, text = examined(*arguments)
    assert code == 1
    assert words in text


def test_parts_that_somebody_is_at_are_left_to_them(configure: Configure, tmp_path: Path) -> None:
    write(tmp_path / "raw", plain_rows())
    prepared(configure, tmp_path / "raw")
    part = Path("prepared-raw/.pairs.unfinished-0123456789abcdef/000000")
    part.mkdir(parents=True)
    with locked(Path("prepared-raw/pairs")):  # another pal prepares it with other settings
        prepared(configure, tmp_path / "raw")
        assert part.exists()
    prepared(configure, tmp_path / "raw")
    assert not part.parent.exists()
    assert not list(Path("prepared-raw").glob(".*lock"))


def test_little_disk_and_unfinished_caches_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
    folder = Path("cache/demo/tiny")
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text("{}")
    code, text = examined()
    assert (code, text.splitlines()[-1]) == (1, "2 problems")
    assert "PROBLEM  disk: 1 GB free here\n         -> free some" in text
    assert (
        "PROBLEM  cache: cache/demo/tiny: incomplete, 0 rows\n         -> run pal embed again"
        in text
    )


def test_the_doctor_downloads_nothing(
    configure: Configure, tmp_path: Path, much_disk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("pal.data.fetch.fetch", lambda url, *_: asked.append(url))
    rows = [{"chosen": f"https://example.org/{n}.png", "rejected": "b"} for n in range(3)]
    source = write(tmp_path / "raw", rows)
    before = files()
    code, text = examined(
        "--dataset", "pairs", "--source", str(source), "--set=data.pairs.fetch_images=true"
    )
    assert code == 1
    assert "3 rows no-image" in text
    assert (asked, files()) == ([], before)


def test_the_doctor_prints_exactly_one_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "raw", [*plain_rows(), *awkward_rows()])
    command = ["doctor", "--dataset", "pairs", "--source", str(source), "--json"]
    monkeypatch.setattr("sys.argv", ["pal", *command])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capfd.readouterr()
    assert (end.value.code, err) == (1, "")
    assert len(out.splitlines()) == 1
    report = json.loads(out)
    assert report["problems"] > 0
    assert {finding["state"] for finding in report["findings"]} <= {"ok", "note", "problem"}
    assert files() == {Path("raw"), Path("raw/rows.jsonl")}
