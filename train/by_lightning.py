"""Fitting a head in steps, by Lightning's trainer."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from pal.config import TrainConfig
from pal.errors import TrainError
from pal.train.build import has_priors, kind_of
from pal.train.data import Fitted, TrainingData
from pal.train.datamodules import PairsDataModule
from pal.train.heads.shrunk import ShrunkHead
from pal.train.loggers import Logs
from pal.train.module import HeadTraining
from pal.train.priors import PATH, Priors, gains_clearly, prepare, with_things
from pal.train.steps import deterministic

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

Progress = Callable[[int], None]
SEEDS_APART = 1000
"""between the seeds of a run's starts"""
NEVER_FINITE = "the validation loss was never finite; train with a lower --set train.lr"


def fit_in_steps(
    data: TrainingData, settings: TrainConfig, seed: int, progress: Progress, logs: Logs | None
) -> Fitted:
    """Fit a head that is not solved, as ``pal.train.fit.fit_head`` says."""
    best: HeadTraining | None = None
    if has_priors(settings):
        best = _best_strength(data, settings, seed, progress, logs)
    else:
        for own_seed in _seeds(settings, seed):
            module, _ = _trained(data, settings, own_seed, progress, logs)
            if module.best_state and (best is None or module.best_loss < best.best_loss):
                best = module
    if best is None:
        raise TrainError(NEVER_FINITE)
    return best_epoch_of(best)


def _best_strength(
    data: TrainingData, settings: TrainConfig, seed: int, progress: Progress, logs: Logs | None
) -> HeadTraining | None:
    """Fit a head under priors (pal.train.priors), of several starts the best: with the default
    strength, or with a weaker one where validation pairs gain clearly by it."""
    best: HeadTraining | None = None
    losses_B = torch.zeros(0)
    has_strength = settings.sigma is None and issubclass(kind_of(settings), ShrunkHead)
    for sigma in PATH if has_strength else (settings.sigma,):
        own = settings.model_copy(update={"sigma": sigma})
        seeds = _seeds(settings, seed)
        tried = [_trained(data, own, own_seed, progress, logs) for own_seed in seeds]
        module, batches = min(tried, key=lambda one: one[0].best_loss)
        if not module.best_state:
            continue
        found_B = _losses_at_best(module, batches)
        if best is not None and not gains_clearly(losses_B, found_B, batches.val_pairs.judged):
            break
        best, losses_B, progress = module, found_B, lambda epochs: None
    return best


def _seeds(settings: TrainConfig, seed: int) -> range:
    return range(seed, seed + SEEDS_APART * settings.starts, SEEDS_APART)


def _trained(
    data: TrainingData, settings: TrainConfig, seed: int, progress: Progress, logs: Logs | None
) -> tuple[HeadTraining, PairsDataModule]:
    module, batches = begin(data, settings, seed)
    device = str(data.features.device)
    if logs is None:
        fit(module, batches, device, progress)
    else:
        with logs.of(settings, seed) as logger:
            fit(module, batches, device, progress, logger)
    return module, batches


def begin(
    data: TrainingData, settings: TrainConfig, seed: int
) -> tuple[HeadTraining, PairsDataModule]:
    """Return a head with the weights of a seed, to be trained step by step, and its batches; under
    priors if the settings say so."""
    head, train, val, priors = data.new_head(settings, seed), data.train, data.val, None
    if has_priors(settings):
        scale = data.item_scale.to(data.features.device)
        train, val = (
            with_things(pairs, data.features, scale, data.is_vote, head.uses_prompt)
            for pairs in (train, val)
        )
        prepare(head, train, data.features, data.is_vote)
        priors = Priors(head, train, data.is_vote)
    batches = PairsDataModule(data.features, train, val, settings.batch_size, seed)
    return HeadTraining(head, settings, priors), batches


def best_epoch_of(module: HeadTraining) -> Fitted:
    """Return the head of a training with the weights of its best epoch; under priors its rewards
    are divided for what is not known of things, and the log tells the strength."""
    head, log = module.head, module.epoch_rows
    head.load_state_dict(module.best_state)
    if module.priors is not None:
        head.moderate(module.priors.size)
        if module.config.sigma is not None:
            log = [{**row, "sigma": module.config.sigma} for row in log]
    return Fitted(head, log, module.best_epoch)


@torch.no_grad()
def _losses_at_best(module: HeadTraining, batches: PairsDataModule) -> Tensor:
    """Return the losses of the validation pairs at the best epoch, (n,)."""
    module.head.load_state_dict(module.best_state)
    module.head.eval()
    return torch.cat([module.judge(batch)[0] for batch in batches.val_dataloader()])


def fit(
    module: HeadTraining,
    data: PairsDataModule,
    device: str,
    progress: Progress,
    logger: Logger | None = None,
) -> None:
    """Run Lightning's loop, for ``module.epochs`` epochs, without its files and messages; what the
    module logs goes to ``logger``."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    left = module.epochs

    class Report(lightning.Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            nonlocal left
            left -= 1
            progress(1)

    kind = "gpu" if device.startswith("cuda") else "cpu"
    with warnings.catch_warnings(), deterministic():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = lightning.Trainer(
            accelerator=kind,
            devices=[torch.device(device).index or 0] if kind == "gpu" else 1,
            max_epochs=module.epochs,
            callbacks=[Report()],
            logger=logger or False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(module, datamodule=data)
        except SIGTERMException:  # by which the process would end as if all were well
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # another has been called
                signal.raise_signal(signal.SIGTERM)
            raise
    if left:  # patience ended it
        progress(left)
