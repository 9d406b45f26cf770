"""Any Lightning Trainer trains a head: callbacks and loggers see what log.csv has, processes share
each batch, and the result is a run."""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from pal import pipeline
from pal.config import Config
from pal.errors import TrainError
from pal.train.pairs import PairBatches, Pairs

Configure = Callable[..., Config]
PALA = {"train.head": "pal-a", "train.k": 2, "train.epochs": 3}
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # of torch, for Lightning's use of it
]


@pytest.fixture
def config(configure: Configure) -> Config:
    config = configure(PALA)
    pipeline.embed(config)
    return config


def trainer(**options: Any) -> lightning.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return lightning.Trainer(**{"logger": False, **quiet, **options})


def test_callbacks_and_loggers_see_what_the_log_has(config: Config) -> None:
    training = pipeline.open_training(config, "mine")
    checkpoint = ModelCheckpoint("kept", monitor="val/acc", mode="max")
    stopping = EarlyStopping("val/loss", patience=1, min_delta=100.0)
    logger = CSVLogger("logs", name="", version="")
    own = trainer(
        max_epochs=9, callbacks=[checkpoint, stopping], logger=logger, log_every_n_steps=1,
        num_sanity_val_steps=2, use_distributed_sampler=False,
    )  # fmt: skip
    own.fit(training.module, datamodule=training.batches)
    assert own.current_epoch == 2, "EarlyStopping stopped after the second epoch without a gain"
    assert Path(checkpoint.best_model_path).is_file()
    rows = training.module.epoch_rows
    assert [row["epoch"] for row in rows] == [1, 2]
    told = list(csv.DictReader(Path("logs/metrics.csv").read_text().splitlines()))
    for name in ("train/loss", "val/loss", "val/acc"):
        found = [float(row[name]) for row in told if row[name]]
        assert found == pytest.approx([row[name] for row in rows], rel=1e-5)
    trained = training.save()
    assert trained is not None
    assert [row.split(",")[0] for row in Path("runs/mine/log.csv").read_text().split()] == [
        "epoch", "1", "2",
    ]  # fmt: skip
    assert pipeline.evaluate(config, ["mine"]).runs[0].test_seen.n_pairs > 0


def test_the_same_trainer_gives_the_same_head(config: Config) -> None:
    pipeline.train(config, run="ours")
    training = pipeline.open_training(config, "mine")
    training.module.trainer = trainer()
    with pytest.raises(TrainError, match="no epoch with a finite val/loss"):
        training.save()
    own = trainer(max_epochs=3, enable_checkpointing=False, deterministic=True)
    own.fit(training.module, datamodule=training.batches)
    trained = training.save()
    assert trained is not None
    ours = Path("runs/ours/head.safetensors").read_bytes()
    assert Path("runs/mine/head.safetensors").read_bytes() == ours


def test_a_head_that_is_solved_has_no_trainer(configure: Configure) -> None:
    config = configure({"train.head": "auto"})
    pipeline.embed(config)
    with pytest.raises(TrainError, match="is solved, not trained step by step"):
        pipeline.open_training(config, "mine")


def test_priors_are_those_of_our_own_training(configure: Configure) -> None:
    options = {**PALA, "train.priors": "auto"}
    pipeline.embed(configure(options))
    pipeline.train(configure({**options, "train.sigma": 1.0}), run="ours")
    training = pipeline.open_training(configure(options), "mine")
    assert training.module.priors is not None
    own = trainer(max_epochs=3, enable_checkpointing=False, deterministic=True)
    own.fit(training.module, datamodule=training.batches)
    trained = training.save()
    assert trained is not None
    assert trained.metadata.train.sigma == 1.0, "one training has one strength, which is told"
    ours = Path("runs/ours/head.safetensors").read_bytes()
    assert Path("runs/mine/head.safetensors").read_bytes() == ours
    assert training.save() is not None
    assert Path("runs/mine/head.safetensors").read_bytes() == ours, "it is divided once"


def test_several_starts_are_no_training_of_one_trainer(config: Config) -> None:
    several = config.train.model_copy(update={"starts": 2})
    with pytest.raises(TrainError, match=r"train.starts = 2 .* use pal train, or train.starts=1"):
        pipeline.open_training(config.model_copy(update={"train": several}), "mine")


