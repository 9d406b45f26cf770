"""Stage two from start to end: join pairs to features, build a head, fit it, save it as a run."""

from __future__ import annotations

import csv
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import polars as pl
import torch
import yaml
from torch import Tensor

from pal.cache.reader import FeatureStore
from pal.config import Config, TrainConfig
from pal.dataset import PreparedDataset
from pal.errors import TrainError
from pal.files import atomic_directory
from pal.train.diagnose import warn_about_labels, warn_about_loss
from pal.train.heads.head import Head, build_head, resolve
from pal.train.heads.standardise import Standardiser
from pal.train.module import HeadTraining
from pal.train.pairs import Pairs, PairsDataModule, drop_without_feature
from pal.train.run_record import TrainedHead

Progress = Callable[[int], None]
SEEDS_APART = 1000
"""between the seeds of a run's starts"""


@dataclass
class TrainingData:
    """What all heads of one dataset, encoder and training set share."""

    dataset: PreparedDataset
    store: FeatureStore
    users: list[str]
    """ids of the seen users, sorted: the rows of every head's user table"""
    features: Tensor
    """(rows, dim) in the dtype of the cache, on the device"""
    train: Pairs
    val: Pairs
    judged: dict[str, tuple[pl.DataFrame, Pairs]] = field(default_factory=dict)
    """what evaluation has read and joined, by split"""

    @classmethod
    def load(
        cls, settings: TrainConfig, dataset: PreparedDataset, store: FeatureStore, device: str
    ) -> TrainingData:
        """Join the seen users' training and validation pairs to the features; test pairs are not
        read."""
        frames = {
            split: drop_without_feature(dataset.pairs(split, "seen"), store)
            for split in ("train", "val")
        }
        frames["train"] = subset(frames["train"], settings.users, settings.pairs_per_user)
        chosen = frames["train"]["user_id"].unique().sort().to_list()
        frames["val"] = frames["val"].filter(pl.col("user_id").is_in(chosen))
        for split, frame in frames.items():
            if frame.is_empty():
                raise TrainError(
                    f"dataset {dataset.name} has no {split} pairs of seen users; prepare it with "
                    "more source rows"
                )
        with_prompt = frames["train"]["prompt_id"].null_count() == 0
        pairs = {
            s: Pairs.join(frame, store, chosen, with_prompt, device) for s, frame in frames.items()
        }
        return cls(dataset, store, chosen, store.features(device), pairs["train"], pairs["val"])

    def new_head(self, settings: TrainConfig, seed: int) -> Head:
        """Build a head with the weights of a seed, its feature statistics fitted."""
        lightning.seed_everything(seed, verbose=False)
        head = build_head(settings, self.store.dim, len(self.users))
        if head.uses_prompt and self.train.prompt is None:
            raise TrainError("this head reads prompts, but the dataset has none; use --head pal-a")
        for name, fitted in (("item_scale", self.item_scale), ("prompt_scale", self.prompt_scale)):
            scaler = getattr(head, name, None)
            if scaler is not None and fitted is not None:
                scaler.load_state_dict(fitted.state_dict())
        return head.to(self.features.device)

    @cached_property
    def item_scale(self) -> Standardiser:
        """Statistics of the training pairs' distinct items, fitted once for all heads."""
        return statistics_of(self.features, self.train.item_rows())

    @cached_property
    def prompt_scale(self) -> Standardiser | None:
        """Statistics of the training pairs' distinct prompts, where there are any."""
        return (
            None if self.train.prompt is None else statistics_of(self.features, self.train.prompt)
        )

    def trained(
        self,
        head: Head,
        config: Config,
        settings: TrainConfig,
        run: str,
        seconds: float,
        best_epoch: int,
    ) -> TrainedHead:
        """Wrap a fitted head with the facts that its run records."""
        facts = {
            "run": run,
            "dataset": self.dataset.name,
            "view": self.dataset.view,
            "item_text": self.dataset.item_text,
            "encoder": config.encoder,
            "untrained": bool(self.store.manifest.get("untrained")),
            "seed": config.seed,
            "dim": self.store.dim,
            "params": sum(parameter.numel() for parameter in head.parameters()),
            "params_per_user": head.users.logits.shape[1],
            "seconds": round(seconds, 3),
            "best_epoch": best_epoch,
            "split_digest": self.dataset.split_digest,
            "cache_fingerprint": self.store.fingerprint,
            "encoder_spec": self.store.manifest["spec"]["encoder"],
            "train": settings.model_dump(mode="json"),
        }
        return TrainedHead(head.eval(), self.users, facts)


