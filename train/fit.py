"""Stage two from start to end: join pairs to features, build a head, fit it, save it as a run."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor

from pal.cache.reader import FeatureStore
from pal.config import TrainConfig
from pal.dataset import PreparedDataset
from pal.errors import TrainError
from pal.files import locked
from pal.names import require_name
from pal.records import JsonObject
from pal.train.build import has_priors, kind_of, resolve
from pal.train.data import Fitted, TrainingData, record_before_training
from pal.train.diagnose import warn_about_labels, warn_about_loss
from pal.train.heads.shrunk import ShrunkHead
from pal.train.module import HeadTraining
from pal.train.pairs import LanesDataModule, Pairs, PairsDataModule
from pal.train.priors import PATH, Priors, gains_clearly, prepare, with_things
from pal.train.run_record import RunRecord, TrainedHead
from pal.train.solve import is_solved, solve
from pal.train.stack_training import StackTraining

Progress = Callable[[int], None]
SEEDS_APART = 1000
"""between the seeds of a run's starts"""
NEVER_FINITE = "the validation loss was never finite; train with a lower --set train.lr"


def train(
    settings: TrainConfig,
    seed: int,
    dataset: PreparedDataset,
    store: FeatureStore,
    runs: Path,
    run: str,
    config: JsonObject,
    progress: Progress = lambda epochs: None,
) -> TrainedHead:
    """Train one head on the seen users' training pairs and save it as ``<runs>/<run>``.

    Validation pairs choose the epoch; test pairs are not read. ``config`` is saved beside the head,
    to be read by people; ``progress`` is called after each epoch. The same settings and seed give
    the same bytes on the same machine's CPU. A run of this name is replaced only if it was made
    with the same settings from the same data.
    """
    folder = runs / require_name("run", run)
    RunRecord.require_replaceable(folder)
    settings = resolve(settings)
    record = record_before_training(settings, seed, dataset, store, run)
    remedy = "choose another name with --run, or remove that folder"
    record.require_same_run(folder, remedy)
    data = TrainingData.load(settings, dataset, store, choose_device(settings.device))
    warn_about_labels(data.train, data.users)
    began = time.perf_counter()
    fitted = fit_head(data, settings, seed, progress)
    seconds = time.perf_counter() - began
    if settings.loss == "logistic":
        losses = [row["val/loss"] for row in fitted.log if "val/loss" in row]
        warn_about_loss(min(losses, default=0.0))
    with locked(folder):
        record.require_same_run(folder, remedy)  # another one may have been quicker
        return data.trained(fitted, record, seconds).save(folder, config, fitted.log)


def fit_head(
    data: TrainingData, settings: TrainConfig, seed: int, progress: Progress = lambda epochs: None
) -> Fitted:
    """Fit a head, from several starts if the settings say so; raises TrainError if none succeeds.

    The result is the same whether or not other heads are fitted from this data.
    """
    if has_priors(settings):
        return fit_under_priors(data, settings, seed, progress)
    best: HeadTraining | None = None
    for own_seed in range(seed, seed + SEEDS_APART * settings.starts, SEEDS_APART):
        head = data.new_head(settings, own_seed)
        if is_solved(head):
            solve(head, data.problem, settings)
            progress(settings.epochs * settings.starts)
            return Fitted(head, [{"epoch": 0}], 0)
        module = HeadTraining(head, settings)
        batches = PairsDataModule(
            data.features, data.train, data.val, settings.batch_size, own_seed
        )
        fit(module, batches, str(data.features.device), progress)
        if module.best_state and (best is None or module.best_loss < best.best_loss):
            best = module
    if best is None:
        raise TrainError(NEVER_FINITE)
    best.head.load_state_dict(best.best_state)
    return Fitted(best.head, best.epoch_rows, best.best_epoch)


def fit_under_priors(
    data: TrainingData, settings: TrainConfig, seed: int, progress: Progress = lambda epochs: None
) -> Fitted:
    """Fit a head under priors (pal.train.priors): of several starts the best; with the default
    strength, or with a weaker one where validation pairs gain clearly by it."""
    has_strength = settings.sigma is None and issubclass(kind_of(settings), ShrunkHead)
    chosen: _Trained | None = None
    for sigma in PATH if has_strength else (settings.sigma,):
        own = settings.model_copy(update={"sigma": sigma})
        seeds = range(seed, seed + SEEDS_APART * settings.starts, SEEDS_APART)
        tried = [_train_under_priors(data, own, own_seed, progress) for own_seed in seeds]
        found = min(tried, key=lambda one: one.module.best_loss)
        if not found.module.best_state:
            continue
        if chosen is not None and not gains_clearly(chosen.losses, found.losses, found.val.judged):
            break
        chosen, progress = found, lambda epochs: None
    if chosen is None:
        raise TrainError(NEVER_FINITE)
    module = chosen.module
    assert module.priors is not None
    module.head.moderate(module.priors.size)
    strength = {} if module.config.sigma is None else {"sigma": module.config.sigma}
    log = [{**row, **strength} for row in module.epoch_rows]
    return Fitted(module.head, log, module.best_epoch)


@dataclass
class _Trained:
    """A head after training under priors, at its best epoch and not yet moderated."""

    module: HeadTraining
    val: Pairs
    losses: Tensor
    """(n,) of the validation pairs"""


def _train_under_priors(
    data: TrainingData, settings: TrainConfig, seed: int, progress: Progress
) -> _Trained:
    head = data.new_head(settings, seed)
    points = data.item_scale(data.features).to(data.features.device)
    train, val = (
        with_things(pairs, points, data.is_vote, head.uses_prompt)
        for pairs in (data.train, data.val)
    )
    prepare(head, train, data.features, data.is_vote)
    module = HeadTraining(head, settings, Priors(head, train, data.is_vote))
    batches = PairsDataModule(data.features, train, val, settings.batch_size, seed)
    fit(module, batches, str(data.features.device), progress)
    if module.best_state:
        head.load_state_dict(module.best_state)
    head.eval()
    with torch.no_grad():
        losses = [module.judge(batch)[0] for batch in batches.val_dataloader()]
    return _Trained(module, val, torch.cat(losses))


def fit(
    module: HeadTraining | StackTraining,
    data: PairsDataModule | LanesDataModule,
    device: str,
    progress: Progress,
) -> None:
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
    # what deterministic training needs on a GPU
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return "cuda" if torch.cuda.is_available() else "cpu"
