"""Files as people have them, each read exactly as it should be, or refused in one right sentence.

``python tests/test_peoples_files.py --write`` makes docs/results/files.md of the same list.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image as Pil

from pal.config import load
from pal.data.comparisons import Chunk
from pal.data.parts import read_parts
from pal.data.sources import adapter_for
from pal.data.tables import tables_of
from pal.embed.images import ImageReader, decode
from pal.errors import PalError
from pal.items import Image, Text, items_of

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = REPOSITORY.parent / "shared" / "files"
REAL = REPOSITORY.parent / "shared" / "real"
EIGHT = {f"u{number}" for number in range(8)}
ACCENTS = {"José", "Josè", "Zoë", "Müller", "Åsa", "Ünal"}
NUMBERS = {str(number) for number in range(8)}


@dataclass(frozen=True)
class Row:
    """A comparison with its texts."""

    user: str
    prompt: Text | None
    first: str
    second: str
    label: float
    split: str | None


@dataclass(frozen=True)
class Read:
    """A source as it was read, before it is divided into splits."""

    chunk: Chunk

    @property
    def users(self) -> set[str]:
        return set(self.chunk.pairs["user_id"])

    @property
    def rejects(self) -> dict[str, int]:
        return dict(self.chunk.rejects.group_by("reason").len().iter_rows())

    @property
    def modalities(self) -> set[str]:
        return set(self.chunk.items["modality"])

    @property
    def total(self) -> int:
        return len(self.chunk.pairs) + len(self.chunk.rejects)

    def rows(self) -> list[Row]:
        ids = self.chunk.items["item_id"]
        items = dict(zip(ids, items_of(self.chunk.items.to_arrow()), strict=True))

        def said(name: bytes) -> str:
            item = items[name]
            return item.text if isinstance(item, Text) else str(item)

        return [
            Row(
                row["user_id"], items.get(row["prompt_id"]), said(row["first_id"]),  # type: ignore[arg-type]
                said(row["second_id"]), row["label"], row["split"],
            )
            for row in self.chunk.pairs.iter_rows(named=True)
        ]  # fmt: skip


def adapter_of(kind: str, source: Path, **settings: Any) -> Any:
    given = {"kind": kind, "source": str(source), **settings}
    config = load(None, (), {"dataset": "mine", "data.mine": given}).config.dataset_config()
    return adapter_for("mine", config)(config)


def read(kind: str, source: Path, **settings: Any) -> Read:
    return Read(read_parts(adapter_of(kind, source, **settings).parts(), None))


def agree_with_length(found: Read) -> None:
    """Assert that even users prefer the shorter answer and odd ones the longer, as it was planted:
    a label read the wrong way round would show."""
    for row in found.rows():
        if row.label != 0.5:
            chosen, other = (row.first, row.second)[:: 1 if row.label == 1 else -1]
            is_even = int(row.user[-1]) % 2 == 0
            assert (len(chosen) < len(other)) == is_even, row


def whole(users: set[str], rows: int = 120, **rejects: int) -> Callable[[Read], None]:
    """Return a check that all rows are there, of these users, for what they were planted with."""

    def check(found: Read) -> None:
        assert found.rejects == {name.replace("_", "-"): n for name, n in rejects.items()}
        assert (found.users, found.total) == (users, rows)
        assert found.modalities == {"text"}
        agree_with_length(found)

    return check


def names(found: Read) -> None:
    assert len(found.users) == 8
    assert found.users >= ACCENTS
    assert (found.total, found.rejects) == (120, {})


def labelled(ties: int, rows: int = 120) -> Callable[[Read], None]:
    def check(found: Read) -> None:
        labels = found.chunk.pairs["label"]
        assert (len(labels), int((labels == 0.5).sum())) == (rows, ties)
        assert set(labels) <= {0.0, 0.5, 1.0}
        agree_with_length(found)

    return check


def messages(found: Read) -> None:
    whole(EIGHT)(found)
    assert not any('"role"' in text for text in found.chunk.items["text"])
    prompts = {row.prompt.text for row in found.rows() if row.prompt}
    assert len(prompts) == 30


def tool_calls(found: Read) -> None:
    whole(EIGHT)(found)
    turns = [row.prompt.turns for row in found.rows() if row.prompt]
    assert all([turn.role for turn in one][:2] == ["system", "user"] for one in turns)
    calls = [one for one in turns if [turn.role for turn in one][2:] == ["assistant", "tool"]]
    assert len(calls) == 24
    assert all((one[2].content, one[3].content) == ("", "42") for one in calls)


def hub(found: Read) -> None:
    whole(EIGHT)(found)
    assert dict(found.chunk.pairs["split"].value_counts().iter_rows()) == {"train": 96, "test": 24}
    pairs = tables_of(adapter_of("pairs", FILES / "hub-layout", min_pairs=1)).pairs
    assert len(pairs.filter(split="test")) == 24
    texts = tables_of(adapter_of("pairs", FILES / "hub-layout", min_pairs=1)).items
    held = set(texts.filter(pl.col("text").str.starts_with("Held out"))["item_id"])
    assert not held & set(pairs.filter(pl.col("split") != "test")["prompt_id"])


def stars(found: Read) -> None:
    rows = found.rows()
    assert len(found.users) == 8
    assert {row.label for row in rows} == {0.0, 1.0}
    for row in rows:
        number = row.prompt.text.split()[-1].strip("?") if row.prompt else ""
        assert all(f"[{number}/" in text for text in (row.first, row.second)), row
    follow = [
        (len(row.first) < len(row.second)) == ((row.label == 1) == (int(row.user[1]) % 2 == 1))
        for row in rows
    ]
    assert abs(np.mean(follow) - 0.5) > 0.25, "stars are by length, with noise"


def parity(found: Read) -> None:
    assert found.users == {str(number) for number in range(12)}
    assert found.rejects == {"pass": 51, "no-vote": 27}
    assert found.total == 360
    for row in found.rows():
        agrees = (row.label == 1) == (row.first == "Agree")
        number = int(row.prompt.text.split("(")[1].strip(")")) if row.prompt else -1
        assert agrees == ((int(row.user) + number) % 2 == 0), row


def pictures(found: Read) -> None:
    assert (found.total, found.rejects) == (12, {})
    images = [i for i in items_of(found.chunk.items.to_arrow()) if isinstance(i, Image)]
    assert len(images) == 2
    sizes = {decode(ImageReader().bytes_of(image.place)).size for image in images}
    assert sizes == {(64, 40)}


@dataclass(frozen=True)
class Case:
    """A file, what is special about it, and what must come of it."""

    file: str
    what: str
    right: str
    check: Callable[[Read], None] | str
    """of what was read; a text: the words of the refusal"""
    kind: str = "pairs"
    settings: tuple[tuple[str, Any], ...] = ()


OWN_NAMES = {
    "user_id": "annotator", "prompt": "question", "first": "answer_a", "second": "answer_b",
    "label": "preferred",
}  # fmt: skip
CASES = [
    Case("semicolon.csv", "semicolons between cells", "as with commas", whole(EIGHT)),
    Case("tab.csv", "tabs between cells", "as with commas", whole(EIGHT)),
    Case("cp1252.csv", "Windows' encoding", "asked for, showing what cp1252 would read",
         r"is not UTF-8: 120 of its 120 lines .*'\"José.*set data.mine.encoding: cp1252"),
    Case("cp1252.csv", "Windows' encoding, said", "eight users by their names", names,
         settings=(("encoding", "cp1252"),)),
    Case("utf8-bom.csv", "a byte-order mark", "eight users", names),
    Case("utf16.csv", "UTF-16 with a mark", "eight users", names),
    Case("rows.csv.gz", "compressed", "as CSV", whole(EIGHT)),
    Case("data-object.json", "rows under `data`", "120 rows", whole(EIGHT)),
    Case("labels-1-2.jsonl", "labels 1 and 2", "1 is the first", labelled(0)),
    Case("labels-words.jsonl", "labels A, B and tie", "108 strict, 12 ties", labelled(12)),
    Case("messages-as-json-text.jsonl", "messages as a string", "messages", messages),
    Case("tool-calls.jsonl", "`content: null`", "every row with its roles", tool_calls),
    Case("missing-users.csv", "ids empty or NaN", "40 rows without a user",
         whole(EIGHT, no_user=40)),
    Case("texts-with-file-endings.jsonl", "sentences that end in .png", "texts", whole(EIGHT)),
    Case("ids-as-numbers.jsonl", '3, 3.0 and "3"', "eight users", whole(NUMBERS)),
    Case("own-column-names.csv", "other names of columns", "asked for, with the mapping",
         "set data.mine.columns: {user_id: annotator, prompt: question, first: answer_a, second: "
         "answer_b, label: preferred}"),
    Case("own-column-names.csv", "the same, mapped", "A and tie", labelled(11),
         settings=(("columns", OWN_NAMES),)),
    Case("hub-layout", "split by the names of files", "24 test rows, none in train", hub),
    Case("with-checkpoints", "a notebook's hidden copy", "120 rows", whole(EIGHT)),
    Case("ratings.csv", "one to five stars", "within user and question", stars, "ratings"),
    Case("votes.csv", "semicolons, empty votes", "votes by parity", parity, "votes"),
    Case("data-uris.jsonl", "images within rows, and a path", "images", pictures),
]  # fmt: skip


def outcome(case: Case) -> str:
    """Check a case and return what was measured."""
    try:
        found = read(case.kind, FILES / case.file, **dict(case.settings))
    except PalError as error:
        told = str(error)
        assert isinstance(case.check, str), told
        assert re.search(case.check.replace("{", r"\{").replace("}", r"\}"), told), told
        assert "pal doctor" not in told
        return f"refused: {told}".replace(f"{FILES}/", "").replace("|", "\\|")
    assert not isinstance(case.check, str), f"read, not refused: {found.rejects}"
    case.check(found)
    lost = ", ".join(f"{count} {reason}" for reason, count in sorted(found.rejects.items()))
    counts = f"{found.total} rows" if case.kind != "ratings" else "all rows"
    return f"{counts}, {len(found.chunk.pairs)} comparisons of {len(found.users)} users" + (
        f"; left out: {lost}" if lost else ""
    )


here = pytest.mark.skipif(not FILES.is_dir(), reason=f"nothing at {FILES}")


@here
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}, {case.what}")
def test_a_file_as_people_have_it(case: Case) -> None:
    assert outcome(case)


@here
@pytest.mark.parametrize("name", ["utf8-bom.csv", "utf16.csv"])
def test_a_mark_is_no_part_of_the_first_column(name: str) -> None:
    assert adapter_of("pairs", FILES / name).survey.names[0] == "user_id"


def seen(name: str) -> np.ndarray:
    raw = (FILES / "images" / name).read_bytes()
    return np.asarray(decode(raw).convert("RGB")).astype(int)


IMAGES = [
    ("exif-rotated.jpg", "upright.png", "stored sideways", 2.0),
    ("transparent.png", "transparent-as-seen.png", "transparent", 0.0),
    ("sixteen-bit.png", "sixteen-bit-as-seen.png", "16 bits of grey", 0.0),
    ("cmyk.jpg", "upright.png", "CMYK", 2.0),
    ("palette.gif", "upright.png", "a palette, without the white bar", 0.0),
    ("plain.tif", "upright.png", "TIFF", 0.0),
    ("plain.webp", "upright.png", "WebP", 2.5),
]
"""file, what it must look like, what is special about it, greatest mean difference of 255"""


def difference(name: str, other: str) -> float:
    """Return the mean difference of two pictures; of the GIF below the bar that it lacks."""
    one, wanted = seen(name), np.asarray(Pil.open(FILES / "images" / other).convert("RGB"))
    assert one.shape == wanted.shape
    bar = 10 if name.endswith(".gif") else 0
    return float(np.abs(one - wanted)[bar:].mean())


@here
@pytest.mark.parametrize(("name", "other", "what", "most"), IMAGES)
def test_an_image_is_read_as_people_see_it(name: str, other: str, what: str, most: float) -> None:
    assert difference(name, other) <= most


def told(kind: str, source: Path) -> str:
    """Return what was read of a source, for people."""
    found = read(kind, source)
    lost = ", ".join(f"{count:,} {reason}" for reason, count in sorted(found.rejects.items()))
    used = f"{len(found.chunk.pairs):,} comparisons of {len(found.users):,} users"
    return f"{found.total:,} rows, {used}; left out: {lost or 'none'}"


def table() -> str:
    """Return the table of all files as Markdown."""
    lines = ["| file | what is special | right | what `pal` does |", "|---|---|---|---|"]
    for case in CASES:
        lines.append(f"| {case.file} | {case.what} | {case.right} | {outcome(case)} |")
    for folder in sorted((REAL / "polis").glob("*")):
        lines.append(f"| {folder.name}/ | Polis' own export | votes | {told('polis', folder)} |")
    for folder in sorted(REAL.glob("polarized-issues")):
        lines.append(f"| {folder.name}/ | Remesh's own export | ties | {told('remesh', folder)} |")
    for name, other, what, _ in IMAGES:
        far = f"mean difference {difference(name, other):.2f} of 255"
        lines.append(f"| images/{name} | {what} | like {other} | {far} |")
    return "\n".join(lines)


if __name__ == "__main__" and "--write" in sys.argv:
    target = REPOSITORY / "docs" / "results" / "files.md"
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        text = table()
    target.write_text(
        "# Files as people have them\n\n"
        "Made by `python tests/test_peoples_files.py --write`, which checks what it writes down: "
        "`../shared/files` and `../shared/real`, each a source of its own, before any split.\n\n"
        f"{text}\n",
        encoding="utf-8",
    )
