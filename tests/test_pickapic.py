"""Pick-a-Pic and Pick-a-Filter from sources in the published schema, which these tests write
themselves."""

from __future__ import annotations

import itertools
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from pal import pipeline
from pal.config import Config
from pal.data.adapter import Part
from pal.data.build import prepare
from pal.data.filters import render
from pal.data.parts import read_parts
from pal.data.sources import adapter_for
from pal.dataset import PreparedDataset
from pal.embed.images import ImageReader
from pal.errors import DataError
from pal.items import Image, items_of

Configure = Callable[..., Config]
SOURCE: dict[str, Any] = runpy.run_path(
    str(Path(__file__).parents[1] / "benchmarks" / "pickapic_source.py")
)
make_row, write, write_source, rows_of = (
    SOURCE[name] for name in ("make_row", "write", "write_source", "rows")
)


def prepared(config: Config, folder: str = "data") -> PreparedDataset:
    name, settings = config.dataset, config.dataset_config()
    return prepare(name, settings, Path(folder) / name, adapter_for(name, settings))


def settings(
    configure: Configure, source: str | Path = "source", name: str = "pickapic", **options: Any
) -> Config:
    keys = {
        f"data.{name}.{key}": value for key, value in {"source": str(source), **options}.items()
    }
    return configure({"dataset": name, "encoder": "tiny-clip", **keys})


def image(number: int) -> bytes:
    return b"jpeg %d" % number


