"""Datasets of texts in their published schemas, awkward rows included."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pal import pipeline
from pal.config import Config, flatten, load
from pal.data.build import prepare
from pal.data.sources import adapter_for
from pal.data.sources.personalllm import MODELS, dirichlet, standardised
from pal.data.sources.tldr import TldrLength
from pal.data.sources.tldr_protocol import Published
from pal.dataset import PreparedDataset
from pal.errors import ConfigError, DataError

Configure = Callable[..., Config]
Row = dict[str, Any]
OPTIONS: dict[str, dict[str, Any]] = {
    "tldr-length": {
        "seen_workers": 5,
        "test_worker_rows": 40,
        "validation_worker_rows": 24,
        "min_pairs": 3,
    },
    "tldr-real": {
        "seen_workers": 5,
        "test_worker_rows": 40,
        "validation_worker_rows": 24,
        "min_pairs": 3,
    },
    "prism": {"min_pairs": 2},
    "personalllm": {"users": 12, "pairs_per_user": 40, "test_pairs_per_user": 20, "min_pairs": 2},
    "ultrafeedback-p": {"users": 24, "pairs_per_user": 60, "min_pairs": 2},
    "hh": {"users_per_subset": 6, "min_pairs": 2},
}
TLDR_SCHEMA = pa.schema(
    [
        (
            "info",
            pa.struct(
                [
                    (name, pa.string())
                    for name in ("id", "post", "title", "subreddit", "site", "article")
                ]
            ),
        ),
        (
            "summaries",
            pa.list_(pa.struct([(name, pa.string()) for name in ("text", "policy", "note")])),
        ),
        ("choice", pa.int32()),
        ("worker", pa.string()),
        ("batch", pa.string()),
        ("split", pa.string()),
        ("extra", pa.struct([("confidence", pa.int32())])),
    ]
)


def tldr_rows(split: str, workers: dict[str, int], prompts: int = 60) -> list[Row]:
    rows = []
    for worker, count in workers.items():
        for number in range(count):
            words = (number * 7) % 5 + 1
            info = dict.fromkeys(("site", "article")) | {
                "id": f"t3_{number}", "title": "t", "subreddit": "AskReddit",
                "post": f"{split} post {number % prompts} ü",
            }  # fmt: skip
            texts = [f" {worker} says {'word ' * words}{number}", f" {worker} in short {number}"]
            rows.append(
                {
                    "info": info,
                    "summaries": [{"text": text, "policy": "sup4", "note": None} for text in texts],
                    "choice": number % 2,
                    "worker": worker,
                    "batch": "batch3" if split == "train" else "batch11",
                    "split": "train" if split == "train" else "valid2",
                    "extra": {"confidence": None},
                }
            )
    return rows


def tldr_source() -> dict[str, list[Row]]:
    seen = {f"seen{number}": 60 - number for number in range(5)}
    return {
        "train": tldr_rows("train", seen | {"rare": 3}),
        "validation": tldr_rows(
            "valid",
            {"seen0": 20, "seen3": 20, "new0": 50, "new1": 45, "middle": 26, "rare": 2},
            200,
        ),
    }


def awkward_tldr(row: Row) -> list[Row]:
    """Return rows that are no comparison, of a good one."""
    same = {"text": " same", "policy": "sup4"}
    return [
        row | {"worker": None},
        row | {"info": row["info"] | {"post": None}},
        row | {"summaries": [same, {"text": " emas", "policy": "sup4"}]},
        row | {"summaries": [same, {"text": " longer", "policy": "sup4_ppo_rm3_kl10"}]},
        row | {"summaries": [same]},
    ]


def write_tldr(folder: Path, rows: dict[str, list[Row]], kind: str, files: int = 1) -> None:
    folder.mkdir(parents=True)
    for number in range(files):
        if kind == "json":
            lines = [json.dumps(row) for split in rows for row in rows[split][number::files]]
            (folder / f"batch{3 + number}.json").write_text("\n".join(lines) + "\n")
        else:
            for split in rows:
                table = pa.Table.from_pylist(rows[split][number::files], schema=TLDR_SCHEMA)
                (folder / "comparisons").mkdir(exist_ok=True)
                pq.write_table(
                    table, folder / "comparisons" / f"{split}-{number:05d}-of-{files:05d}.parquet"
                )


def prism_source() -> list[Row]:
    rows = []
    for number in range(120):
        history: list[Row] = []
        for turn in range(2):
            history.append({"turn": turn, "role": "user", "content": f"question {number} {turn}"})
            for answer in range(4 if turn == 0 else 2):
                chosen = answer == number % 2
                history.append(
                    {
                        "turn": turn,
                        "role": "model",
                        "content": f"answer {answer} to {number} {turn} é",
                        "model_name": "m",
                        "model_provider": "p",
                        "score": 90 if chosen else 20 + answer % 2,
                        "if_chosen": chosen,
                        "within_turn_id": answer,
                    }
                )
        rows.append(
            {
                "conversation_id": f"c{number}",
                "user_id": f"user{number % 12}",
                "conversation_history": history,
            }
        )
    return rows


def utterances(conversations: list[Row]) -> list[Row]:
    rows = []
    for row in conversations:
        prompts = {
            one["turn"]: one["content"]
            for one in row["conversation_history"]
            if one["role"] == "user"
        }
        for one in row["conversation_history"]:
            if one["role"] == "model":
                rest = {
                    key: one[key]
                    for key in ("turn", "within_turn_id", "score", "if_chosen", "model_name")
                }
                ids = {"conversation_id": row["conversation_id"], "user_id": row["user_id"]}
                rows.append(
                    ids
                    | rest
                    | {"user_prompt": prompts[one["turn"]], "model_response": one["content"]}
                )
    return rows


def personalllm_source(split: str, count: int) -> list[Row]:
    draws = np.random.default_rng(count)
    rows = []
    for number in range(count):
        row: Row = {"prompt": f"{split} prompt {number}", "subset": "s", "prompt_id": number}
        for response in range(1, 9):
            row |= {
                f"response_{response}": f"response {response} to {split} {number}",
                f"response_{response}_model": "m",
            }
            row |= {f"response_{response}_{model}": float(draws.normal()) for model in MODELS}
        rows.append(row)
    return rows


def ultrafeedback_source() -> list[Row]:
    draws = random.Random(1)
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    rows = []
    for number in range(150):
        completions = [
            {
                "model": f"m{answer}",
                "response": f"response {answer} to {number}",
                "annotations": {
                    name: {"Rating": str(draws.randint(1, 5)), "Rationale": "r"} for name in names
                },
            }
            for answer in range(4)
        ]
        rows.append(
            {"source": "flan", "instruction": f"instruction {number}", "completions": completions}
        )
    return rows


def hh_rows(subset: str, split: str, count: int) -> list[Row]:
    start = "\n\nHuman: {0} question {1}\n\nAssistant: Well\n\nHuman: go on\n\nAssistant:"
    prompts = [start.format(f"{subset} {split}", number) for number in range(count)]
    return [
        {"chosen": f"{prompt} good {number}", "rejected": f"{prompt} bad {number}"}
        for number, prompt in enumerate(prompts)
    ]


def json_lines(file: Path, rows: list[Row], extra: tuple[str, ...] = ()) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*(json.dumps(row) for row in rows), *extra]) + "\n"
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())


def write(name: str, folder: Path, seed: int | None = None) -> Path:
    """Write a source; with a seed in another order of rows, and over two files instead of one."""
    files = 1 if seed is None else 2

    def mixed(rows: list[Row]) -> list[Row]:
        return rows if seed is None else random.Random(seed).sample(rows, len(rows))

    def spread(rows: list[Row], pattern: str) -> None:
        rows = mixed(rows)
        for number in range(files):
            json_lines(folder / pattern.format(number or ""), rows[number::files])

    if name.startswith("tldr"):
        write_tldr(
            folder, {split: mixed(rows) for split, rows in tldr_source().items()}, "parquet", files
        )
    elif name == "prism":
        spread(prism_source(), "conversations{}.jsonl")
    elif name == "personalllm":
        for split, count in (("train", 80), ("test", 40)):
            rows = mixed(personalllm_source(split, count))
            folder.mkdir(exist_ok=True)
            for number in range(files):
                table = pa.Table.from_pylist(rows[number::files])
                pq.write_table(table, folder / f"{split}-{number:05d}-of-{files:05d}.parquet")
    elif name == "ultrafeedback-p":
        spread(ultrafeedback_source(), "flan{}.jsonl")
    else:
        for subset in ("helpful-base", "harmless-base"):
            for split, count in (("train", 150), ("test", 60)):
                spread(hh_rows(subset, split, count), f"{subset}/{split}{{}}.jsonl.gz")
    return folder


def settings(configure: Configure, name: str, source: Path, /, **options: Any) -> Config:
    chosen = {f"data.{name}.{key}": value for key, value in (OPTIONS[name] | options).items()}
    return configure({"dataset": name, f"data.{name}.source": str(source)} | chosen)


def prepared(config: Config, folder: str = "data") -> PreparedDataset:
    name, settings = config.dataset, config.dataset_config()
    return prepare(name, settings, Path(folder) / name, adapter_for(name, settings))


@pytest.mark.parametrize("name", OPTIONS)
def test_order_and_file_sizes_change_no_digest(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    cards = []
    for seed in (None, 1, 2):
        source = write(name, tmp_path / f"raw{seed}", seed)
        cards.append(prepared(settings(configure, name, source), f"out{seed}").card)
    for key in ("digests", "split_digest", "counts", "rejects"):
        assert getattr(cards[0], key) == getattr(cards[1], key) == getattr(cards[2], key)


@pytest.mark.parametrize("name", OPTIONS)
def test_no_prompt_crosses_and_no_judged_prompt_was_trained_on(
    name: str, configure: Configure, tmp_path: Path
) -> None:
    pairs = prepared(settings(configure, name, write(name, tmp_path / "raw"))).pairs()
    assert (
        pairs.group_by("population", "prompt_id").agg(pl.col("split").n_unique())["split"].max()
        == 1
    )
    trained = pairs.filter(population="seen", split="train")["prompt_id"]
    judged = pairs.filter(pl.col("split") != "train")["prompt_id"]
    assert not set(trained) & set(judged)
    assert set(pairs["population"]) == {"seen", "unseen"}


@pytest.mark.parametrize("kind", ["parquet", "json"])
@pytest.mark.parametrize("name", ["tldr-length", "tldr-real"])
def test_each_tldr_row_is_a_pair_or_a_reject(
    name: str, kind: str, configure: Configure, tmp_path: Path
) -> None:
    rows = tldr_source()
    good = rows["train"][0]
    rows["train"] += [*awkward_tldr(good), good, good | {"choice": 1 - good["choice"]}]
    rows["train"].append(good | {"info": good["info"] | {"post": "huge " * 100_000}})
    write_tldr(tmp_path / "raw", rows, kind)
    extra = 0
    if kind == "json":
        with open(tmp_path / "raw" / "batch3.json", "a") as file:
            file.write("{not json\n" + json.dumps(good | {"info": {"post": "half \ud800"}}) + "\n")
        extra = 2
    card = prepared(settings(configure, name, tmp_path / "raw")).card
    assert card.counts.pairs + sum(card.rejects.values()) == sum(map(len, rows.values())) + extra
    assert {"no-user", "null-post", "other-policy", "malformed"} <= set(card.rejects)
    assert card.splitting.published_sizes == "published sizes not checked: partial source"
    assert card.rejects.get("invalid-unicode", 0) == (kind == "json")
    assert card.rejects.get("equal-length", 0) >= (name == "tldr-length")


def test_parquet_and_json_give_the_same_dataset(configure: Configure, tmp_path: Path) -> None:
    cards = []
    for kind in ("parquet", "json"):
        write_tldr(tmp_path / kind, tldr_source(), kind)
        cards.append(prepared(settings(configure, "tldr-length", tmp_path / kind), kind).card)
    assert cards[0].digests == cards[1].digests


def test_the_minority_prefers_the_shorter_summary(configure: Configure, tmp_path: Path) -> None:
    dataset = prepared(settings(configure, "tldr-length", write("tldr-length", tmp_path / "raw")))
    texts = dict(
        pl.from_arrow(dataset.items()).select("item_id", pl.col("text").str.len_chars()).iter_rows()
    )  # type: ignore
    pairs = dataset.pairs()
    for group, first, second, label in pairs.select(
        "group", "first_id", "second_id", "label"
    ).iter_rows():
        assert ((texts[first] > texts[second]) == (label == 1.0)) == (group == "longer")
    groups = dict(pairs.filter(population="seen").select("user_id", "group").unique().iter_rows())
    assert {user for user, group in groups.items() if group == "shorter"} == {"seen3", "seen4"}
    cells = dataset.card.counts.cells
    assert (cells["train_seen"], cells["val_seen"]) == (
        261,
        29,
    )  # a tenth of 290 rows, rounded up, in whole prompts


def test_the_full_source_must_give_the_published_sizes(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tldr_source()
    config = settings(configure, "tldr-length", write("tldr-length", tmp_path / "raw"))
    sizes = prepared(config, "first").card.splitting.sizes_before_rejects
    assert sizes["train"] + sizes["val"] == 290
    counts = {split: len(rows[split]) for split in rows}
    monkeypatch.setattr(TldrLength, "published", Published(counts, sizes))
    assert prepared(config, "second").card.splitting.published_sizes == "as published"
    monkeypatch.setattr(TldrLength, "published", Published(counts, sizes | {"test": 7}))
    with pytest.raises(DataError, match=r"7 test.*gives.*40 test.*published_sizes=false"):
        prepared(config, "third")
    going_on = settings(configure, "tldr-length", tmp_path / "raw", published_sizes=False)
    assert "accepted" in prepared(going_on, "fourth").card.splitting.published_sizes


def test_prism_conversations_and_utterances_agree(configure: Configure, tmp_path: Path) -> None:
    write("prism", tmp_path / "one")
    json_lines(tmp_path / "two" / "utterances.jsonl", utterances(prism_source()))
    cards = [
        prepared(settings(configure, "prism", tmp_path / name), name + "-out").card
        for name in ("one", "two")
    ]
    assert cards[0].digests == cards[1].digests
    assert cards[0].counts.pairs + sum(cards[0].rejects.values()) == 120 * (3 + 1)


def test_prism_scores_make_all_pairs_and_ties(configure: Configure, tmp_path: Path) -> None:
    card = prepared(
        settings(configure, "prism", write("prism", tmp_path / "raw"), rule="scores")
    ).card
    assert card.counts.pairs + sum(card.rejects.values()) == 120 * (6 + 1)
    assert card.counts.ties > 0


def test_prism_users_are_named_once_whatever_their_type(
    configure: Configure, tmp_path: Path
) -> None:
    spell: list[Callable[[int], Any]] = [int, float, str]
    rows = [
        row | {"user_id": spell[number % 3](number % 12)}
        for number, row in enumerate(prism_source())
    ]
    rows += [rows[0] | {"user_id": True}, rows[0] | {"user_id": float("nan")}]
    json_lines(tmp_path / "one" / "conversations.jsonl", rows)
    json_lines(tmp_path / "two" / "utterances.jsonl", utterances(rows))
    for name in ("one", "two"):
        dataset = prepared(settings(configure, "prism", tmp_path / name), f"{name}-out")
        assert set(dataset.pairs()["user_id"]) == {str(number) for number in range(12)}
        assert dataset.card.rejects["bad-user"] >= 1
        assert dataset.card.rejects["no-user"] >= 1


def test_prism_awkward_rows_are_rejects(configure: Configure, tmp_path: Path) -> None:
    rows = prism_source()
    history = rows[0]["conversation_history"]
    broken = [{**one, "if_chosen": False} if one["role"] == "model" else one for one in history]
    rows += [
        rows[0] | {"user_id": None},
        rows[0] | {"user_id": "\ud800"},
        rows[0] | {"conversation_history": None},
    ]
    rows += [
        rows[0] | {"conversation_history": broken},
        rows[0] | {"conversation_history": history[:2]},
    ]
    json_lines(tmp_path / "raw" / "conversations.jsonl", rows, ("{broken",))
    rejects = prepared(settings(configure, "prism", tmp_path / "raw")).card.rejects
    assert {
        "no-user",
        "invalid-unicode",
        "malformed",
        "no-choice",
        "no-context",
        "one-answer",
    } <= set(rejects)


def test_personalllm_keeps_the_planted_weights(configure: Configure, tmp_path: Path) -> None:
    dataset = prepared(settings(configure, "personalllm", write("personalllm", tmp_path / "raw")))
    truth = np.load(dataset.folder / "truth.npz")
    assert truth["weights"].shape == (12, 10)
    assert np.allclose(truth["weights"].sum(axis=1), 1.0)
    assert set(dataset.pairs()["user_id"]) <= set(truth["users"].tolist())


def test_dirichlet_weights_have_their_moments_and_survive_a_tiny_alpha() -> None:
    weights = np.stack([dirichlet("v1", f"u{number}", 0.5, 4) for number in range(4000)])
    assert np.allclose(weights.mean(axis=0), 0.25, atol=0.02)
    assert np.allclose(weights.var(axis=0), 0.25 * 0.75 / 3.0, atol=0.01)
    assert np.isclose(dirichlet("v1", "u", 1e-4, 10).sum(), 1.0)


def test_a_constant_reward_does_not_divide_by_zero() -> None:
    assert (standardised(np.ones((3, 8, 2))) == 0.0).all()


def test_ultrafeedback_users_disagree_and_unrated_rows_are_rejects(
    configure: Configure, tmp_path: Path
) -> None:
    rows = ultrafeedback_source()
    for completion in rows[0]["completions"]:
        completion["annotations"]["honesty"]["Rating"] = "N/A"
    for completion in rows[1]["completions"]:
        for annotation in completion["annotations"].values():
            annotation["Rating"] = "3"
    rows.append({"instruction": None, "completions": []})
    json_lines(tmp_path / "raw" / "flan.jsonl", rows)
    dataset = prepared(settings(configure, "ultrafeedback-p", tmp_path / "raw"))
    rejects = dataset.card.rejects
    assert (rejects["no-ratings"], rejects["no-prompt"]) == (1, 1)
    assert rejects["not-controversial"] >= 1
    assert dataset.pairs()["attribute"].n_unique() == 4


def test_hh_rejects_transcripts_that_part_early(configure: Configure, tmp_path: Path) -> None:
    source = write("hh", tmp_path / "raw")
    rows = hh_rows("helpful-base", "train", 5)
    rows[0]["rejected"] = rows[0]["rejected"].replace("go on", "stop")
    rows[1]["chosen"] = "no transcript"
    rows[2]["chosen"] = None
    json_lines(
        source / "helpful-base" / "train.jsonl.gz",
        hh_rows("helpful-base", "train", 150)[5:] + rows,
        ("[]",),
    )
    dataset = prepared(settings(configure, "hh", source))
    assert dataset.card.rejects["prefixes-differ"] == 1
    assert dataset.card.rejects["malformed"] == 3
    assert dataset.card.counts.pairs + sum(dataset.card.rejects.values()) == 421
    assert set(dataset.pairs()["subset"]) == {"helpful-base", "harmless-base"}


def test_names_have_hyphens_wherever_a_user_reads_or_types_them(configure: Configure) -> None:
    config = load(None, ["data.tldr-length.limit=5", "dataset=tldr-length"]).config
    assert config.dataset_config().limit == 5
    assert flatten(config)["data.tldr-length.limit"] == 5
    assert Config.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ConfigError, match="'tldr-length' or 'tldr-real'"):
        load(None, ["dataset=tldr"]).config.dataset_config()
    with pytest.raises(
        ConfigError, match=r"unknown key of data.tldr-length 'limits'; did you mean 'limit'"
    ):
        load(None, ["data.tldr-length.limits=5"])
    with pytest.raises(ConfigError, match=r"data.ultrafeedback-p.users = 0 is not valid"):
        load(None, ["data.ultrafeedback-p.users=0"])


@pytest.mark.parametrize("name", ["tldr-length", "prism"])
def test_both_heads_train_on_their_views(name: str, configure: Configure, tmp_path: Path) -> None:
    config = settings(configure, name, write(name, tmp_path / "raw"))
    assert pipeline.prepare(config).card.views == ("response", "prompt+response")
    assert pipeline.embed(config).errors == 0
    for head in ("pal-a", "pal-b"):
        trained = config.model_copy(
            update={"train": config.train.model_copy(update={"head": head})}
        )
        metrics = pipeline.train(trained)
        assert metrics.head == head
        assert metrics.test_seen.n_pairs > 0


def test_pal_prepare_reads_a_source_named_on_the_command_line(tmp_path: Path) -> None:
    source = write("tldr-real", tmp_path / "raw")
    options = [f"--set=data.tldr-real.{key}={value}" for key, value in OPTIONS["tldr-real"].items()]
    command = [
        sys.executable,
        "-m",
        "pal",
        "prepare",
        "--dataset",
        "tldr-real",
        "--source",
        str(source),
        "--json",
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["counts"]["seen_users"] == 5
