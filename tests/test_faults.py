"""When things go wrong: kills, rivals, disks that refuse, damage, lack of memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from pal import pipeline
from pal.cache.inspect import verify
from pal.cache.reader import FeatureStore
from pal.cli import main
from pal.config import Config
from pal.data import build
from pal.data.tables import Tables
from pal.embed.encoders.text import TextEncoder
from pal.errors import CacheError, EvaluationError, PalWarning, TrainError
from pal.evaluate import inputs, predict
from pal.evaluate.adaptation import adapt_run
from pal.evaluate.records import Metrics
from pal.reward.export import Choice
from pal.train import fit

Configure = Callable[..., Config]
CAMPAIGN = Path(__file__).resolve().parents[1] / "benchmarks" / "crashes.py"


def shards_of(folder: Path) -> dict[bytes, bytes]:
    """Return the feature bytes by item of a complete cache."""
    store = FeatureStore.open(folder)
    rows = store.features().view(torch.uint8).numpy()
    return {bytes(name): row.tobytes() for name, row in zip(store.item_ids, rows, strict=True)}


@pytest.mark.slow
def test_killed_rivalled_and_refused_by_disks_every_command_ends_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    counts = [
        "--points",
        "2",
        "--row",
        "1",
        "--times",
        "1",
        "--real",
        "2",
        "--pairs",
        "1",
        "--disks",
        "1",
    ]
    done = subprocess.run(
        [sys.executable, CAMPAIGN, *counts], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Ended(NamedTuple):
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """What it was refused with: one line, and nothing else."""
        assert self.code == 1, self.err
        assert self.out == ""
        told = [x for x in self.err.splitlines() if not x.startswith("pal: warning: ")]
        assert len(told) == 1, self.err
        return told[0]


@pytest.fixture
def pal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Return a function that runs a command line in this process."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pal", *arguments])
        capfd.readouterr()
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(warnings, "showwarning", warnings.showwarning)
            warnings.simplefilter("default", PalWarning)
            try:
                main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        return Ended(code, *capfd.readouterr())

    return run


Pal = Callable[..., Ended]
ASKED = {"prompt": "Tea?", "response": "Yes.", "user_id": "nobody"}
STAGES = {
    "prepare": ["prepare", "--set", "data.demo.salt=other"],
    "embed": ["embed", "--set", "paths.cache=other"],
    "cache export": ["cache", "export", "cache/demo/tiny-text", "-o", "copy"],
    "train": ["train", "--run", "two", "--seed", "1"],
    "evaluate": ["evaluate", "one"],
    "adapt": ["adapt", "--run", "one", "--shots", "0,5"],
    "sweep": ["sweep", "--name", "s"],
    "export": ["export", "--run", "one", "--name", "two"],
    "score": ["score", "--model", "exports/one", "--input", "in.jsonl", "--output", "out.jsonl"],
}


@pytest.fixture(scope="module")
def project(configure: Configure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which every stage has been run."""
    folder = tmp_path_factory.mktemp("project")
    config = configure({"sweep.head": ["pal-a"], "sweep.k": [1], "sweep.seed": [0]})
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore", PalWarning)
        patch.chdir(folder)
        pipeline.embed(config)
        pipeline.train(config, "one")
        pipeline.export(config, "one", Choice(), "one")
    Path(folder, "in.jsonl").write_text(json.dumps(ASKED))
    settings = config.model_dump(mode="json", include={"encoder", "train", "sweep"})
    settings["data"] = {"demo": config.data.datasets["demo"].model_dump(mode="json")}
    Path(folder, "pipeline.yaml").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def project_here(project: Path) -> Path:
    shutil.copytree(project, ".", dirs_exist_ok=True, symlinks=True)
    return Path()


