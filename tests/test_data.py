"""From raw sources to items and pairs."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pal import pipeline
from pal.chance import bucket, draw, normals, words
from pal.config import Config, DatasetConfig, flatten, load
from pal.data import sources
from pal.data.adapter import Adapter
from pal.data.build import prepare
from pal.data.comparisons import Chunk
from pal.data.groups import least_joined
from pal.data.sources import adapter_for, adapters
from pal.data.sources.simulated import Simulated
from pal.data.splits import split_of
from pal.dataset import PreparedDataset
from pal.errors import ConfigError, DataError
from pal.items import item_id
from pal.records import write_row_groups, write_table

Configure = Callable[..., Config]


SIZES: dict[str, Any] = {
    "users": 6,
    "pairs_per_user": 10,
    "validation_pairs_per_user": 5,
    "test_pairs_per_user": 5,
}


def write_persona(folder: Path, name: str, statements: int) -> None:
    """Write a file in the published schema: alternating statements that match Yes and No."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(statements):
        statement = f"{name} statement {number}"
        yes = number % 2 == 0
        rows.append(
            {
                "question": f'Is the following statement something you would say?\n"{statement}"',
                "statement": statement,
                "label_confidence": 0.9,
                "answer_matching_behavior": " Yes" if yes else " No",
                "answer_not_matching_behavior": " No" if yes else " Yes",
            }
        )
    (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def prepared(config: Config, folder: str = "data") -> PreparedDataset:
    name, settings = config.dataset, config.dataset_config()
    return prepare(name, settings, Path(folder) / name, adapter_for(name, settings))


def persona_config(configure: Configure, folder: Path, /, **options: object) -> Config:
    personas = ["interest-in-art", "interest-in-math"]
    return configure(
        {
            "dataset": "persona",
            "data.persona.personas": personas,
            "data.persona.source": str(folder),
        }
        | {f"data.persona.{key}": value for key, value in options.items()}
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name in ("interest-in-art", "interest-in-math"):
        write_persona(tmp_path / "raw", name, 100)
    return tmp_path / "raw"


def test_buckets_are_those_of_the_specification() -> None:
    assert bucket("user", "v1", "u0001") == pytest.approx(0.619934, abs=1e-6)
    assert bucket("user", "v1", "u0002") == pytest.approx(0.178231, abs=1e-6)
    assert bucket("prompt", "v1", "p0001") == pytest.approx(0.320173, abs=1e-6)
    assert bucket("shot", "v1", "u0001\x1f0\x1fr17") == pytest.approx(0.671747, abs=1e-6)


def test_words_of_ids_belong_to_id_and_key_alone() -> None:
    ids = np.array([bytes([n % 256, n // 256]) + b"id" for n in range(4000)], dtype="S16")
    one, other = words("shot", "v1", "0", ids), words("shot", "v1", "1", ids)
    assert (words("shot", "v1", "0", ids[::-1]) == one[::-1]).all()
    assert len(np.unique(np.concatenate([one, other]))) == 8000
    assert (
        f"{int(words('shot', 'v1', '0', np.array([b'r17'], 'S16'))[0]):016x}" == "0801ed0a249c9013"
    )
    for word in (
        one,
        other,
        one ^ other,
    ):  # every bit is one half of the time: within five standard errors
        bits = (word[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
        assert abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / 4000**0.5


def test_draws_are_distinct_and_repeatable() -> None:
    first = draw("ask", "v1", "user", 50, 20)
    assert len(set(first.tolist())) == 20
    assert (first == draw("ask", "v1", "user", 50, 20)).all()
    assert (first != draw("ask", "v1", "other", 50, 20)).any()


def test_normals_are_standard() -> None:
    values = normals("x", "v1", "k", 20_001)
    assert abs(values.mean()) < 0.03
    assert values.std() == pytest.approx(1.0, abs=0.02)


def test_item_ids_separate_their_parts() -> None:
    assert item_id("text", "ab", "c") != item_id("text", "a", "bc")
    assert item_id("text", "a") != item_id("image", "a")
    assert len(item_id("text", "\ud800")) == 16  # a lone surrogate is still a text


def test_persona_users_answer_as_their_group_would(configure: Configure, source: Path) -> None:
    dataset = prepared(persona_config(configure, source))
    texts = dict(
        zip(
            dataset.items().column("item_id").to_pylist(),
            dataset.items().column("text").to_pylist(),
            strict=True,
        )
    )
    pairs = dataset.pairs()
    assert len(pairs) == 6 * 20 + 4 * 15 + 2 * 15
    for row in pairs.iter_rows(named=True):
        question = texts[row["prompt_id"]]
        assert {texts[row["first_id"]], texts[row["second_id"]]} == {
            question + " Yes",
            question + " No",
        }
        chosen = texts[row["first_id"] if row["label"] == 1.0 else row["second_id"]]
        own = ("interest-in-art", "interest-in-math").index(
            question.split('"')[1].split(" statement")[0]
        ) == row["group"]
        matches_yes = int(question.rstrip('"').split()[-1]) % 2 == 0
        assert chosen.endswith(" Yes" if matches_yes == own else " No")


def test_no_statement_is_in_two_splits(configure: Configure, source: Path) -> None:
    pairs = prepared(persona_config(configure, source)).pairs()
    assert pairs.group_by("prompt_id").agg(pl.col("split").n_unique())["split"].max() == 1
    assert set(pairs["split"]) == {"train", "val", "test"}


def test_unseen_users_are_strangers_with_adaptation_pairs(
    configure: Configure, source: Path
) -> None:
    pairs = prepared(persona_config(configure, source)).pairs()
    seen, unseen = (
        set(pairs.filter(pl.col("population") == p)["user_id"]) for p in ("seen", "unseen")
    )
    assert len(seen) == 6
    assert len(unseen) == 6
    assert not seen & unseen
    roles = (
        pairs.filter(pl.col("population") == "unseen")
        .group_by("user_id")
        .agg(pl.col("split").unique().sort())
    )
    assert (
        sorted(map(tuple, roles["split"].to_list()))
        == [("test", "train")] * 4 + [("train", "val")] * 2
    )


def test_noise_flips_its_share_of_answers(configure: Configure, source: Path) -> None:
    clean = prepared(persona_config(configure, source, users=200), "clean").pairs()
    noisy = prepared(persona_config(configure, source, users=200, noise=0.2), "noisy").pairs()
    both = clean.join(noisy, on="pair_id")
    assert len(both) == len(clean)  # noise changes answers, not questions
    assert (both["label"] != both["label_right"]).mean() == pytest.approx(0.2, abs=0.03)


def test_row_order_of_the_source_changes_nothing(configure: Configure, source: Path) -> None:
    first = prepared(persona_config(configure, source), "first").card
    for file in source.glob("*.jsonl"):
        lines = file.read_text().splitlines()
        random.Random(0).shuffle(lines)
        file.write_text("\n".join(lines))
    second = prepared(persona_config(configure, source), "second").card
    assert first.digests == second.digests
    assert first.split_digest == second.split_digest


def test_salt_changes_the_split(configure: Configure, source: Path) -> None:
    cards = [
        prepared(persona_config(configure, source, salt=salt), salt).card for salt in ("a", "b")
    ]
    assert cards[0].split_digest != cards[1].split_digest
    assert cards[0].digests.items == cards[1].digests.items


def test_bad_rows_become_rejects_with_their_place(configure: Configure, source: Path) -> None:
    file = source / "interest-in-art.jsonl"
    good = file.read_text()
    file.write_text(
        good + '{"question": 5}\nnot json\n' + good.splitlines()[0] + '\n{"question": "q"}\n'
    )
    dataset = prepared(persona_config(configure, source))
    rejects = pl.DataFrame(pl.from_arrow(dataset.rejects()))
    assert rejects["source_row"].to_list() == [
        f"interest-in-art.jsonl:{n:06d}" for n in (101, 102, 103, 104)
    ]
    assert rejects["reason"].to_list() == ["malformed", "malformed", "repeated", "malformed"]
    assert dataset.card.rejects == {"malformed": 3, "repeated": 1}


def test_preparing_twice_writes_once(configure: Configure, source: Path) -> None:
    config = persona_config(configure, source)
    first = prepared(config).folder / "pairs.parquet"
    stamp = first.stat().st_mtime_ns
    prepared(config)
    without_source = config.dataset_config().model_copy(update={"source": None})
    prepare("persona", without_source, first.parent, adapters()["persona"])
    assert first.stat().st_mtime_ns == stamp
    write_persona(source, "interest-in-art", 120)
    prepared(config)
    assert first.stat().st_mtime_ns != stamp


def test_other_settings_are_prepared_from_the_recorded_source(
    configure: Configure, source: Path
) -> None:
    prepared(persona_config(configure, source))
    config = configure(
        {
            "dataset": "persona",
            "data.persona.groups": 1,
            "data.persona.personas": ["interest-in-art"],
        }
    )
    assert prepared(config).card.source == str(source)


def test_a_failing_source_leaves_the_old_dataset(configure: Configure, source: Path) -> None:
    before = prepared(persona_config(configure, source))
    content = (before.folder / "pairs.parquet").read_bytes()

    class Broken(Simulated):
        def chunks(self):  # type: ignore[no-untyped-def]
            yield next(super().chunks())
            raise OSError("disk gone")

    broken = configure({"dataset": "simulated"}).dataset_config()
    with pytest.raises(OSError, match="disk gone"):
        prepare("persona", broken, before.folder, Broken)
    assert (before.folder / "pairs.parquet").read_bytes() == content
    assert [path.name for path in before.folder.parent.iterdir()] == ["persona"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"source": "nowhere"},
            "the source 'nowhere' of dataset persona does not exist; give --source",
        ),
        ({"personas": ["interest-in-art", "absent"]}, "has no absent.jsonl"),
        ({"groups": 3}, "data.persona.groups = 3 needs as many personas"),
        ({"pairs_per_user": 500}, "500 train pairs per user were asked for, but only"),
        ({"source": "hf:no/such"}, "cannot fetch hf:no/such from the Hub"),
    ],
)
def test_a_bad_source_is_one_sentence(
    configure: Configure, source: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(DataError) as error:
        prepared(persona_config(configure, source, **options))
    assert words in str(error.value)
    assert not Path("data/persona").exists()


def test_an_empty_split_is_one_sentence(configure: Configure, source: Path) -> None:
    class NoTest(Simulated):
        def chunks(self):  # type: ignore[no-untyped-def]
            for chunk in super().chunks():
                yield Chunk(chunk.items, chunk.pairs.filter(pl.col("split") != "test"))

    settings: DatasetConfig = configure({"dataset": "simulated"}).dataset_config()
    with pytest.raises(DataError, match="the test split of the seen users is empty"):
        prepare("simulated", settings, Path("data/simulated"), NoTest)


def test_repeats_of_a_comparison_keep_their_own_rows(configure: Configure) -> None:
    class Twice(Simulated):
        def chunks(self):  # type: ignore[no-untyped-def]
            for chunk in super().chunks():
                yield chunk
                yield chunk

    config = configure({"dataset": "simulated"})
    once = prepare("simulated", config.dataset_config(), Path("once"), Simulated)
    twice = prepare("simulated", config.dataset_config(), Path("twice"), Twice)
    assert twice.card.counts.pairs == 2 * once.card.counts.pairs
    assert twice.card.counts.items == once.card.counts.items
    assert twice.pairs()["pair_id"].n_unique() == twice.card.counts.pairs


def test_simulated_answers_follow_the_planted_margins(configure: Configure) -> None:
    config = configure({"dataset": "simulated", "data.simulated.regime": "mixture"})
    dataset = prepared(config)
    truth = np.load(dataset.folder / "truth.npz")
    items = dataset.items()
    features = dict(
        zip(
            items.column("item_id").to_pylist(),
            (
                np.frombuffer(raw, np.float32).astype(float)
                for raw in items.column("feature").to_pylist()
            ),
            strict=True,
        )
    )
    weights = dict(zip(truth["users"], truth["weights"], strict=True))
    for row in dataset.pairs().iter_rows(named=True):
        ideal = weights[row["user_id"]] @ truth["prototypes"]
        near = [
            np.linalg.norm(truth["map"] @ (features[row[side]] - ideal))
            for side in ("first_id", "second_id")
        ]
        assert row["label"] == float(near[0] < near[1])
    np.testing.assert_allclose(truth["weights"].sum(axis=1), 1.0)


def test_reading_a_split_returns_only_that_split(configure: Configure) -> None:
    dataset = prepared(configure({"dataset": "simulated"}))
    assert set(dataset.pairs("train", "seen")["split"]) == {"train"}
    assert set(dataset.pairs("test", "unseen")["population"]) == {"unseen"}


def test_a_damaged_dataset_is_one_sentence(configure: Configure) -> None:
    dataset = prepared(configure({"dataset": "simulated"}))
    (dataset.folder / "pairs.parquet").write_bytes(b"PAR1")
    sentence = r"pairs.parquet is damaged: .*; run: pal prepare --dataset simulated"
    with pytest.raises(DataError, match=sentence):
        dataset.pairs()
    with pytest.raises(DataError, match="data/absent holds no prepared dataset; run: pal embed"):
        PreparedDataset.open(Path("data/absent"))


def spoil(file: Path) -> None:
    """Change one byte in the middle of a file."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize("file", ["items.parquet", "pairs.parquet", "rejects.parquet", "truth.npz"])
@pytest.mark.parametrize("how", ["changed", "cut", "gone", "swapped"])
def test_a_damaged_table_is_prepared_anew(
    file: str, how: str, configure: Configure, source: Path
) -> None:
    dataset = prepared(persona_config(configure, source))
    other = prepared(persona_config(configure, source, salt="other"), "other")
    path = dataset.folder / file
    whole = path.read_bytes()
    match how:
        case "changed":
            spoil(path)
        case "cut":
            path.write_bytes(whole[:-10])
        case "gone":
            path.unlink()
        case "swapped" if file != "rejects.parquet":  # those of both are empty
            path.write_bytes((other.folder / file).read_bytes())
    without_source = persona_config(configure, source).dataset_config()
    without_source = without_source.model_copy(update={"source": None})
    prepare("persona", without_source, dataset.folder, adapters()["persona"])
    assert path.read_bytes() == whole


def test_a_damaged_card_is_prepared_anew_from_a_given_source(
    configure: Configure, source: Path
) -> None:
    config = persona_config(configure, source)
    card = prepared(config).folder / "dataset.json"
    whole = card.read_bytes()
    spoil(card)
    without_source = config.dataset_config().model_copy(update={"source": None})
    with pytest.raises(DataError, match=r"dataset.json is damaged.*is not known; run: pal prepare"):
        prepare("persona", without_source, card.parent, adapters()["persona"])
    prepared(config)
    assert card.read_bytes() == whole


def test_a_damaged_card_of_generated_data_needs_no_source(configure: Configure) -> None:
    config = configure({"dataset": "simulated"})
    card = prepared(config).folder / "dataset.json"
    whole = card.read_bytes()
    spoil(card)
    prepared(config)
    assert card.read_bytes() == whole


def test_another_datasets_folder_is_prepared_anew(configure: Configure) -> None:
    first = prepared(configure({"dataset": "simulated"}))
    first.folder.rename(first.folder.with_name("demo"))
    dataset = prepared(configure({"dataset": "demo", "data.demo.limit": 200}))
    assert dataset.name == PreparedDataset.open(dataset.folder).name == "demo"


def test_a_folder_that_is_not_ours_is_never_replaced(configure: Configure) -> None:
    Path("data/demo").mkdir(parents=True)
    Path("data/demo/thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="exists and is no dataset of ours, so it is not replaced"):
        prepared(configure({"dataset": "demo"}))
    assert [path.name for path in Path("data/demo").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("name", ["../out", "", "a/b", ".hidden", "sources", "x" * 101])
def test_a_name_that_cannot_be_a_folders_is_refused_first(name: str, configure: Configure) -> None:
    def never(config: object) -> Adapter:
        raise AssertionError("work began")

    settings = configure({"dataset": "demo"}).dataset_config()
    with pytest.raises(ConfigError, match="dataset"):
        prepare(name, settings, Path("data") / name, never)


def test_ids_and_digests_are_those_of_earlier_versions(configure: Configure) -> None:
    card = prepared(configure({"dataset": "simulated"})).card
    assert card.digests.items.startswith("23b2403a5aadb65b")
    assert card.digests.pairs.startswith("56351d841ae36e84")
    assert card.split_digest.startswith("8aa226242ac9b566")


# Datasets by name


MINE = """
from collections.abc import Sequence
from typing import ClassVar

from pal.config import GroupedStatementsConfig
from pal.data.adapter import Adapter, Part
from pal.data.sources.statements import Statement, ask


class MoodConfig(GroupedStatementsConfig):
    needs_source: ClassVar[bool] = False
    groups: int = 2
    words: tuple[str, ...] = ("glad", "calm")


class Moods(Adapter):
    name = "mine"
    Settings = MoodConfig
    licence = origin = "made here"

    def inputs(self) -> dict[str, str]:
        return {}

    def parts(self) -> Sequence[Part]:
        rows = [
            Statement(f"{word} {n}", k, n % 2 == 0)
            for k, word in enumerate(self.config.words)
            for n in range(60)
        ]
        return [lambda: ask(rows, self.config)]
"""


@pytest.fixture
def one_more_file(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Path("more").mkdir()
    Path("more/moods.py").write_text(MINE)
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(Path("more").resolve())])
    adapters.cache_clear()
    yield
    sys.modules.pop("pal.data.sources.moods", None)
    adapters.cache_clear()


def test_a_dataset_is_one_file(one_more_file: None, configure: Configure) -> None:
    sizes = {f"data.mine.{key}": value for key, value in SIZES.items()}
    config = configure({"dataset": "mine", "data.mine.words": ["red", "blue"], **sizes})
    assert flatten(config)["data.mine.words"] == ["red", "blue"]
    dataset = prepared(config)
    assert dataset.card.counts.seen_users == 6
    texts = dataset.items(["text"]).column("text").to_pylist()
    assert {text.split()[0] for text in texts} == {"red", "blue"}


def test_every_source_has_settings_of_its_own_and_no_two_share_a_name() -> None:
    found = adapters()
    assert len(set(found.values())) == len(found) >= 12
    assert all(issubclass(adapter.Settings, DatasetConfig) for adapter in found.values())
    assert "tldr-length" in found
    assert "tldr-real" in found


def test_datasets_of_own_names_are_read_by_their_kind(
    configure: Configure, source: Path, tmp_path: Path
) -> None:
    settings = {"kind": "persona", "source": str(source), "groups": 1, **SIZES}
    settings["personas"] = ["interest-in-art"]
    config = configure({"dataset": "mine", "data.mine": settings, "data.yours.kind": "simulated"})
    dataset = prepared(config)
    assert (dataset.name, dataset.folder) == ("mine", Path("data/mine"))
    assert dataset.card.settings["kind"] == "persona"
    assert dataset.card.counts.seen_users == 6
    assert flatten(config)["data.yours.dim"] == 16
    assert Config.model_validate(config.model_dump(mode="json")) == config
    missing = configure({"dataset": "mine", "data.mine": settings | {"source": "gone"}})
    with pytest.raises(DataError, match="the source 'gone' of dataset mine does not exist"):
        prepared(missing)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.mine.source=x"], ["unknown key of data 'mine'", "data.mine.kind=pairs"]),
        (["data.mine.kind=pears"], ["data.mine.kind = 'pears'", "did you mean 'pairs'"]),
        (["data.mine={kind: pairs}", "data.mien.limit=1"], ["'mien'", "did you mean 'mine'"]),
        (["data.mine={kind: pairs, sauce: x}"], ["key of data.mine 'sauce'", "mean 'source'"]),
        (["data.mine={kind: pairs, columns: {usr: x}}"], ["data.mine.columns 'usr'", "user_id"]),
        (["data.mine={kind: tldr-real, seen_workers: 0}"], ["data.mine.seen_workers = 0"]),
        (["data={a/b: {kind: pairs}}"], ["'a/b' cannot be the name of a dataset"]),
        (["data.sources.kind=pairs"], ["'sources' is a folder of code"]),
        (["data.demo=5"], ["data.demo = 5 is not valid"]),
        (["data=5"], ["data = 5 is not valid"]),
    ],
)
def test_bad_settings_of_datasets_are_one_sentence(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, overrides)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), max_size=30))
def test_prompts_that_share_items_are_one_group(edges: list[tuple[int, int]]) -> None:
    numbers = {item: number for number, item in enumerate(sorted({item for _, item in edges}))}
    prompt = np.array([prompt for prompt, _ in edges], dtype=int)
    item = np.array([numbers[item] for _, item in edges], dtype=int)
    least = list(range(10))
    for _ in range(10):
        for one, a in edges:
            for other, b in edges:
                if a == b:
                    least[one] = least[other] = min(least[one], least[other])
    assert least_joined(10, prompt, item).tolist() == least


def test_persona_files_as_published(configure: Configure, persona_source: Path) -> None:
    options = {
        "dataset": "persona",
        "data.persona.source": str(persona_source),
        "data.persona.groups": 6,
    }
    card = prepared(configure(options)).card
    assert card.counts.items == 6 * 1000 * 3
    assert card.rejects == {}


def test_demo_statements_are_unique_and_split_80_10_10(configure: Configure) -> None:
    config = configure({"dataset": "demo", "data.demo.groups": 6, "data.demo.limit": None})
    statements = adapters()["demo"](config.dataset_config()).statements()  # type: ignore[attr-defined]
    assert len({s.question for s in statements}) == len(statements) == 6 * 15 * 20
    shares = [
        sum(split_of("v1", s.question) == name for s in statements)
        for name in ("train", "val", "test")
    ]
    assert np.array(shares) / len(statements) == pytest.approx([0.8, 0.1, 0.1], abs=0.03)


def test_persona_users_may_have_several_interests_or_shares_of_all(
    configure: Configure, source: Path
) -> None:
    both = prepared(persona_config(configure, source, interests_per_user=2), "both")
    texts = dict(
        zip(*(both.items().column(name).to_pylist() for name in ("item_id", "text")), strict=True)
    )
    for row in both.pairs().iter_rows(
        named=True
    ):  # who has both interests says what everyone with either would
        chosen = texts[row["first_id"] if row["label"] == 1.0 else row["second_id"]]
        number = int(texts[row["prompt_id"]].rstrip('"').split()[-1])
        assert chosen.endswith(" Yes" if number % 2 == 0 else " No")
    mixed = prepared(persona_config(configure, source, regime="mixture"), "mixed")
    truth = np.load(mixed.folder / "truth.npz")
    assert truth["weights"].shape == (12, 2)
    assert np.allclose(truth["weights"].sum(axis=1), 1.0)
    assert (truth["weights"] > 0).all()
    assert (
        mixed.split_digest == both.split_digest
    )  # who is asked what does not depend on what they answer


@pytest.mark.parametrize("kind", ["simulated", "pairs"])
def test_rows_that_leave_python_early_make_the_same_files(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many rows are Python objects at once, and how many a row group has, is seen nowhere."""
    texts = ["a soup", "a stew", "bread", "rice", "noodles"]
    rows = [
        {
            "prompt": f"question {number % 12}",
            "chosen": texts[number % 5],
            "rejected": texts[(number + 1 + number % 3) % 5],
            "user_id": f"u{number % 4}",
        }
        for number in range(120)
    ]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = ["dataset=mine", "data.mine.kind=pairs", "data.mine.source=rows.jsonl"]
    sizes = {"users": 6, "unseen_users": 2, "validation_users": 2, "pairs_per_user": 10}
    made_up = ["dataset=simulated", *(f"data.simulated.{name}={n}" for name, n in sizes.items())]

    def files(place: str) -> dict[str, str]:
        chosen = own if kind == "pairs" else made_up
        config = load(overrides=[*chosen, f"paths.data={place}"]).config
        return pipeline.prepare(config, tell=str).card.files

    whole = files("whole")
    for module in ("comparisons", "tables"):
        monkeypatch.setattr(f"pal.data.{module}.ROWS_AT_ONCE", 7)
    assert files("in-blocks") == whole


def test_row_groups_of_one_table_are_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"number": list(range(50)), "text": [f"text {n % 7}" for n in range(50)]})
    monkeypatch.setattr("pal.records.ROWS_PER_GROUP", 20)
    whole = write_table(Path("whole.parquet"), table, "items")
    groups = (table.slice(start, 20) for start in (0, 20, 40))
    assert write_row_groups(Path("groups.parquet"), groups, "items") == whole