@pytest.mark.parametrize("sanity", [0, 2])
def test_epochs_without_validation_are_rows_without_it(config: Config, sanity: int) -> None:
    training = pipeline.open_training(config, "mine")
    own = trainer(
        max_epochs=3, check_val_every_n_epoch=2, num_sanity_val_steps=sanity,
        enable_checkpointing=False,
    )  # fmt: skip
    own.fit(training.module, datamodule=training.batches)
    assert ["val/loss" in row for row in training.module.epoch_rows] == [False, True, False]
    assert training.module.best_epoch == 2
    assert training.save() is not None
    rows = list(csv.DictReader(Path("runs/mine/log.csv").read_text().splitlines()))
    assert [bool(row["val/loss"]) for row in rows] == [False, True, False]


def test_patience_counts_validations(configure: Configure) -> None:
    config = configure({**PALA, "train.patience": 2, "train.lr": 0.3, "train.user_lr": 3.0})
    pipeline.embed(config)
    training = pipeline.open_training(config, "mine")
    own = trainer(max_epochs=60, check_val_every_n_epoch=3, enable_checkpointing=False)
    own.fit(training.module, datamodule=training.batches)
    best, last = training.module.best_epoch, own.current_epoch
    assert 3 <= best == last - 6 < 54
    assert training.save() is not None


def test_users_of_all_batches_of_a_step_are_present(configure: Configure) -> None:
    config = configure({**PALA, "train.absent_users": "stay", "train.batch_size": 2})
    pipeline.embed(config)
    training = pipeline.open_training(config, "mine")
    own = trainer(max_epochs=1, accumulate_grad_batches=30, enable_checkpointing=False)
    own.fit(training.module, datamodule=training.batches)
    assert len(training.batches.train_pairs) == 60, "one step of thirty batches"
    rows = training.module.rows
    assert rows is not None
    assert rows.steps.squeeze(1).tolist() == [1.0] * 6


def made_pairs(count: int) -> Pairs:
    place = torch.arange(count)
    return Pairs(None, place, place, torch.zeros(count, dtype=torch.long), torch.ones(count))


@pytest.mark.parametrize(("seed", "count", "left_out"), [(0, 26, 2), (0, 25, 1), (None, 25, 0)])
def test_processes_share_each_batch(seed: int | None, count: int, left_out: int) -> None:
    parts = [
        PairBatches(torch.zeros(count, 1), made_pairs(count), 9, seed, (rank, 3))
        for rank in range(3)
    ]
    places = [list(part.places()) for part in parts]
    found = torch.cat([place for one in places for place in one]).tolist()
    assert len(set(found)) == len(found) == count - left_out
    assert [len(one) for one in places] == [len(part) for part in parts]
    if seed is not None:
        sizes = [[len(place) for place in one] for one in places]
        assert sizes[0] == sizes[1] == sizes[2]
    whole = list(PairBatches(torch.zeros(count, 1), made_pairs(count), 9, seed).places())
    for batch, shares in zip(whole, zip(*places, strict=True), strict=False):
        assert set(torch.cat(shares).tolist()) <= set(batch.tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra", [{}, {"train.absent_users": "stay"}, {"train.loss_over": "users"}]
)
def test_two_processes_train_what_one_trains(configure: Configure, extra: dict[str, Any]) -> None:
    """Each has half of every batch, of which none is odd, so that nothing is left out."""
    settings = {**PALA, **extra, "train.batch_size": 12, "data.demo.pairs_per_user": 10}
    config = configure(settings)
    pipeline.embed(config)
    logs = []
    for processes in (1, 2):
        training = pipeline.open_training(config, f"of{processes}")
        strategy = "ddp_fork" if processes > 1 else "auto"
        if sys.platform == "win32":
            pytest.skip("processes are forked here")
        own = trainer(
            max_epochs=2, devices=processes, strategy=strategy, enable_checkpointing=False
        )
        assert len(training.batches.train_pairs) % 12 == 0
        torch.set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own.fit(training.module, datamodule=training.batches)
        logs.append({name: float(own.callback_metrics[name]) for name in own.callback_metrics})
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)
