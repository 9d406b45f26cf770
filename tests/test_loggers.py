"""train.logger: what a training tells goes to a logger, and its files belong to the run."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger

from pal import pipeline
from pal.config import Config
from pal.errors import ConfigError, TrainError
from pal.evaluate.keeping import list_runs, remove_runs, runs_to_remove
from pal.train import loggers
from pal.train.run_record import RunRecord

Configure = Callable[..., Config]
SIMULATED = {"dataset": "simulated", "encoder": "identity", "train.head": "pal-a",
             "train.epochs": 3, "train.batch_size": 8}  # fmt: skip
NAMES = ("train/loss", "val/loss", "val/acc")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of torch, in Lightning's use


class Fake(CSVLogger):
    """A logger with something to finish, as that of wandb has."""

    finished: list[str]

    @property
    def experiment(self) -> Any:
        made = super().experiment
        made.finish = lambda: self.finished.append(str(self.version))
        return made


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have a logger of files that needs no package; returns the trainings that were finished."""
    found: list[str] = []

    def make(folder: Path, run: str, training: str) -> Logger:
        logger = Fake(folder, name="", version=training)
        logger.finished = found
        return logger

    monkeypatch.setattr("pal.train.fit.require_logger", lambda settings: None)
    monkeypatch.setitem(loggers.LOGGERS, "tensorboard", make)
    return found


def ready(configure: Configure, options: dict[str, Any] | None = None) -> Config:
    config = configure({**SIMULATED, "train.logger": "tensorboard", **(options or {})})
    pipeline.embed(config, tell=lambda line: None)
    return config


def told(path: Path, name: str) -> list[float]:
    lines = path.read_text().splitlines()
    return [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]


def test_a_logger_is_told_what_the_log_of_the_run_has(
    configure: Configure, finished: list[str]
) -> None:
    config = ready(configure)
    lines: list[str] = []
    pipeline.train(config, "one", tell=lines.append)
    logged = Path("runs/one/logs/seed-0/metrics.csv")
    for name in NAMES:
        assert told(logged, name) == pytest.approx(told(Path("runs/one/log.csv"), name), rel=1e-5)
        assert len(told(logged, name)) == 3
    assert "k: 2" in Path("runs/one/logs/seed-0/hparams.yaml").read_text()
    assert finished == ["seed-0"]
    assert "tensorboard --logdir runs" in lines[0]
    assert [path.name for path in Path("runs").iterdir() if path.is_dir()] == ["one"]


def test_every_start_and_every_strength_is_logged_apart(
    configure: Configure, finished: list[str]
) -> None:
    pipeline.train(ready(configure, {"train.starts": 2}), "starts")
    assert sorted(path.name for path in Path("runs/starts/logs").iterdir()) == [
        "seed-0", "seed-1000",
    ]  # fmt: skip
    pipeline.train(ready(configure, {"train.priors": "auto", "train.sigma": 0.5}), "priors")
    assert [path.name for path in Path("runs/priors/logs").iterdir()] == ["seed-0-sigma-0.5"]
    assert finished == ["seed-0", "seed-1000", "seed-0-sigma-0.5"]


@pytest.mark.usefixtures("finished")
def test_a_logger_changes_neither_the_head_nor_its_name(configure: Configure) -> None:
    config, without = ready(configure), configure(SIMULATED)
    assert pipeline.default_run(config) == pipeline.default_run(without)
    pipeline.train(config, "one")
    pipeline.train(without, "other")
    heads = [Path(f"runs/{run}/head.safetensors").read_bytes() for run in ("one", "other")]
    assert heads[0] == heads[1]
    assert not Path("runs/other/logs").exists()


@pytest.mark.usefixtures("finished")
def test_logs_are_replaced_counted_and_removed_with_their_run(configure: Configure) -> None:
    config = ready(configure)
    pipeline.train(config, "one")
    stray = Path("runs/one/logs/stray")
    stray.write_bytes(bytes(1000))
    assert pipeline.evaluate(config, ["one"]).runs[0].run == "one"
    (before,) = list_runs(Path("runs"))
    pipeline.train(config, "one")
    assert not stray.exists()
    (after,) = list_runs(Path("runs"))
    assert before.bytes - after.bytes == pytest.approx(1000, abs=50)  # times are of other lengths
    pipeline.train(configure(SIMULATED), "one")
    assert not Path("runs/one/logs").exists(), "of a training that nobody asked to log"
    assert "logs" not in " ".join(RunRecord.read(Path("runs/one")).files)
    remove_runs(runs_to_remove(Path("runs"), ["one"]))
    assert not Path("runs/one").exists()


@pytest.mark.usefixtures("finished")
def test_a_training_that_fails_leaves_no_log(configure: Configure) -> None:
    with pytest.raises(TrainError, match="never finite"):
        pipeline.train(ready(configure, {"train.lr": 1e30}), "one")
    assert [path for path in Path("runs").rglob("*") if path.is_dir()] == []


def test_heads_that_are_solved_and_sweeps_say_that_they_do_not_log(
    configure: Configure, finished: list[str]
) -> None:
    lines: list[str] = []
    pipeline.train(ready(configure, {"train.head": "bt-linear"}), "one", tell=lines.append)
    assert lines[0] == "head bt-linear is solved at once: train.logger has nothing to log"
    lines.clear()
    axes = {"head": ["pal-a"], "k": [1, 2], "seed": [0]}
    options = {f"sweep.{axis}": values for axis, values in axes.items()}
    pipeline.sweep(ready(configure, options), "s", report=lines.append)
    assert "train.logger = 'tensorboard' is for pal train; a sweep logs no training" in lines
    assert RunRecord.read(Path("runs/s-best")).train.logger is None
    assert finished == []
    assert not list(Path(".").rglob("logs"))


def test_a_package_that_is_missing_is_one_sentence_before_any_work(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise loggers.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    config = ready(configure, {"train.logger": "wandb"})
    with pytest.raises(ConfigError) as caught:
        pipeline.train(config, "one")
    assert str(caught.value) == (
        "train.logger = 'wandb' needs the package wandb; pip install 'pal-heads[wandb]'"
    )
    assert not Path("runs").exists()


def test_tensorboard_itself_reads_what_was_logged(configure: Configure) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pipeline.train(ready(configure), "one")
    events = EventAccumulator("runs/one/logs/seed-0")
    events.Reload()
    for name in NAMES:
        found = [event.value for event in events.Scalars(name)]
        assert found == pytest.approx(told(Path("runs/one/log.csv"), name), rel=1e-5)


def test_wandb_writes_into_the_run_and_sends_nothing(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):  # its own folders, of a home
        monkeypatch.setenv(f"WANDB_{name}", str(Path(name).absolute()))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    mine = wandb.init(mode="offline", dir="mine", settings=wandb.Settings(silent=True))
    pipeline.train(ready(configure, {"train.logger": "wandb"}), "one")
    mine.log({"a": 1})
    assert wandb.run is mine, "a run that somebody has open stays open"
    mine.finish()
    (written,) = Path("runs/one/logs/wandb").glob("offline-run-*")
    assert list(written.glob("*.wandb"))
    assert not Path("wandb").exists()
