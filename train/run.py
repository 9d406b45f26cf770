"""Stage two from start to end: join pairs to features, build a head, fit it, save it as a run."""

from __future__ import annotations

import csv
import logging
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
import yaml
from torch import Tensor

from pal.cache.reader import FeatureStore
from pal.config import Config
from pal.errors import TrainError
from pal.files import atomic_directory
from pal.tables import PreparedDataset
from pal.train.checkpoint import TrainedHead
from pal.train.datamodule import Pairs, PairsDataModule, drop_without_feature
from pal.train.heads.head import IdealPointHead, build_head, resolve
from pal.train.module import HeadTraining

Progress = Callable[[int], None]


def train(
    config: Config, dataset: PreparedDataset, store: FeatureStore, run: str, progress: Progress = lambda epochs: None
) -> TrainedHead:
    """Train one head on the seen users' training pairs and save it as ``runs/<run>``.

    Validation pairs choose the epoch; test pairs are not read. ``progress`` is called after each epoch.
    The same settings and seed give the same bytes on the same machine's CPU.
    """
    settings = resolve(config.train)
    device = choose_device(settings.device)
    frames = {split: drop_without_feature(dataset.pairs(split, "seen"), store) for split in ("train", "val")}
    for split, frame in frames.items():
        if frame.is_empty():
            raise TrainError(
                f"dataset {dataset.name} has no {split} pairs of seen users; prepare it with more source rows"
            )
    users = frames["train"]["user_id"].unique().sort().to_list()

    lightning.seed_everything(config.seed, verbose=False)
    head = build_head(settings, store.dim, len(users))
    features = store.features(device)
    pairs = {s: Pairs.join(frame, store, users, head.uses_prompt, device) for s, frame in frames.items()}
    standardise(head, features, pairs["train"])
    module = HeadTraining(head, settings)
    data = PairsDataModule(features, pairs["train"], pairs["val"], settings.batch_size, config.seed)
    began = time.perf_counter()
    fit(module, data, settings.epochs, device, progress)
    seconds = time.perf_counter() - began

    head.load_state_dict(module.best_state)
    trained = TrainedHead(
        head.eval(),
        users,
        {
            "run": run,
            "dataset": dataset.name,
            "encoder": config.encoder,
            "untrained": bool(store.manifest.get("untrained")),
            "seed": config.seed,
            "dim": store.dim,
            "params": sum(parameter.numel() for parameter in head.parameters()),
            "params_per_user": head.users.logits.shape[1],
            "seconds": round(seconds, 3),
            "best_epoch": module.best_epoch,
            "split_digest": dataset.split_digest,
            "cache_fingerprint": store.fingerprint,
            "encoder_spec": store.manifest["spec"]["encoder"],
            "train": settings.model_dump(mode="json"),
        },
    )
    with atomic_directory(config.paths.runs / run) as folder:
        trained.save(folder)
        write_log(folder / "log.csv", module.epoch_rows)
        resolved = config.model_copy(update={"train": settings}).model_dump(mode="json")
        (folder / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
    return trained


def standardise(head: IdealPointHead, features: Tensor, pairs: Pairs) -> None:
    """Fit the head's feature statistics on the training pairs' distinct items and prompts."""
    for name, rows in (("item_scale", pairs.item_rows()), ("prompt_scale", pairs.prompt)):
        scaler = getattr(head, name, None)
        if scaler is None or rows is None:
            continue
        chosen = features[rows.unique()].float()
        if not bool(torch.isfinite(chosen).all()):
            raise TrainError("the cache holds NaN or infinite features; run: pal cache verify, then pal embed")
        scaler.fit(chosen)
        if not bool(scaler.scale.any()):
            raise TrainError("all items have the same feature, so there is nothing to learn from; check the encoder")
    head.to(features.device)


def fit(module: HeadTraining, data: PairsDataModule, epochs: int, device: str, progress: Progress) -> None:
    """Run Lightning's loop without its files and messages."""
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
            max_epochs=epochs,
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
        raise TrainError(f"train.device = {name!r}, but this machine offers torch no GPU; use --set train.device=cpu")
    if name != "auto":
        return name
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic training needs on a GPU
    return "cuda" if torch.cuda.is_available() else "cpu"


def write_log(path: Path, rows: list[dict[str, float]]) -> None:
    """Write one row per epoch."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
