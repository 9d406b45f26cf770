"""The command line: one object, one sentence, the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pal.cli import _set_libraries

PAL = [sys.executable, "-m", "pal"]
SIMULATED = ["--dataset", "simulated", "--encoder", "identity"]
SMALL = [
    f"--set=data.simulated.{key}={value}"
    for key, value in (
        ("users", 5), ("unseen_users", 3), ("validation_users", 1), ("pairs_per_user", 8),
        ("validation_pairs_per_user", 4), ("test_pairs_per_user", 4),
    )
] + ["--set=train.epochs=1"]  # fmt: skip


def pal(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PAL, *arguments], capture_output=True, text=True)


def one_object(*arguments: str) -> dict[str, Any]:
    done = pal(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_prepare_embed_train_evaluate_speak_json() -> None:
    assert one_object("prepare", "--dataset", "simulated", *SMALL)["counts"]["seen_users"] == 5
    embedded = one_object("embed", *SIMULATED, *SMALL)
    for key in (
        "dataset",
        "encoder",
        "fingerprint",
        "dir",
        "items_total",
        "items_unique",
        "encoded",
        "reused",
        "errors",
        "rows_per_s",
    ):
        assert key in embedded
    assert set(embedded["seconds"]) == {"total", "read", "wait", "encode", "write"}
    trained = one_object(
        "train", *SIMULATED, *SMALL, "--head", "pal-a", "--k", "3", "--seed", "5", "--run", "mine"
    )
    assert (trained["run"], trained["head"], trained["k"], trained["seed"]) == (
        "mine",
        "pal-a",
        3,
        5,
    )
    for key in ("n_pairs", "n_users", "accuracy", "macro_accuracy", "macro_ci95", "nll", "ece"):
        assert key in trained["test_seen"]
        assert key in trained["test_unseen"]["0"]
    assert trained["cache_fingerprint"] == embedded["fingerprint"]
    assert one_object("evaluate", "--run", "mine", *SMALL)["runs"] == [trained]
    assert one_object("cache", "ls")["caches"][0]["state"] == "complete"
    for command in (["verify"], ["stats"], ["export", "--format", "fsl", "--output", "copy"]):
        name, *options = command
        assert (
            one_object("cache", name, embedded["dir"], *options)["rows"] == embedded["items_unique"]
        )
    one_object("cache", "export", embedded["dir"], "--output", "plain")
    found, features = (
        one_object("cache", "stats", embedded["dir"])["feature"],
        np.load("plain/features.npy"),
    )
    assert found["absmax"] == pytest.approx(float(np.abs(features).max()), rel=1e-3)
    assert found["std"] == pytest.approx(float(features.std()), rel=1e-2)
    assert "standard deviation" in pal("cache", "stats", embedded["dir"]).stdout
    assert one_object("config", "--set", "train.k=7")["train.k"] == {
        "value": 7,
        "origin": "--set train.k=7",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embed", "--dataset", "nothing"], "unknown dataset 'nothing'"),
        (["embed", "--encoder", "nothing"], "unknown encoder 'nothing'"),
        (
            ["prepare", "--dataset", "persona", "--source", "absent"],
            "the source 'absent' of dataset persona does not exist",
        ),
        (
            ["train", "--dataset", "demo"],
            "data/demo holds no prepared dataset; run: pal embed --dataset demo",
        ),
        (["train", "--set", "train.nothing=1"], "unknown key of train 'nothing'"),
        (["evaluate", "--run", "nothing"], "runs/nothing holds no trained head"),
        (["cache", "verify", "nothing"], "no complete cache in nothing"),
        (["config", "--config", "nothing.yaml"], "cannot read nothing.yaml"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(arguments: list[str], words: str) -> None:
    done = pal(*arguments, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not any(path.is_file() and path.name != ".digests.json" for path in Path().rglob("*"))


def test_a_wrong_option_is_exit_code_2() -> None:
    assert pal("train", "--nothing").returncode == 2


def test_train_refuses_a_dataset_prepared_with_other_settings() -> None:
    one_object("embed", *SIMULATED, *SMALL)
    before = Path("data/simulated/dataset.json").read_bytes()
    done = pal("train", *SIMULATED, *SMALL, "--set", "data.simulated.groups=2", "--head", "pal-a")
    assert done.returncode == 1
    assert (
        "was prepared with other settings than data.simulated.groups = 2; run pal embed"
        in done.stderr
    )
    assert Path("data/simulated/dataset.json").read_bytes() == before


def test_a_damaged_cache_stops_training_and_is_mended_by_embed() -> None:
    folder = Path(one_object("embed", *SIMULATED, *SMALL)["dir"])
    shard = next((folder / "shards").glob("*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"x")
    done = pal("train", *SIMULATED, *SMALL, "--head", "pal-a")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (1, 1)
    assert "run pal embed --dataset simulated --encoder identity again" in done.stderr
    assert one_object("embed", *SIMULATED, *SMALL)["encoded"] > 0
    assert shard.read_bytes() == whole


@pytest.mark.slow
def test_demo_runs_outside_the_repository() -> None:
    small = [arg.replace("simulated", "demo") for arg in SMALL] + [
        "--set=data.demo.limit=300",
        "--set=data.demo.groups=1",
    ]
    done = pal("demo", "--encoder", "tiny-text", *small)
    assert done.returncode == 0, done.stderr
    assert "(untrained encoder)" in done.stdout
    assert "pal-b" in done.stdout


@pytest.mark.parametrize(
    ("asked", "spins"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_that_wait_sleep_soon_unless_the_user_says(
    asked: dict[str, str], spins: str | None
) -> None:
    _set_libraries(asked)
    assert asked.get("GOMP_SPINCOUNT") == spins


@pytest.mark.parametrize("asked", ["ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"])
def test_products_keep_a_bounded_number_of_programs_unless_the_user_says(asked: str) -> None:
    ours: dict[str, str] = {}
    theirs = {asked: "7"}
    _set_libraries(ours)
    _set_libraries(theirs)
    assert (ours[asked], theirs[asked]) == ("128", "7")


ENDS = """
import atexit, concurrent.futures, os, sys, threading, time
import pal.cli

