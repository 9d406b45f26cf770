"""Whoever does the shards, they are the same; and any executor finishes what another began."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pal import pipeline
from pal.cache.inspect import verify
from pal.cache.plan import ShardTask
from pal.config import Config
from pal.embed.run import EmbedResult
from pal.errors import ConfigError, EncoderError, PalWarning

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


def test_an_address_where_no_cluster_answers_is_one_sentence(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pal.embed.engines.ray import require_cluster

    with socket.socket() as taken, socket.socket() as silent:
        taken.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"nothing answers at --ray-address {closed}"):
            require_cluster(closed)
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr("pal.embed.engines.ray.JOIN_SECONDS", 1.0)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"{address} is no Ray cluster, or too slow"):
            require_cluster(address)
    monkeypatch.setattr("pal.embed.engines.ray.JOIN", "import sys; sys.exit('ValueError: odd')")
    with pytest.raises(ConfigError, match=r"cannot join the Ray cluster at auto \(ValueError: odd"):
        require_cluster("auto")


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("error", [EncoderError("not today"), OSError(28, "no space", "shards")])
def test_an_error_in_an_actor_is_the_same_sentence(
    error: Exception, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, job: object, device: str) -> None: ...

        def run(self, task: object) -> None:
            raise error

    monkeypatch.setattr("pal.embed.engines.ray.Actor", Broken)  # a real one takes long to import
    settings = {"paths.cache": str(Path("c").absolute()), "embed.executor": "ray"}
    with pytest.raises(type(error), match=str(error.args[-1])):
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
    family = descendants_of(running.pid)
    assert len(family) >= 2
    running.send_signal(how)
    running.wait(30)
    until = time.monotonic() + 30
    while any(is_alive(process) for process in family):
        assert time.monotonic() < until, "a worker outlived its parent"
        time.sleep(0.1)


def descendants_of(parent: int) -> list[int]:
    path = Path(f"/proc/{parent}/task/{parent}/children")
    if not path.is_file():
        pytest.skip("this system does not list the children of a process")
    children = [int(child) for child in path.read_text().split()]
    return children + [process for child in children for process in descendants_of(child)]


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def slurm(task: int, **settings: Any) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in
            {"ID": task, "MIN": 4, "MAX": 8, "STEP": 2, **settings}.items()}  # fmt: skip


def embed_as(task: int, config: Config) -> EmbedResult:
    """Embed as one task of an array; returns what it did, and checks that it says what is left."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", PalWarning)
        for name, value in slurm(task).items():
            patch.setenv(name, value)
        result = pipeline.embed(config)
    assert len(told) == (not result.complete)
    assert all("whichever task of the job array ends last" in str(one.message) for one in told)
    return result


def test_a_slurm_array_shares_the_shards_and_its_last_task_completes_the_cache(
    configure: Configure,
) -> None:
    config = configure({**MANY, "embed.executor": "slurm"})
    with pytest.raises(
        ConfigError, match="SLURM_ARRAY_TASK_ID is not set; submit it with sbatch --array"
    ):
        pipeline.embed(config)
    found = [embed_as(task, config) for task in (4, 6, 4, 8, 6)]
    assert [one.complete for one in found] == [False, False, False, True, True]
    assert [one.encoded for one in found] == [200, 200, 0, 200, 0]
    assert [one.reused for one in found] == [0, 200, 400, 400, 600]
    assert {(one.fingerprint, one.dim) for one in found} == {(found[-1].fingerprint, 64)}
    whole = pipeline.embed(configure({**MANY, "paths.cache": "whole"}))
    assert files(found[-1].dir) == files(whole.dir)


def test_tasks_of_a_slurm_array_that_run_at_once_leave_each_other_alone(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All look for what is pending before any has committed, and all end at once."""
    config = configure({**MANY, "embed.executor": "slurm"})
    pipeline.prepare(config)
    for name, value in slurm(4).items():
        monkeypatch.setenv(name, value)
    own, together = threading.local(), threading.Barrier(3, timeout=60)
    shares = {4: 0, 6: 1, 8: 2}

    def share(tasks: list[ShardTask]) -> list[ShardTask]:
        together.wait()
        return [task for task in tasks if task.number % 3 == shares[own.task]]

    monkeypatch.setattr("pal.embed.engines.slurm.share_of_this_task", share)

    def work(task: int) -> EmbedResult:
        own.task = task
        return pipeline.embed(config)

    with warnings.catch_warnings(), ThreadPoolExecutor(3) as pool:
        warnings.simplefilter("ignore", PalWarning)
        found = list(pool.map(work, shares))
    assert [one.encoded for one in found] == [200, 200, 200]
    assert any(one.complete for one in found)
    assert verify(Path(found[0].dir)).rows == 600


def test_what_one_executor_began_another_finishes(configure: Configure) -> None:
    began = embed_as(6, configure({**MANY, "embed.executor": "slurm"}))
    assert (began.complete, began.encoded) == (False, 200)
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