def tree_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.usefixtures("project_here")
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_tells_what_the_disk_refuses_and_leaves_no_trace(
    stage: str, pal: Pal, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree_of(Path())
    for number, words in (
        (errno.ENOSPC, "no space is left for"),
        (errno.EROFS, "is on a disk that can only be read"),
    ):

        def refuse(handle: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            assert words in pal(*STAGES[stage], "--json").sentence
        assert tree_of(Path()) == before
    assert pal(*STAGES[stage], "--json").code == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=220k", "none", str(folder)]
    mount = subprocess.run(command, capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.usefixtures("project_here")
def test_a_full_disk_loses_no_finished_shard(small_disk: Path, pal: Pal) -> None:
    settings = ["--set", "embed.rows_per_shard=20", "--set", f"paths.cache={small_disk}"]
    assert "no space is left for" in pal("embed", *settings).sentence
    (folder,) = small_disk.glob("demo/tiny-text-*")
    assert not (folder / "manifest.json").exists()
    finished = len(list((folder / "shards").glob("part-*.json")))
    assert 0 < finished < 30
    assert not list(folder.rglob(".*"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert json.loads(pal("embed", *settings, "--json").out)["reused"] == 20 * finished
    assert verify(folder).rows == 600


def test_of_two_that_prepare_at_once_one_waits_and_finds_it_done(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, usual = [], build.tables_of

    def counted(*arguments: Any) -> Tables:
        made.append(1)
        return usual(*arguments)

    monkeypatch.setattr(build, "tables_of", counted)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: pipeline.prepare(configure()), range(2))
    assert one == other
    assert len(made) == 1


@pytest.mark.usefixtures("project_here")
def test_a_run_of_other_settings_that_came_first_is_not_replaced(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked whether the name is free, then trained."""
    usual = fit.fit_head

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(fit, "fit_head", usual)
        pipeline.train(configure({"train.k": 3}), "new")
        return usual(*arguments)

    monkeypatch.setattr(fit, "fit_head", slow)
    with pytest.raises(TrainError, match="runs/new holds a run with train.k = 3, not 2"):
        pipeline.train(configure(), "new")
    assert predict.load_run(Path("runs"), "new").metadata.train.k == 3


@pytest.mark.usefixtures("project_here")
def test_a_head_that_is_no_longer_there_leaves_no_evaluation(configure: Configure) -> None:
    config = configure({"adapt.shots": [0, 5]})
    old = predict.load_run(Path("runs"), "one")
    data = inputs.inputs_of_run(config.paths, old.metadata)
    shutil.rmtree("runs/one")
    new = pipeline.train(configure({"seed": 1}), "one")
    with pytest.raises(EvaluationError, match="runs/one was trained anew while an earlier head"):
        predict.evaluate_run(config.evaluate, old, *data, Path("runs/one"))
    with pytest.raises(EvaluationError, match="runs/one was trained anew"):
        adapt_run(config.adapt, config.evaluate, old, *data, Path("runs/one"))
    assert Metrics.read(Path("runs/one")) == new


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_shard_is_found_refused_and_encoded_again(how: str, configure: Configure) -> None:
    config = configure({"embed.rows_per_shard": 100})
    folder = Path(pipeline.embed(config).dir)
    before = shards_of(folder)
    shard = sorted((folder / "shards").glob("part-*.parquet"))[2]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content[:-100] if how == "truncated" else content)
    with pytest.raises(CacheError, match=shard.name):
        verify(folder)
    with pytest.raises(CacheError, match="run pal embed.* again"):
        pipeline.train(config)
    assert pipeline.embed(config).encoded == 100
    assert shards_of(folder) == before


def test_a_batch_that_finds_no_memory_is_halved(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, sizes = TextEncoder.encode, []

    def small_memory(self: TextEncoder, batch: Any) -> list[torch.Tensor]:
        if len(batch.rows) > 10:
            raise torch.OutOfMemoryError("no memory")
        sizes.append(len(batch.rows))
        return original(self, batch)

    whole = shards_of(Path(pipeline.embed(configure({"paths.cache": "whole"})).dir))
    monkeypatch.setattr(TextEncoder, "encode", small_memory)
    result = pipeline.embed(configure())
    assert (result.errors, result.encoded) == (0, 600)
    assert max(sizes) > 4  # halves, not single items
    halved = shards_of(Path(result.dir))
    assert whole.keys() == halved.keys()
    first, second = (
        np.frombuffer(b"".join(c[k] for k in sorted(c)), np.float16) for c in (whole, halved)
    )
    np.testing.assert_allclose(first, second, atol=2e-3)


def test_failed_items_are_tried_again_when_asked(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TextEncoder.encode

    def fail(self: TextEncoder, batch: Any) -> list[torch.Tensor]:
        if 3 in batch.rows:
            raise RuntimeError("not today")
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "encode", fail)
        assert pipeline.embed(configure()).errors == 2  # one in each shard
    assert pipeline.embed(configure()).encoded == 0
    again = pipeline.embed(configure(), retry_errors=True)
    assert (again.errors, again.encoded) == (0, 600)
    assert not list(Path(again.dir).glob("errors/*.parquet"))