def subset(frame: pl.DataFrame, users: int | None, pairs_per_user: int | None) -> pl.DataFrame:
    """Keep the first users by name and each one's first pairs by id, which is a random but fixed
    order."""
    if users is not None:
        frame = frame.filter(
            pl.col("user_id").is_in(frame["user_id"].unique().sort()[:users].to_list())
        )
    if pairs_per_user is not None:
        frame = frame.filter(pl.int_range(pl.len()).over("user_id") < pairs_per_user)
    return frame


def train(
    config: Config,
    dataset: PreparedDataset,
    store: FeatureStore,
    run: str,
    progress: Progress = lambda epochs: None,
) -> TrainedHead:
    """Train one head on the seen users' training pairs and save it as ``runs/<run>``.

    Validation pairs choose the epoch; test pairs are not read. ``progress`` is called after each
    epoch. The same settings and seed give the same bytes on the same machine's CPU.
    """
    settings = resolve(config.train)
    device = choose_device(settings.device)
    data = TrainingData.load(settings, dataset, store, device)
    warn_about_labels(data.train, data.users)
    began = time.perf_counter()
    head, log, best_epoch = fit_head(data, settings, config.seed, progress)
    if settings.loss == "logistic":
        warn_about_loss(min((row["val/loss"] for row in log if "val/loss" in row), default=0.0))
    trained = data.trained(head, config, settings, run, time.perf_counter() - began, best_epoch)
    save_run(config.paths.runs / run, trained, config, settings, log)
    return trained


def fit_head(
    data: TrainingData, settings: TrainConfig, seed: int, progress: Progress = lambda epochs: None
) -> tuple[Head, list[dict[str, float]], int]:
    """Return a fitted head, its log, and the epoch it is from (0 for heads that are solved at
    once)."""
    best: HeadTraining | None = None
    for own_seed in range(seed, seed + SEEDS_APART * settings.starts, SEEDS_APART):
        head = data.new_head(settings, own_seed)
        if head.is_solved:
            head.solve(data, settings)
            progress(settings.epochs * settings.starts)
            return head, [{"epoch": 0}], 0
        module = HeadTraining(head, settings)
        batches = PairsDataModule(
            data.features, data.train, data.val, settings.batch_size, own_seed
        )
        fit(module, batches, str(data.features.device), progress)
        if module.best_state and (best is None or module.best_loss < best.best_loss):
            best = module
    if best is None:
        raise TrainError("the validation loss was never finite; train with a lower --set train.lr")
    best.head.load_state_dict(best.best_state)
    return best.head, best.epoch_rows, best.best_epoch


def save_run(
    folder: Path,
    trained: TrainedHead,
    config: Config,
    settings: TrainConfig,
    log: list[dict[str, float]],
) -> None:
    """Write a run as a whole: head, resolved configuration, one log row per epoch."""
    with atomic_directory(folder) as temporary:
        trained.save(temporary)
        write_log(temporary / "log.csv", log)
        resolved = config.model_copy(update={"train": settings}).model_dump(mode="json")
        (temporary / "config.yaml").write_text(
            yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8"
        )


def statistics_of(features: Tensor, rows: Tensor) -> Standardiser:
    """Return the statistics of some rows' features; raises TrainError where they are of no use."""
    fitted = Standardiser(features.shape[1])
    fitted.fit(features, rows.unique())
    if not bool(torch.isfinite(fitted.mean).all()):  # one NaN or infinity among the rows is enough
        raise TrainError(
            "the cache holds NaN or infinite features; run: pal cache verify, then pal embed"
        )
    if not bool(fitted.scale.any()):
        raise TrainError(
            "all items have the same feature, so there is nothing to learn from; check the encoder"
        )
    return fitted


def fit(module: Any, data: PairsDataModule, device: str, progress: Progress) -> None:
    """Run Lightning's loop, for ``module.epochs`` epochs, without its files and messages."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Report(lightning.Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            progress(1)

    kind = "gpu" if device.startswith("cuda") else "cpu"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = lightning.Trainer(
            accelerator=kind,
            devices=[torch.device(device).index or 0] if kind == "gpu" else 1,
            max_epochs=module.epochs,
            callbacks=[Report()],
            deterministic=True,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module, datamodule=data)


def choose_device(name: str) -> str:
    """Return ``name``, or for ``auto`` the GPU if there is one."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise TrainError(
            f"train.device = {name!r}, but this machine offers torch no GPU; use --set "
            "train.device=cpu"
        )
    if name != "auto":
        return name
    os.environ.setdefault(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # what deterministic training needs on a GPU
    return "cuda" if torch.cuda.is_available() else "cpu"


def write_log(path: Path, rows: list[dict[str, float]]) -> None:
    """Write one row per epoch."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
