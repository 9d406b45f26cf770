"""Nothing vanishes unseen: what every command tells of a dataset, and what heads cannot use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pal import pipeline
from pal.cli import main
from pal.config import Config
from pal.dataset import Counts, PairsPerUser, SplitDetails
from pal.errors import ConfigError, PalWarning
from pal.outline import people_lines, rows_line, summary_lines, warnings_of

Configure = Callable[..., Config]
PEOPLE, STATEMENTS = 12, 20
HEADS = ["bt-linear", "pal-a", "pal-b", "lore", "per-user", "drm", "user-embedding", "vpl"]


def silent(line: str) -> None:
    """Say nothing."""


def own_pairs(without_prompt: int = 0) -> str:
    """Write what people think of few texts under few questions, some of them without a question."""
    rows: list[dict[str, Any]] = [
        {
            "user_id": f"p{p}", "prompt": f"Question {q}?",
            "chosen": f"good {(p + q) % 3}", "rejected": f"bad {q % 3}",
        }
        for p in range(PEOPLE)
        for q in range(STATEMENTS)
    ]  # fmt: skip
    for row in rows[5 :: max(1, len(rows) // without_prompt)] if without_prompt else []:
        del row["prompt"]
    Path("own.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return "own.jsonl"


def config_of(configure: Configure, source: str, **options: Any) -> Config:
    given = {"source": source, "grouping": "prompt"}
    return configure({"dataset": "pairs", "data.pairs": given, "train.epochs": 1, **options})


def counts_of(cells: dict[str, tuple[int, int, int]]) -> Counts:
    """Return counts with pairs, users and prompt groups of each cell."""
    return Counts(
        items=1, items_by_modality={}, pairs=sum(pairs for pairs, _, _ in cells.values()), ties=0,
        tie_rate=0.0, prompts=1, item_mentions=1, encodings_saved_by_unique_items=1.0,
        seen_users=6, unseen_users=2, pairs_per_user=PairsPerUser(least=1, median=1, most=1),
        repeated=0, contradictory=0, cells={name: cell[0] for name, cell in cells.items()},
        cell_users={name: cell[1] for name, cell in cells.items()},
        cell_groups={name: cell[2] for name, cell in cells.items()},
    )  # fmt: skip


def test_cells_of_which_no_number_means_anything_are_named() -> None:
    counts = counts_of(
        {"val_seen": (500, 5, 5), "test_seen": (500, 50, 4), "test_unseen": (25, 20, 20)}
    )
    details = SplitDetails(users_left_out={"too-few-pairs": 3})
    seen, new_validation, new = warnings_of(counts, details)
    assert seen.startswith("test of seen users: only 4 prompt groups, so no interval")
    assert "--folds 5" in seen
    assert "none; new users gave too few answers for min_pairs" in new_validation
    assert "only 25 pairs, so an accuracy is known to 0.20 at best" in new


def test_rows_add_up_and_min_pairs_is_said_in_answers() -> None:
    counts = counts_of({"train_seen": (80, 6, 20)})
    details = SplitDetails(
        read=90, min_pairs=5, evaluated_share=0.1, users_left_out={"too-few-pairs": 2}
    )
    line = rows_line("mine", counts, details, {"pass": 20, "too-few-pairs": 10})
    assert line == (
        "mine: 110 rows -> 90 comparisons -> 80 pairs used; left out: 20 pass, 10 too-few-pairs"
    )
    people, least = people_lines(counts, details)
    assert people == "  people: 6 seen, 2 new, 2 left out (2 too-few-pairs)"
    assert "needs 5 to be evaluated on, which takes about 50 answers" in least


def test_every_command_tells_the_same_of_a_dataset(configure: Configure) -> None:
    axes = {"sweep.head": ["pal-a"], "sweep.k": [1], "sweep.seed": [0]}
    config = config_of(configure, own_pairs(), **{"train.head": "pal-a", **axes})
    said: list[str] = []
    dataset = pipeline.prepare(config, tell=said.append)
    summary = summary_lines(dataset.card)
    assert said == summary
    for line in summary:
        assert len(line) < 500
    said.clear()
    pipeline.embed(config, tell=said.append)
    assert said == [], "nothing is new"
    for command in (
        lambda: pipeline.train(config, "one", tell=said.append),
        lambda: pipeline.evaluate(config, ["one", "one"], tell=said.append),
        lambda: pipeline.adapt(
            config.model_copy(update={"adapt": config.adapt.model_copy(update={"shots": (0, 1)})}),
            "one",
            tell=said.append,
        ),
        lambda: pipeline.sweep(config, "s", report=said.append),
    ):
        said.clear()
        command()
        assert [line for line in said if line in summary] == summary


def test_a_dataset_that_is_all_used_is_not_told_again(configure: Configure) -> None:
    sizes = {"unseen_users": 10, "validation_users": 10, "users": 30}
    pairs = {"pairs_per_user": 20, "validation_pairs_per_user": 20, "test_pairs_per_user": 20}
    chosen = {f"data.simulated.{key}": value for key, value in (sizes | pairs).items()}
    config = configure({"dataset": "simulated", "encoder": "identity", "train.head": "bt-linear"}
                       | chosen)  # fmt: skip
    said: list[str] = []
    pipeline.embed(config, tell=said.append)
    assert said[0] == "simulated: 2,600 rows -> 2,600 pairs used"
    said.clear()
    pipeline.train(config, "one", tell=said.append)
    assert said == []


def test_json_is_one_object_and_the_summary_stands_beside_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", "--dataset", "pairs", "--source", own_pairs(), "--json"]
    for _ in range(2):  # made anew, and there already
        monkeypatch.setattr("sys.argv", ["pal", *command])
        with pytest.raises(SystemExit):
            main()
        out, err = capfd.readouterr()
        assert json.loads(out)["counts"]["pairs"] > 0
        assert err.startswith("pairs: 240 rows -> 240 comparisons -> ")


def test_more_prototypes_than_users_are_refused_and_few_users_each_are_told(
    configure: Configure,
) -> None:
    config = config_of(configure, own_pairs(), **{"train.head": "pal-a"})
    card = pipeline.prepare(config, tell=silent).card
    pipeline.embed(config, tell=silent)
    seen = card.counts.seen_users

    def trained(k: int, head: str = "pal-a") -> list[str]:
        said: list[str] = []
        settings = config.train.model_copy(update={"k": k, "head": head})
        pipeline.train(config.model_copy(update={"train": settings}), f"k{k}", tell=said.append)
        return [line for line in said if "prototypes" in line]

    with pytest.raises(ConfigError, match=f"train.k = 200 is more than the {seen} seen users"):
        trained(200)
    assert not Path("runs/k200").exists()
    assert trained(200, "bt-linear") == [], "a head without prototypes has no K"
    assert trained(1) == []
    (warning,) = trained(seen)
    assert f"K = {seen} prototypes for {seen} seen users" in warning
    wide = {"k": (1, 200), "head": ("pal-a",)}
    swept = config.model_copy(update={"sweep": config.sweep.model_validate(wide)})
    with pytest.raises(ConfigError, match="train.k = 200 is more than"):
        pipeline.sweep(swept, "s", report=silent)
    assert not Path("sweeps/s").exists()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.filterwarnings("ignore::pal.errors.PalWarning")
def test_a_few_rows_without_a_prompt_stop_no_head(configure: Configure, head: str) -> None:
    options = {"train.head": head, "train.k": 1, "adapt.shots": [0, 1], "adapt.repeats": 1}
    config = config_of(configure, own_pairs(without_prompt=9), **options)
    pipeline.embed(config, tell=silent)
    pipeline.train(config, "one", tell=silent)
    said: list[str] = []
    found = pipeline.evaluate(config, ["one"], tell=said.append)
    assert found.runs[0].test_seen is not None
    assert pipeline.adapt(config, "one", tell=silent).n_users > 0
    told = [line for line in said if "pairs have no prompt and are left out" in line]
    assert len(told) == (head == "pal-b")


@pytest.mark.parametrize("heads", [["pal-b"], ["pal-a", "pal-b"]])
def test_a_sweep_of_a_head_that_reads_prompts_counts_rows_without(
    configure: Configure, heads: list[str]
) -> None:
    axes = {"sweep.head": heads, "sweep.k": [1, 2], "sweep.seed": [0], "train.view": "response"}
    config = config_of(configure, own_pairs(without_prompt=9), **axes)
    pipeline.embed(config, tell=silent)
    with pytest.warns(PalWarning, match="have no prompt and are left out"):
        summary = pipeline.sweep(config, "s", report=silent)
    assert (summary.trained, summary.failed) == (2 * len(heads), 0)


def test_datasets_of_several_names_stand_side_by_side(configure: Configure) -> None:
    for name, statements in (("town", 30), ("lake", 40)):
        rows = ["user_id,item,vote"] + [
            f"p{p},Statement {n} of {name}.,{'agree' if (p + n) % 2 else 'disagree'}"
            for p in range(20)
            for n in range(statements)
        ]
        Path(f"{name}.csv").write_text("\n".join(rows) + "\n")
    both = {f"data.{name}": {"kind": "votes", "source": f"{name}.csv"} for name in ("town", "lake")}
    sizes = []
    for name in ("town", "lake", "town"):
        config = configure({"dataset": name, "encoder": "tiny-text", **both})
        card = pipeline.prepare(config, tell=silent).card
        sizes.append((card.name, card.splitting.prompt_groups))
    assert sizes == [("town", 30), ("lake", 40), ("town", 30)]
