"""What a new user meets in the first hour: help, remedies, a file of one's own, tidying up."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
import yaml
from typer.testing import CliRunner

from pal import __version__, pipeline
from pal.cache.inspect import list_caches
from pal.cache.removal import caches_of, removable, remove, unused_caches
from pal.cache.spec import embed_command
from pal.cells import delimiter_of
from pal.cli import complete
from pal.cli import version as version_option
from pal.cli.app import app
from pal.cli.examples import EXAMPLES
from pal.cli.version import version_text
from pal.config import Config, load
from pal.data.proposal import propose
from pal.data.readers import numbered_rows
from pal.data.settings_file import write_settings
from pal.data.sheets import Sheet
from pal.dataset import PreparedDataset
from pal.embed.needed import is_needed
from pal.errors import CacheError, ConfigError, DataError, EvaluationError
from pal.evaluate.compare import Comparison
from pal.evaluate.evaluation import Evaluation
from pal.evaluate.keeping import list_runs, remove_runs, runs_to_remove
from pal.evaluate.predict import load_run
from pal.evaluate.records import Metrics
from pal.evaluate.report import table_of_runs
from pal.evaluate.sentences import sentences_of
from pal.names import did_you_mean, name_from, require_name
from pal.report.subjects import subjects_of
from pal.reward.cells import number_in_file, write_cells
from pal.reward.rows import read_rows
from pal.train.build import has_prototypes

REPOSITORY = Path(__file__).resolve().parents[1]
Configure = Callable[..., Config]
SIMULATED = {"dataset": "simulated", "encoder": "identity", "train.head": "pal-a",
             "train.epochs": 1}  # fmt: skip


def commands(of: typer.Typer = app, before: str = "") -> list[str]:
    found = []
    for one in of.registered_commands:
        assert one.callback is not None
        found.append(before + (one.name or one.callback.__name__))
    for group in of.registered_groups:
        assert group.typer_instance is not None
        found += commands(group.typer_instance, f"{group.name} ")
    return found


def test_every_command_has_examples_and_no_other_has() -> None:
    assert sorted(commands()) == sorted(EXAMPLES)


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_examples_of_help_are_commands_with_options_that_exist(line: str) -> None:
    _, *words = shlex.split(line)
    command: Any = typer.main.get_command(app)
    context = command.make_context("pal", list(words), resilient_parsing=True)
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
        context = command.make_context(name, list(words), parent=context)
    assert context.args == []


def test_help_ends_with_its_examples() -> None:
    told = CliRunner().invoke(app, ["cache", "rm", "--help"]).output
    assert "pal cache rm --unused" in told


def test_the_version_tells_the_commit_of_a_checkout() -> None:
    assert version_option is not None
    told = version_text()
    assert told.startswith(f"pal {__version__}")
    assert re.search(r"\(git [0-9a-f]{7,}", told) or not (REPOSITORY / ".git").exists()


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("pal ad", ["adapt"]),
        ("pal cache ", ["export", "ls", "rm", "stats", "verify"]),
        ("pal train --dataset de", ["demo"]),
        ("pal embed -e min", ["minilm"]),
        ("pal runs rm on", ["one", "one-more"]),
        ("pal evaluate one two", ["two"]),
        ("pal adapt --run two", ["two"]),
    ],
)
def test_the_tab_key_finds_commands_and_names(typed: str, found: list[str]) -> None:
    for run in ("one", "one-more", "two", ".inflight-made"):
        Path("runs", run).mkdir(parents=True)
        Path("runs", run, "head.json").touch()
    words = typed.split(" ")
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    asked["_PAL_COMPLETE"] = "complete_bash"
    told = CliRunner().invoke(app, env=asked, prog_name="pal")
    assert sorted(told.stdout.split()) == found


def test_the_tab_key_is_silent_over_settings_that_cannot_be_read() -> None:
    Path("pipeline.yaml").write_text("data: [")
    assert complete.datasets("") == complete.encoders("") == complete.runs("") == []


def test_make_says_where_pal_is() -> None:
    told = subprocess.run(
        ["make", "-s"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert f"pal is {REPOSITORY}/.venv/bin/pal" in told


def test_ctrl_c_says_a_word_and_exits_with_130_whatever_a_library_makes_of_it() -> None:
    program = (
        "import os, signal, sys, pal.cli\n"
        "def ends_itself():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        signal.pause()\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(1)\n"  # as Lightning does
        "pal.cli.app = ends_itself\n"
        "pal.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "pal: interrupted\n")


@pytest.mark.slow
def test_ctrl_c_while_a_head_is_trained_says_a_word() -> None:
    choice = ["--dataset", "simulated", "--encoder", "identity"]
    embed = [sys.executable, "-m", "pal", "embed", *choice]
    subprocess.run(embed, check=True, capture_output=True)
    train = [sys.executable, "-m", "pal", "train", *choice, "--head", "pal-a"]
    running = subprocess.Popen(
        [*train, "--set", "train.epochs=100000"], stderr=subprocess.PIPE, text=True
    )
    time.sleep(15)  # it trains then
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=60)
    assert running.returncode == 130
    assert told.strip().splitlines()[-1] == "pal: interrupted"
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "example",
    [
        "polis_as_pairs.py",
        "slurm.sbatch",
        pytest.param("rewards_for_opposed_users.py", marks=pytest.mark.slow),  # imports torch
    ],
)
def test_an_example_without_its_argument_ends_in_one_sentence(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path))
    program = sys.executable if example.endswith(".py") else "bash"
    done = subprocess.run(
        [program, str(REPOSITORY / "examples" / example)], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("say ")


def write_csv(name: str, header: list[str], rows: list[list[Any]], delimiter: str = ",") -> Path:
    with open(name, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=delimiter).writerows([header, *rows])
    return Path(name)


ROWS = [[f"person {p}", f"Statement: {n}", ("agree", "disagree")[(p + n) % 2]]
        for p in range(12) for n in range(10)]  # fmt: skip


@pytest.mark.parametrize(
    ("header", "kind", "doubts"),
    [
        (["user_id", "item", "vote"], "votes", set()),
        (["who", "statement", "vote"], "votes", {"user_id"}),
    ],
)
def test_init_recognises_votes(header: list[str], kind: str, doubts: set[str]) -> None:
    file = write_csv("town.csv", header, ROWS, ";")
    found = propose(file)
    assert (found.name, found.kind, found.columns["vote"]) == ("town", kind, "vote")
    assert found.columns["user_id"] == header[0]
    assert doubts <= set(found.doubts)
    write_settings(found, Path("pipeline.yaml"))
    config = load(None, (), {}).config
    assert (config.dataset, config.train.head) == ("town", "auto")
    prepared = pipeline.prepare(config, tell=lambda line: None)
    lost = prepared.card.rejects
    assert prepared.card.counts.pairs + sum(lost.values()) == len(ROWS)
    assert set(lost) <= {"not-its-role", "too-few-pairs"}


def test_init_recognises_comparisons_ratings_and_exports() -> None:
    rows = [[p, f"Q{n}", f"good {n}", f"bad {n}"] for p in range(12) for n in range(5)]
    assert (
        propose(write_csv("a.csv", ["user", "prompt", "chosen", "rejected"], rows)).kind == "pairs"
    )
    stars = [[p, f"text {n}", 1 + (p + n) % 5] for p in range(12) for n in range(5)]
    assert propose(write_csv("b.csv", ["user", "text", "stars"], stars)).kind == "ratings"
    Path("export").mkdir()
    write_csv("export/comments.csv", ["comment-id", "comment-body"], [[0, "Trams."]])
    write_csv("export/participants-votes.csv", ["participant", "0"], [[1, 1]])
    assert propose(Path("export")).kind == "polis"


def test_rows_that_cannot_be_scored_are_numbered_as_the_doctor_numbers_rows() -> None:
    Path("a.csv").write_text("prompt,response\np,a\n\np,b,c\n")
    numbers = [number for number, _ in numbered_rows(Sheet.of(Path("a.csv")))]
    assert [number_in_file(Path("a.csv"), count) for count in (1, 2)] == numbers == [2, 4]
    assert number_in_file(Path("a.jsonl"), 2) == 2, "a line's own number"


def test_init_takes_what_the_file_does_not_say_and_writes_it() -> None:
    rows = [[f"Jürgen {p}", f"Größe {n}", ("ja", "nein")[(p + n) % 2]]
            for p in range(12) for n in range(5)]  # fmt: skip
    file = write_csv("umfrage.csv", ["Teilnehmer", "Aussage", "Zustimmung"], rows, ";")
    file.write_text(file.read_text(encoding="utf-8"), encoding="cp1252")
    said: list[str] = []
    for words, setting in (
        ("set data.umfrage.encoding: cp1252; .* pal init takes it as --set", "encoding=cp1252"),
        ("with --set 'data.umfrage.columns={user_id: Teilnehmer, item: Aussage, vote: Zustimmung}'",
         "columns={user_id: Teilnehmer, item: Aussage, vote: Zustimmung}"),
        (r"data.umfrage.values.vote: {\"ja\": ..., \"nein\": ...}; pal init takes it as --set",
         "values.vote={ja: 1, nein: 0}"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=words):
            propose(file, None, said)
        said.append(f"data.umfrage.{setting}")
    write_settings(propose(file, None, said), Path("pipeline.yaml"))
    config = load(None, (), {}).config
    assert config.dataset == "umfrage"
    prepared = pipeline.prepare(config, tell=lambda line: None).card
    assert prepared.counts.pairs + sum(prepared.rejects.values()) == len(rows)
    for wrong, words in (
        ("data.umfrage.encodin=cp1252", "did you mean 'encoding'"),
        ("data.umfrage.kind=persona", "does not read umfrage.csv; use pairs, votes, ratings"),
        ("train.k=3", "is no setting of umfrage; pal init takes --set data.umfrage.key=value"),
    ):
        with pytest.raises(ConfigError, match=words):
            propose(file, "umfrage", [wrong])


def test_a_file_that_is_called_votes_is_tried_as_votes_first() -> None:
    latin = write_csv("votes.csv", ["user_id", "item", "vote"], [[f"ä{n}", "é", 1] for n in "abcd"])
    latin.write_text(latin.read_text(encoding="utf-8"), encoding="cp1252")
    with pytest.raises(DataError, match="set data.votes.encoding: cp1252"):
        propose(latin)
    said = ["data.votes.encoding=cp1252"]
    assert (propose(latin, None, said).name, propose(latin, None, said).kind) == ("votes", "votes")


def test_a_wide_table_is_told_with_a_line_that_makes_it_long() -> None:
    statements = [f"Statement {n}." for n in range(4)]
    rows = [[f"p{p}", 30 + p, *((p + n) % 2 for n in range(4))] for p in range(12)]
    file = write_csv("wide.csv", ["Person", "age", *statements], rows, ";")
    with pytest.raises(DataError, match="a row for each person and a column for each") as told:
        propose(file)
    eval(str(told.value).partition("in Python: ")[2], {"polars": pl})  # what we ourselves propose
    assert "user_id,age,item,vote" in Path("long.csv").read_text().splitlines()
    assert len(Path("long.csv").read_text().splitlines()) == 1 + 12 * 4
    said = ["data.long.values.vote={0: 0}"]
    assert propose(Path("long.csv"), None, said).columns["item"] == "item"


def test_init_replaces_nothing_without_force_and_explains_what_it_does_not_know() -> None:
    file = write_csv("town.csv", ["user_id", "item", "vote"], ROWS)
    Path("pipeline.yaml").write_text("seed: 7\n")
    with pytest.raises(ConfigError, match="is there already.*say --force.*kind: votes"):
        write_settings(propose(file), Path("pipeline.yaml"))
    assert Path("pipeline.yaml").read_text() == "seed: 7\n"
    write_settings(propose(file), Path("pipeline.yaml"), force=True)
    assert yaml.safe_load(Path("pipeline.yaml").read_text())["dataset"] == "town"
    with pytest.raises(DataError, match="does not exist"):
        propose(Path("absent.csv"))
    with pytest.raises(DataError, match="neither comparisons .* its columns are x, y"):
        propose(write_csv("odd.csv", ["x", "y"], [[1, 2]]))


def test_columns_of_own_names_are_asked_for_by_an_example_of_what_the_file_holds() -> None:
    columns = ["Teilnehmer", "asked", "suggestion 1", "suggestion 2", "better", "channel"]
    ways = ["left", "right"]
    rows = [[f"P{n % 6}", f"q{n % 9}", f"a{n}", f"b{n}", ways[n % 2], "web"] for n in range(40)]
    file = write_csv("own.csv", columns, rows)
    with pytest.raises(DataError) as told:
        propose(file)
    said = str(told.value).rpartition("--set '")[2].removesuffix("'")
    found = propose(file, None, [said])  # what we ourselves propose
    assert found.kind == "pairs"
    assert list(found.columns) == ["user_id", "prompt", "first", "second", "label"]
    assert list(found.columns.values()) == columns[:5]


def test_names_of_columns_cannot_change_the_settings() -> None:
    column = 'vote: {"x"}\nseed: 99 # '
    file = write_csv("town.csv", ["user_id", "item", column], ROWS)
    odd = propose(write_csv("plain.csv", ["user_id", "item", "vote"], ROWS))
    given = {**odd.columns, "vote": column}
    found = type(odd)(odd.name, odd.kind, file, given, (f"a\n{column}",))
    write_settings(found, Path("pipeline.yaml"))
    read = yaml.safe_load(Path("pipeline.yaml").read_text())
    assert read["data"]["plain"]["columns"]["vote"] == column
    assert "seed" not in read


@pytest.fixture
def made(configure: Configure) -> Config:
    """Return settings under which a cache and two runs are there."""
    config = configure(SIMULATED)
    pipeline.embed(config, tell=lambda line: None)
    for name in ("one", "two"):
        pipeline.train(config, name, tell=lambda line: None)
    return config


def test_runs_are_listed_and_removed_and_nothing_else_is(made: Config) -> None:
    runs = made.paths.runs
    shutil.copytree(runs / "one", runs / ".inflight-one-1")
    listed = list_runs(runs)
    assert [(run.run, run.state, run.head) for run in listed] == [
        ("one", "evaluated", "pal-a"), ("two", "evaluated", "pal-a"),
    ]  # fmt: skip
    shutil.copytree(runs / "two", runs / "three")
    (runs / "three" / "metrics.json").write_text("{}")
    shutil.copytree(runs / "two", runs / "headless")
    (runs / "headless" / "head.json").unlink()
    (runs / "mine").mkdir()
    (runs / "mine" / "head.json").write_text("{}")
    (runs / "notes").mkdir()
    states = {run.run: run.state for run in list_runs(runs)}
    assert states.items() >= {
        ("mine", "damaged"), ("headless", "damaged"), ("three", "damaged evaluation"),
    }  # fmt: skip
    assert "notes" not in states
    (runs / "link").symlink_to("one")
    for name, words in (
        ("mine", "mine is no run of ours"),
        ("link", "link is a link to one, and only .*; remove the link yourself: rm "),
        ("absent", "there is no run absent in .*; see pal runs ls"),
        ("tow", "there is no run tow in .*; did you mean 'two'[?] see pal runs ls"),
    ):
        with pytest.raises(EvaluationError, match=words):
            runs_to_remove(runs, ["one", name])
    with pytest.raises(EvaluationError, match="no trained head; did you mean 'two'[?] run: pal tr"):
        load_run(runs, "tow")
    with pytest.raises(DataError, match="did you mean 'simulated'[?] run: pal embed --dataset sim"):
        PreparedDataset.open(made.paths.data / "simulate")
    with pytest.raises(EvaluationError, match="runs/tow, .*; did you mean .two.[?] see pal"):
        subjects_of(made.paths, ["tow"])
    with pytest.raises(CacheError, match="no cache of simulate in .*did you mean 'simulated'[?]"):
        caches_of(made.paths.cache, "simulate")
    with pytest.raises(EvaluationError, match="cannot be the name of a run"):
        runs_to_remove(runs, ["../runs/one"])
    assert (runs / "one").is_dir()
    removed = remove_runs(runs_to_remove(runs, ["one"]))
    assert removed.removed == ["one"]
    assert removed.bytes == listed[0].bytes > 0
    assert not (runs / "one").exists()
    assert (runs / "two").is_dir()
    asked = CliRunner().invoke(app, ["runs", "rm", "two"])
    assert isinstance(asked.exception, ConfigError)
    assert (runs / "two").is_dir()
    done = CliRunner().invoke(app, ["runs", "rm", "two", "--yes", "--json"])
    assert json.loads(done.stdout)["removed"] == ["two"]


def test_a_name_is_told_by_its_nearest_or_by_what_it_begins() -> None:
    names = ["demo-minilm-pal-a-k1-s0", "demo-minilm-pal-b-k1-s0", "other"]
    assert did_you_mean("othr", names) == "; did you mean 'other'?"
    assert did_you_mean("demo", names) == f"; did you mean {names[0]!r} or {names[1]!r}?"
    assert did_you_mean("zzz", names) == ";"


def test_a_name_that_cannot_be_a_folders_is_told_with_one_that_can() -> None:
    assert name_from("Übung für März") == "Ubung_fur_Marz"
    assert [name_from(text) for text in ("Straße", ".x", "日本", "")] == ["Strasse", "x", "x", "x"]
    with pytest.raises(ConfigError, match="letters from a to z.* a letter or a digit, e.g. Ub"):
        require_name("run", "Übung")


def test_a_head_without_prototypes_has_no_k_in_tables(made: Config) -> None:
    metrics = Metrics.read(made.paths.runs / "one")
    other = metrics.model_copy(update={"head": "bt-linear"})
    _, with_k, without = table_of_runs([metrics, other])
    assert (with_k[2], without[2]) == (str(metrics.k), "-")
    assert (has_prototypes("lore"), has_prototypes("per-user")) == (True, False)


def test_caches_that_runs_or_settings_need_are_used(made: Config) -> None:
    root = made.paths.cache
    (cache,) = caches_of(root, "simulated", "identity")
    trained_on = {run.cache_fingerprint for run in list_runs(made.paths.runs)}
    assert unused_caches(root, lambda one: is_needed(made, one, trained_on)) == []
    changed = made.paths.data / "simulated"
    assert is_needed(made, cache, ())  # the settings would make it today
    changed.rename(made.paths.data / "gone")
    assert not is_needed(made, cache, ())
    with pytest.raises(CacheError, match="no cache of simulated under other.*are identity"):
        caches_of(root, "simulated", "other")
    with pytest.raises(CacheError, match="cannot be the name"):
        caches_of(root, "..", None)
    (found,) = removable(root, [cache], lambda mark: ["one"] if mark in trained_on else [])
    assert (found.sole, found.runs) == (True, ["one"])
    freed = remove([found])
    assert freed.bytes == found.bytes > 0
    assert list_caches(root) == []
    assert not (root / "simulated").exists()  # nor the link to it


def test_a_cache_whose_shards_are_gone_is_not_complete(made: Config) -> None:
    assert [one.state for one in list_caches(made.paths.cache)] == ["complete"]
    next(made.paths.cache.glob("*/*/shards/*.parquet")).unlink()
    assert [one.state for one in list_caches(made.paths.cache)] == ["damaged"]


def test_a_command_that_makes_something_ends_with_the_command_of_its_page(made: Config) -> None:
    done = CliRunner().invoke(app, ["evaluate", "one", "two", *options_of(made)])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip().splitlines()[-1] == "To look at it: pal report one two"
    assert "Whether people differ is not tested here" in done.stdout


def options_of(config: Config) -> list[str]:
    folders = config.paths.model_dump(mode="json")
    return [f"--set=paths.{name}={folder}" for name, folder in folders.items()]


def test_remedies_name_the_dataset_and_the_encoder() -> None:
    folder = Path("cache/town/bge-m3-0123456789ab")
    wanted = "pal embed --dataset town --encoder bge-m3"
    assert embed_command(folder) == embed_command(folder / "shards") == wanted
    assert embed_command(Path("elsewhere")) == "pal embed"


def evaluation(difference: float, p: float, heads: tuple[str, str] = ("bt-linear", "pal-a")) -> Any:
    runs = [
        Metrics.model_construct(run=name, head=head, k=2)
        for name, head in zip("ab", heads, strict=True)
    ]
    ends = (difference - 0.1, difference + 0.1)
    one = Comparison.model_construct(
        a="a", b="b", cell="test_seen", difference=difference, ci95=ends, p_holm=p
    )
    return Evaluation.model_construct(runs=runs, comparisons=[one], free_baselines={})


def test_evaluate_says_whether_plurality_is_shown() -> None:
    (told,) = sentences_of(evaluation(0.215, 0.001))
    assert told.startswith("Plurality is shown: b, of many tastes, against a, of one: +21.5 points "
                           "[+11.5, +31.5]")  # fmt: skip
    (told,) = sentences_of(evaluation(0.02, 0.4))
    assert told.startswith("Plurality is not shown")
    (told,) = sentences_of(evaluation(-0.2, 0.001, ("pal-a", "bt-linear")))
    assert told.startswith("Plurality is shown: a, of many tastes, against b, of one: +20.0 points "
                           "[+10.0, +30.0]")  # fmt: skip
    (told,) = sentences_of(evaluation(-0.2, 0.001))
    assert told.startswith("Many tastes do worse")
    (told,) = sentences_of(evaluation(0.2, 0.001, ("pal-b", "pal-a")))
    assert told.startswith("Whether people differ is not tested here")
    apart = evaluation(0.2, 0.001).model_copy(update={"comparisons": []})
    assert "different datasets or splits" in sentences_of(apart)[0]


def test_scores_are_read_from_and_written_as_csv() -> None:
    file = write_csv(
        "in.csv", ["prompt", "response", "user_id"], [["p", "r; s", ""], ["q", "t", 7]]
    )
    assert list(read_rows(file)) == [
        {"prompt": "p", "response": "r; s", "user_id": None},
        {"prompt": "q", "response": "t", "user_id": "7"},
    ]
    rows = [{"prompt": [{"role": "user"}], "reward": 0.5}, {"prompt": "é,\n", "reward_error": "no"}]
    assert write_cells(Path("out.csv"), lambda: iter(rows)) == 2
    with open("out.csv", newline="", encoding="utf-8") as stream:
        assert list(csv.reader(stream)) == [
            ["prompt", "reward", "reward_error"], ['[{"role": "user"}]', "0.5", ""],
            ["é,\n", "", "no"],
        ]  # fmt: skip
    write_cells(Path("out.tsv"), lambda: iter(rows))
    assert delimiter_of(Path("out.tsv").read_text()) == "\t"