def main():
    global pool
    atexit.register(lambda: print("at exit"))
    {more}
    print("not written yet" + "." * 10_000)
    sys.exit({code!r})

pal.cli.main = main
pal.cli.run()
"""
LATE = 'threading.Thread(target=lambda: (time.sleep(0.3), print("of a thread"))).start()'
IDLE = "pool = concurrent.futures.{kind}(1); pool.submit(os.getpid).result()"


def ended(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("more", ["pass", LATE])
@pytest.mark.parametrize(("code", "seen"), [(0, 0), (None, 0), (3, 3), ("a sentence", 1)])
def test_a_command_ends_as_any_process_does(code: Any, seen: int, more: str) -> None:
    """Threads are waited for, what was registered is done, all is written, the code is kept."""
    found = ended(ENDS.format(code=code, more=more))
    assert found.returncode == seen
    late = ["of a thread"] if more == LATE else []
    assert found.stdout.split("\n")[1:] == [*late, "at exit", ""]
    assert found.stderr.strip() == (code if isinstance(code, str) else "")


@pytest.mark.parametrize("kind", ["ThreadPoolExecutor", "ProcessPoolExecutor"])
def test_a_pool_that_nobody_closed_keeps_no_command_from_ending(kind: str) -> None:
    found = ended(ENDS.format(code=3, more=IDLE.format(kind=kind)))
    assert found.returncode == 3
    assert found.stdout.endswith("at exit\n")


def test_output_that_nobody_reads_is_exit_code_120() -> None:
    program = "import pal.cli; pal.cli.main = lambda: print('lost'); pal.cli.run()"
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 120


@pytest.mark.parametrize(("closed", "told"), [(">&-", "No such command"), ("2>&-", "")])
def test_a_stream_that_is_closed_changes_no_exit_code(closed: str, told: str) -> None:
    command = f"'{sys.executable}' -m pal nonsense {closed}"
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert found.returncode == 2
    assert told in found.stderr
    assert "Traceback" not in found.stderr
