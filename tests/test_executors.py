"""Whoever does the shards, they are the same; and any executor finishes what another began."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pal import pipeline
from pal.config import Config
from pal.embed.run import EmbedResult
from pal.errors import CacheError, ConfigError, EncoderError

Configure = Callable[..., Config]
MANY = {"embed.rows_per_shard": 50}  # twelve shards
ray = pytest.importorskip("ray") if sys.platform != "win32" else None


def files(folder: str | Path) -> dict[str, bytes]:
    """Return the shard files, which hold the features and the software that made them, but no
    times."""
    return {
        path.name: path.read_bytes() for path in (Path(folder) / "shards").glob("part-*.parquet")
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("cluster", "one_thread")
def test_ray_actors_make_the_same_bytes_as_this_process(configure: Configure) -> None:
    here = pipeline.embed(configure({**MANY, "paths.cache": "here"}))
    there = pipeline.embed(
        configure(
            {
                **MANY,
                "paths.cache": str(Path("there").absolute()),
                "embed.executor": "ray",
                "embed.actors": 2,
            }
        )
    )
    assert there.encoded == here.encoded == 600
    assert files(there.dir) == files(here.dir)


@pytest.mark.usefixtures("one_thread")
def test_processes_make_the_same_bytes_as_this_process(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    here = pipeline.embed(configure({**MANY, "paths.cache": "here"}))
    there = pipeline.embed(configure({**MANY, "paths.cache": "there", "embed.actors": 2}))
    assert there.encoded == 600
    assert files(there.dir) == files(here.dir)


@pytest.mark.usefixtures("cluster")
def test_an_error_in_an_actor_is_the_same_sentence(configure: Configure) -> None:
    settings = {
        "paths.cache": str(Path("c").absolute()),
        "embed.executor": "ray",
        "embed.tiny-text.layer": -7,
    }
    with pytest.raises(EncoderError, match="has 3 blocks, so layer -7 does not exist"):
        pipeline.embed(configure(settings))


def test_an_error_in_a_process_is_the_same_sentence(configure: Configure) -> None:
    settings = {**MANY, "embed.actors": 2, "embed.tiny-text.layer": -7}
    with pytest.raises(EncoderError, match="has 3 blocks, so layer -7 does not exist"):
        pipeline.embed(configure(settings))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(how: signal.Signals) -> None:
    command = [
        sys.executable, "-m", "pal", "embed", "--encoder", "tiny-text",
        "--set", "embed.rows_per_shard=2", "--set", "embed.actors=2",
    ]  # fmt: skip
    running = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not list(Path().glob("cache/demo/tiny-text-*/shards/part-*.json")):
        assert running.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)
    family = workers_of(running.pid)
    assert len(family) >= 2
    running.send_signal(how)
    running.wait(30)
    until = time.monotonic() + 30
    while any(is_alive(process) for process in family):
        assert time.monotonic() < until, "a worker outlived its parent"
        time.sleep(0.1)


def workers_of(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    if not path.is_file():
        pytest.skip("this system does not list the children of a process")
    return [int(child) for child in path.read_text().split()]


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def slurm(task: int, **settings: Any) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in
            {"ID": task, "MIN": 4, "MAX": 8, "STEP": 2, **settings}.items()}  # fmt: skip


def test_a_slurm_array_shares_the_shards_and_its_last_task_completes_the_cache(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure({**MANY, "embed.executor": "slurm"})
    with pytest.raises(
        ConfigError, match="SLURM_ARRAY_TASK_ID is not set; submit it with sbatch --array"
    ):
        pipeline.embed(config)
    for task in (4, 6, 8):
        for name, value in slurm(task).items():
            monkeypatch.setenv(name, value)
        if task < 8:
            with pytest.raises(
                CacheError, match="this task's 4 shards are done, others are not yet"
            ):
                pipeline.embed(config)
        else:
            result = pipeline.embed(config)
    assert (result.encoded, result.reused) == (200, 400)
    whole = pipeline.embed(configure({**MANY, "paths.cache": "whole"}))
    assert files(result.dir) == files(whole.dir)


def test_what_one_executor_began_another_finishes(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm(6).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CacheError, match="others are not yet"):
        pipeline.embed(configure({**MANY, "embed.executor": "slurm"}))
    result = pipeline.embed(configure(MANY))
    assert (result.encoded, result.reused) == (400, 200)


@pytest.mark.slow
def test_a_ray_node_that_dies_costs_no_item(configure: Configure) -> None:
    from ray.cluster_utils import Cluster

    folder = Path("cache").absolute()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = made.add_node(num_cpus=1)
    try:
        command = [
            sys.executable, "-m", "pal", "embed", "--encoder", "tiny-text", "--executor", "ray",
            "--ray-address", made.address, "--json", "--set", "data.demo.groups=1",
            "--set", "data.demo.limit=200", "--set", "data.demo.validation_pairs_per_user=5",
            "--set", "data.demo.test_pairs_per_user=5", "--set", "embed.rows_per_shard=5",
            "--set", "embed.actors=2", "--set", f"paths.cache={folder}",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        until = time.monotonic() + 120
        while (
            len(list(folder.glob("demo/tiny-text-*/shards/part-*.json"))) < 20
            and time.monotonic() < until
        ):
            time.sleep(0.02)
        made.remove_node(node, allow_graceful=False)
        seen = len(list(folder.glob("demo/tiny-text-*/shards/part-*.json")))
        made.add_node(num_cpus=1)
        result = EmbedResult.model_validate_json(running.communicate(timeout=300)[0])
    finally:
        made.shutdown()
    print(f"the node died after {seen} of 120 shards")
    assert seen < 120
    assert result.errors == 0
    whole = pipeline.embed(configure({"embed.rows_per_shard": 5, "paths.cache": "whole"}))
    assert {name.split(".")[0] for name in files(result.dir)} == {
        name.split(".")[0] for name in files(whole.dir)
    }
    assert result.items_unique == whole.items_unique == 600
