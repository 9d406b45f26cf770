"""Sweeps and audits on a cluster of Ray itself, whose workers and nodes are killed: minutes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from pal import pipeline
from pal.config import Config
from pal.sweep.record import SweepSummary

Configure = Callable[..., Config]
ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
LONG = {
    "dataset": "simulated", "encoder": "identity", "train.head": "pal-a", "train.epochs": 40,
    "sweep.head": ["pal-a"], "sweep.k": [1, 2], "sweep.seed": [0, 1, 2, 3], "sweep.together": 2,
}  # fmt: skip
"""eight heads in four stacks of a second or more"""
SHORT = LONG | {"train.epochs": 2, "sweep.head": ["pal-a", "lore"]}
AUDIT = {
    "dataset": "simulated", "encoder": "identity", "audit.permutations": 19,
    "audit.overlap_draws": 19,
}  # fmt: skip
ON_RAY = {"sweep.executor": "ray", "audit.executor": "ray", "sweep.workers": 2, "audit.workers": 2}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def swept(configure: Configure, name: str, options: dict[str, Any]) -> SweepSummary:
    config = configure(options)
    pipeline.embed(config)
    return pipeline.sweep(config, name, report=lambda line: None)


def rows_of(name: str) -> pl.DataFrame:
    return pl.read_parquet(f"sweeps/{name}/results.parquet").drop("seconds")


def working() -> list[int]:
    """Return the processes of Ray that are at a task of ours."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes().startswith(b"ray::_perform"):
                found.append(int(place.parent.name))
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.usefixtures("cluster")
def test_what_a_cluster_makes_is_the_same_to_the_bit(configure: Configure) -> None:
    here, there = swept(configure, "here", SHORT), swept(configure, "there", SHORT | ON_RAY)
    assert_frame_equal(rows_of("there"), rows_of("here"), check_exact=True)
    assert (here.trained, there.trained, there.failed) == (16, 16, 0)
    heads = [Path(f"sweeps/{name}/best/head.safetensors") for name in ("here", "there")]
    assert heads[0].read_bytes() == heads[1].read_bytes()
    for name, options in (("here", AUDIT), ("there", AUDIT | ON_RAY)):
        pipeline.audit(configure(options), name, tell=lambda line: None)
    draws = [pl.read_parquet(f"audits/{name}/draws.parquet") for name in ("here", "there")]
    assert_frame_equal(draws[1], draws[0], check_exact=True)


@pytest.mark.usefixtures("cluster")
def test_a_worker_that_is_killed_costs_its_stack_which_is_trained_again(
    configure: Configure,
) -> None:
    swept(configure, "here", LONG)
    killed: list[int] = []

    def kill_one(heads: int) -> None:
        for process in working() if not killed else ():
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    config = configure(LONG | ON_RAY)
    summary = pipeline.sweep(config, "there", kill_one, lambda line: None)
    assert killed
    assert rows_of("there")["error"].to_list() == 8 * [None]
    assert (summary.trained, summary.failed) == (8, 0)
    assert_frame_equal(rows_of("there"), rows_of("here"), check_exact=True)


def command(config: Config, *more: str) -> list[str]:
    """Return pal sweep on a cluster, with the settings of a test."""
    Path("many.yaml").write_text(config.model_dump_json())
    return [sys.executable, "-m", "pal", "sweep", "--config", "many.yaml", "--name", "s", *more]


def wait_for_rows(running: subprocess.Popen[Any]) -> None:
    until = time.monotonic() + 120
    while not Path("sweeps/s/results.parquet").exists():
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_node_that_dies_costs_no_head(configure: Configure) -> None:
    from ray.cluster_utils import Cluster

    swept(configure, "here", LONG)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = made.add_node(num_cpus=1)
    try:
        run = command(
            configure(LONG), "--executor", "ray", "--ray-address", made.address,
            "--workers", "2", "--json",
        )  # fmt: skip
        running = subprocess.Popen(run, stdout=subprocess.PIPE, text=True)
        wait_for_rows(running)
        made.remove_node(node, allow_graceful=False)
        summary = SweepSummary.model_validate_json(running.communicate(timeout=200)[0])
    finally:
        made.shutdown()
    assert (summary.trained, summary.failed) == (8, 0)
    assert_frame_equal(rows_of("s"), rows_of("here"), check_exact=True)


def test_an_interrupted_sweep_leaves_its_rows_and_no_process(configure: Configure) -> None:
    swept(configure, "here", LONG)
    run = command(configure(LONG), "--executor", "ray", "--workers", "2", "--json")
    before = set(working())
    with subprocess.Popen(run, stdout=subprocess.DEVNULL, start_new_session=True) as running:
        wait_for_rows(running)
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(60) == 130
    until = time.monotonic() + 30
    while set(working()) - before:
        assert time.monotonic() < until, "a task outlived who asked for it"
        time.sleep(0.1)
    kept = len(rows_of("s"))
    assert 0 < kept < 8
    again = SweepSummary.model_validate_json(subprocess.check_output(run, text=True))
    assert (again.reused, again.failed) == (kept, 0)
    assert_frame_equal(rows_of("s"), rows_of("here"), check_exact=True)