def plain_rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Return rows whose images are never decoded: three users, captions in pairs."""
    return [
        make_row(n, n % 3, f"caption {n // 2}", (image(2 * n), image(2 * n + 1)), float(n % 2))
        for n in range(first, first + count)
    ]


def write_plain(folder: Path = Path("source")) -> list[dict[str, Any]]:
    rows = plain_rows(30)
    for split, start, stop in (("train", 0, 18), ("validation", 18, 24), ("test", 24, 30)):
        write(
            folder / "data" / f"{split}-00000-of-00001.parquet", rows[start:stop], rows_per_group=5
        )
    return rows


def test_rows_become_pairs_and_items_that_point_into_the_source(configure: Configure) -> None:
    rows = write_plain()
    dataset = prepared(settings(configure))
    pairs = dataset.pairs()
    assert dict(pairs["split"].value_counts().iter_rows()) == {"train": 18, "val": 6, "test": 6}
    items = pl.DataFrame(pl.from_arrow(dataset.items()))
    by_id, reader = {row["item_id"]: row for row in items.iter_rows(named=True)}, ImageReader()
    by_item = dict(zip(items["item_id"], items_of(dataset.items()), strict=True))
    originals = {row["ranking_id"]: row for row in rows}
    for pair in pairs.iter_rows(named=True):
        row = originals[pair["ranking_id"]]
        assert by_id[pair["prompt_id"]]["text"] == row["caption"]
        assert pair["user_id"] == str(row["user_id"])
        assert pair["label"] == row["label_0"]
        for side, name in enumerate(("first_id", "second_id")):
            item = by_item[pair[name]]
            assert isinstance(item, Image)
            assert reader.bytes_of(item.place) == row[f"jpg_{side}"]


def awkward() -> list[dict[str, Any]]:
    """Return train rows that need a decision, one of each kind, and the reason they are rejected
    for."""
    rows = plain_rows(12, first=100)
    rows[0] |= {"user_id": None}
    rows[1] |= {"label_0": None, "label_1": None, "has_label": False}
    rows[2] |= {"label_0": float("nan")}
    rows[3] |= {"are_different": False}
    rows[4] |= {"jpg_1": rows[4]["jpg_0"]}
    rows[5] |= {"label_0": 1.0, "label_1": 1.0}
    rows[6] |= {"jpg_0": None}
    rows[7] |= {"label_0": 0.0, "label_1": 1.0, "best_image_uid": rows[7]["image_0_uid"]}
    rows[8] |= {"label_0": 0.5, "label_1": 0.5, "best_image_uid": "tie"}  # a tie is a comparison
    rows[9] |= {"caption": "caption 12"}  # a prompt of the test split
    rows[10] |= {"caption": None}  # no prompt is no reason
    rows[11] |= {"caption": "naïve 猫 🐈 " + "long " * 100_000}
    return rows


def test_awkward_rows_become_rejects_with_a_reason(configure: Configure) -> None:
    write_plain()
    write(Path("source/data/train-00001-of-00002.parquet"), awkward())
    dataset = prepared(settings(configure))
    assert dataset.card.rejects == {
        "bad-label": 2,
        "identical-items": 2,
        "no-image": 1,
        "no-label": 2,
        "no-user": 1,
        "prompt-in-another-split": 1,
    }
    assert dataset.card.counts.pairs + sum(dataset.card.rejects.values()) == 30 + 12
    assert dataset.card.counts.ties == 1
    groups = (
        dataset.pairs()
        .drop_nulls("prompt_id")
        .group_by("prompt_id")
        .agg(pl.col("split").n_unique())
    )
    assert groups["split"].max() == 1


def test_repeats_and_contradictions_are_counted(configure: Configure) -> None:
    rows = write_plain()
    swapped = rows[1] | {
        "label_0": rows[1]["label_1"],
        "label_1": rows[1]["label_0"],
        "best_image_uid": None,
    }
    write(Path("source/data/train-00001-of-00002.parquet"), [rows[0], swapped])
    counts = prepared(settings(configure)).card.counts
    assert (counts.repeated, counts.contradictory, counts.pairs) == (2, 1, 32)


@pytest.mark.parametrize(
    ("ties", "kept"), [("keep", (3, 2)), ("drop", (0, 0)), ("half", (0, 2)), ("soft", (3, 0))]
)
def test_ties_go_where_the_setting_says(
    configure: Configure, ties: str, kept: tuple[int, int]
) -> None:
    rows = plain_rows(30)
    for number in (0, 5, 7, 24, 27):
        rows[number] |= {"label_0": 0.5, "label_1": 0.5, "best_image_uid": "tie"}
    for split, start, stop in (("train", 0, 18), ("validation", 18, 24), ("test", 24, 30)):
        write(Path(f"source/{split}.parquet"), rows[start:stop])
    dataset = prepared(settings(configure, ties=ties))
    tied = dataset.pairs().filter(pl.col("label") == 0.5)
    assert ((tied["split"] == "train").sum(), (tied["split"] == "test").sum()) == kept
    assert dataset.card.counts.pairs + sum(dataset.card.rejects.values()) == 30


def test_users_unknown_to_train_and_leaking_rankings_are_left_out(configure: Configure) -> None:
    write_plain()
    stranger = make_row(500, 99, "of a stranger", (image(500), image(501)), 1.0)
    write(Path("source/data/test-00001-of-00002.parquet"), [stranger])
    torch.save(torch.tensor([25, 26, 999]), "leaking.pt")
    Path("leaking.txt").write_text("ranking_id\n25\n26\n")
    for file in ("leaking.pt", "leaking.txt"):
        dataset = prepared(settings(configure, leaking_rankings=file), f"data-{file}")
        assert dataset.card.rejects == {"leaking": 2, "user-not-in-train": 1}
    with pytest.raises(DataError, match=r"cannot read ranking ids from absent\.json"):
        prepared(settings(configure, leaking_rankings="absent.json"))


def test_the_unique_splits_repeat_rows_and_are_read_only_on_request(configure: Configure) -> None:
    rows = write_plain()
    write(Path("source/data/validation_unique-00000-of-00001.parquet"), rows[18:20])
    write(Path("source/data/test_unique-00000-of-00001.parquet"), rows[24:27])
    full, unique = (
        prepared(settings(configure, judged_on=which), which) for which in ("full", "unique")
    )
    assert full.card.counts.cells == {"test_seen": 6, "train_seen": 18, "val_seen": 6}
    assert unique.card.counts.cells == {"test_seen": 3, "train_seen": 18, "val_seen": 2}


def test_the_variant_without_images_says_what_is_missing(configure: Configure) -> None:
    rows = [
        {name: value for name, value in row.items() if not name.startswith("jpg")}
        for row in plain_rows(12)
    ]
    pl.DataFrame(rows).write_parquet("train.parquet")
    with pytest.raises(
        DataError, match=r"no comparison was found in train\.parquet \(12 no-image\)"
    ):
        prepared(settings(configure, "train.parquet"))
    pl.DataFrame(rows).drop("caption").write_parquet("other.parquet")
    with pytest.raises(DataError, match="has no column caption; is it a Pick-a-Pic file"):
        prepared(settings(configure, "other.parquet"))
    Path("train.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(DataError, match="is no whole Parquet file"):
        prepared(settings(configure, "train.parquet"))


def test_new_users_have_shots_from_train_and_are_judged_on_their_split(
    configure: Configure,
) -> None:
    write_source(Path("source"), {"train": 600, "validation": 200, "test": 200}, users=20, size=8)
    config = settings(configure, validation_user_share=0.2, test_user_share=0.3, min_pairs=3)
    pairs = prepared(config).pairs()
    roles = (
        pairs.filter(pl.col("population") == "unseen")
        .group_by("user_id")
        .agg(pl.col("split").unique().sort())
    )
    assert {tuple(splits) for splits in roles["split"]} == {("train", "val"), ("test", "train")}
    assert not set(roles["user_id"]) & set(pairs.filter(pl.col("population") == "seen")["user_id"])


@pytest.mark.parametrize("name", ["pickapic", "pickafilter"])
def test_order_and_size_of_files_change_no_digest(configure: Configure, name: str) -> None:
    rows = [*plain_rows(60), *awkward()]
    expected = None
    for seed in range(4):
        chance = random.Random(seed)
        folder = Path(f"source-{seed}")
        for split, start, stop in (
            ("train", 0, 40),
            ("validation", 40, 50),
            ("test", 50, len(rows)),
        ):
            own = rows[start:stop]
            chance.shuffle(own)
            cuts = sorted({0, len(own), *(chance.randrange(len(own)) for _ in range(seed))})
            for number, (a, b) in enumerate(itertools.pairwise(cuts)):
                write(
                    folder / f"{split}-{number:05d}.parquet",
                    own[a:b],
                    rows_per_group=chance.randint(1, 30),
                )
        card = prepared(settings(configure, folder, name), f"data-{seed}").card
        found = card.digests, card.split_digest, card.rejects
        assert found == (expected or found)
        expected = found


def test_filters_favour_what_their_user_likes(configure: Configure) -> None:
    write_source(Path("source"), {"train": 400, "validation": 50, "test": 50}, users=12, size=8)
    dataset = prepared(settings(configure, name="pickafilter", beta=0.6))
    items = pl.DataFrame(pl.from_arrow(dataset.items()))
    filters = dict(items.select("item_id", "image_filter").iter_rows())
    assert dataset.pairs().group_by("user_id").agg(pl.col("group").n_unique())["group"].max() == 1
    kinds = {"plain": 0, "winner": 0, "loser": 0}
    for pair in dataset.pairs().iter_rows(named=True):
        first, second = filters[pair["first_id"]], filters[pair["second_id"]]
        winner, loser = (first, second) if pair["label"] == 1.0 else (second, first)
        assert winner is None or loser is None
        kinds["winner" if winner else "loser" if loser else "plain"] += 1
        if winner:
            assert winner.startswith(pair["group"])
        if loser:
            assert not loser.startswith(pair["group"])
    assert kinds["plain"] == pytest.approx(200, abs=45)
    assert kinds["winner"] == pytest.approx(kinds["loser"], abs=55)
    assert not any(filters_of(prepared(settings(configure, name="pickafilter", beta=0.0), "none")))


def filters_of(dataset: PreparedDataset) -> list[str | None]:
    return dataset.items(["image_filter"]).column("image_filter").to_pylist()


def test_warm_and_cool_shift_red_against_blue() -> None:
    from PIL import Image

    grey = Image.new("RGB", (2, 2), (100, 100, 100))
    assert render(grey, "warm-0.3").getpixel((0, 0)) == (130, 100, 70)
    assert render(grey.convert("L"), "cool-0.3").getpixel((0, 0)) == (70, 100, 130)
    with pytest.raises(ValueError, match="unknown image filter 'sepia-1'"):
        render(grey, "sepia-1")


def test_a_damaged_part_is_read_again(configure: Configure) -> None:
    write_source(Path("source"), {"train": 9000, "validation": 300, "test": 300}, users=20, size=8)
    config = settings(configure)
    adapter = adapter_for("pickapic", config.dataset_config())(config.dataset_config())
    read: list[int] = []

    def counted(number: int, part: Part) -> Part:
        return lambda: read.append(number) or part()  # type: ignore[func-returns-value]

    parts = [counted(number, part) for number, part in enumerate(adapter.parts())]
    assert len(parts) > 2
    whole = read_parts(parts, Path("kept"))
    damaged = Path("kept/000001/items.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    (Path("kept/000002") / "pairs.parquet").write_bytes(
        (Path("kept/000002") / "rejects.parquet").read_bytes()
    )
    read.clear()
    again = read_parts(parts, Path("kept"))
    assert read == [1, 2]
    for table in ("items", "pairs", "rejects"):
        assert getattr(again, table).equals(getattr(whole, table))


@pytest.mark.slow
def test_a_killed_preparation_goes_on_and_gives_the_same_files(configure: Configure) -> None:
    write_source(Path("source"), {"train": 9000, "validation": 300, "test": 300}, users=20, size=8)
    command = [
        sys.executable,
        "-m",
        "pal",
        "prepare",
        "--dataset",
        "pickapic",
        "--source",
        "source",
    ]
    whole = subprocess.run([*command, "--set", "paths.data=whole"], capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while (
        not (unfinished := list(Path("data").glob(".pickapic.unfinished-*/0*")))
        and process.poll() is None
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("data/pickapic").exists()
    stamps = {place: os.stat(place).st_mtime_ns for place in unfinished}
    assert stamps
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    for file in ("items.parquet", "pairs.parquet", "rejects.parquet"):
        assert Path("data/pickapic", file).read_bytes() == Path("whole/pickapic", file).read_bytes()
    assert not list(Path("data").glob(".pickapic.*"))


def vivid(user: int, first: float, second: float) -> float:
    """Answer as all users of a source without plurality: the more vivid image, warm or cool."""
    return float(abs(first) > abs(second))


def accuracies(config: Config, epochs: int, name: str = "run") -> dict[int, float]:
    """Return the accuracy of PAL-A on test pairs of seen users, by K; ``name`` begins those of the
    runs."""
    pipeline.embed(config)
    found = {}
    for k in (1, 2):
        train = config.train.model_copy(update={"head": "pal-a", "k": k, "epochs": epochs})
        metrics = pipeline.train(
            config.model_copy(update={"train": train}), f"{name}-{config.dataset}-{k}"
        )
        assert metrics.untrained
        assert metrics.test_seen is not None
        found[k] = metrics.test_seen.macro_accuracy
    return found


@pytest.mark.slow
def test_plurality_of_tones_shows_on_pickapic_and_on_the_filter_alone(configure: Configure) -> None:
    sizes = {"train": 3000, "validation": 400, "test": 600}
    write_source(Path("tones"), sizes, users=40)
    found = accuracies(settings(configure, "tones"), epochs=20)
    assert found[2] >= found[1] + 0.15
    write_source(Path("vivid"), sizes, users=40, answer=vivid)
    filtered = accuracies(
        settings(configure, "vivid", "pickafilter", beta=1.0, strength=0.6), epochs=20
    )
    plain = accuracies(settings(configure, "vivid", "pickafilter", beta=0.0), 20, "plain")
    print(f"pickapic {found}, pickafilter beta 1 {filtered}, beta 0 {plain}")
    assert filtered[2] >= filtered[1] + 0.15
    assert abs(plain[2] - plain[1]) < 0.05


def test_plurality_of_tones_shows_on_a_small_source(configure: Configure) -> None:
    write_source(Path("source"), {"train": 700, "validation": 100, "test": 150}, users=8, size=32)
    found = accuracies(settings(configure), epochs=15)
    assert found[2] >= found[1] + 0.15
