"""Whoever does the shards, they are the same; and any executor finishes what another began."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest

from pal import pipeline
from pal.cache.inspect import verify
from pal.config import Config, PathsConfig
from pal.embed.choose import locate_job
from pal.embed.engines.slurm import Claims
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
    # "local": beside other clusters of this machine, and not in the latest of them
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster", "one_thread")
@pytest.mark.slow
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


@pytest.fixture
def array(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The settings of members of a job array, in their environment."""
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    config = configure({**MANY, "embed.executor": "slurm"})
    pipeline.prepare(config)
    return config


def claims_of(config: Config) -> Claims:
    """Return what a member would take, for one that never does it."""
    return Claims(*locate_job(config, pipeline.prepare(config)).open())


def test_slurm_is_for_jobs(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"SLURM_JOB_ID is not set; submit it with sbatch"):
        pipeline.embed(configure({**MANY, "embed.executor": "slurm"}))
    assert not Path("data").exists(), "before a dataset is prepared"


def test_members_of_a_slurm_array_take_what_nobody_else_has(array: Config) -> None:
    with claims_of(array) as others:
        held = [task.number for task in islice(others, 3)]
        with pytest.warns(PalWarning, match="9 of 12 in all; whichever task of the job array"):
            first = pipeline.embed(array)
        assert (first.complete, first.encoded, held) == (False, 450, [0, 1, 2])
    # whoever held three of them is dead: another member, of whatever number, takes them
    second = pipeline.embed(array)
    assert (second.complete, second.encoded, second.reused) == (True, 150, 450)
    assert pipeline.embed(array).encoded == 0
    assert not (Path(second.dir) / "claims").exists()
    whole = pipeline.embed(array.model_copy(update={"paths": PathsConfig(cache=Path("whole"))}))
    assert files(second.dir) == files(whole.dir)


def test_no_shard_is_done_twice_by_members_that_run_at_once(array: Config) -> None:
    with warnings.catch_warnings(), ThreadPoolExecutor(3) as pool:
        warnings.simplefilter("ignore", PalWarning)
        found = list(pool.map(lambda _: pipeline.embed(array), range(3)))
    assert sum(one.encoded for one in found) == 600
    assert any(one.complete for one in found)
    assert verify(Path(found[0].dir)).rows == 600


def test_a_claim_that_was_given_up_is_taken_in_a_later_round(array: Config) -> None:
    with claims_of(array) as one, claims_of(array) as other:
        first = next(iter(one))
        passed = [task.number for task in islice(other, 5)]
        assert (first.number, passed) == (0, [1, 2, 3, 4, 5])
        one.__exit__(None, None, None)
        left = [task.number for task in other]
        assert left == [6, 7, 8, 9, 10, 11, 0]


@pytest.mark.slow
def test_processes_of_one_member_share_what_it_claims(array: Config) -> None:
    two = array.model_copy(update={"embed": array.embed.model_copy(update={"actors": 2})})
    result = pipeline.embed(two)
    assert (result.complete, result.encoded) == (True, 600)


def test_what_one_executor_began_another_finishes(array: Config, configure: Configure) -> None:
    with claims_of(array) as others:
        assert len(list(islice(others, 8))) == 8
        with pytest.warns(PalWarning, match="4 of 12 in all"):
            began = pipeline.embed(array)
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
