"""The Lightning wrapper round any head: loss, optimiser, and the best epoch kept."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as lightning
import torch
from torch import Tensor

from pal.config import TrainConfig
from pal.train.heads.head import Head
from pal.train.loss import LOSSES, weights_of_users
from pal.train.pairs import Step
from pal.train.priors import Priors
from pal.train.row_adam import RowAdam
from pal.train.steps import StepOfHead, has_waited, optimiser_groups, rounded_in_steps


class HeadTraining(lightning.LightningModule):
    """Trains one head. ``epoch_rows`` collects a row per epoch, ``best_state`` the weights of the
    best one.

    Any Trainer runs it, with a ``PairsDataModule``: it logs ``train/loss``, ``val/loss`` and
    ``val/acc`` of each epoch, over all processes.
    """

    def __init__(self, head: Head, config: TrainConfig, priors: Priors | None = None) -> None:
        """``priors`` None: the loss alone is made small."""
        super().__init__()
        self.head, self.priors = head, priors
        self.config = config
        self.epochs = config.epochs
        self.rounded = rounded_in_steps(head, config)
        self.loss = LOSSES[config.loss]
        self.epoch_rows: list[dict[str, float]] = []
        self.best_state: dict[str, Tensor] = {}
        self.best_epoch = -1
        self.best_loss = float("inf")
        self.waited = 0
        """validations since the best one"""
        self.user_weights: Tensor | None = None
        self.rows: RowAdam | None = None
        self._present = torch.zeros(0, dtype=torch.bool)
        self._sums = {"train": torch.zeros(2), "val": torch.zeros(3)}
        self._validated: dict[str, float] = {}

    def on_fit_start(self) -> None:
        if self.config.loss_over == "users":
            owner: Tensor = self.trainer.datamodule.train_pairs.user
            weights_N = weights_of_users(owner, len(self.head.users.logits))
            self.user_weights = weights_N.to(self.device)

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return 1 if self._trainer is None else self._trainer.world_size

    def _over_ranks(self, value: Tensor) -> Tensor:
        """Return the sum of a value over the processes."""
        if self.ranks == 1:
            return value
        summed: Tensor = self.trainer.strategy.reduce(value.clone(), reduce_op="sum")
        return summed

    def _tell(self, values: dict[str, float]) -> None:
        """Log values for callbacks and loggers, if there is a Trainer that has some."""
        if self._trainer is not None:
            self.log_dict(values, sync_dist=self.ranks > 1)

    def total(self, batch: Step, *values_B: Tensor) -> tuple[Tensor, ...]:
        """Return the sum of each of some values over the pairs, and last the number of pairs; each
        pair weighted by its user's weight, where users have weights."""
        if self.user_weights is None:
            return *(value.sum() for value in values_B), batch.label.new_tensor(len(batch.label))
        weight_B = self.user_weights[batch.user]
        return *((weight_B * value).sum() for value in values_B), weight_B.sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = optimiser_groups(self.head, self.config)
        if self.config.absent_users == "stay":
            table = self.head.users.logits
            self.rows = RowAdam(table)
            self._present = torch.zeros(len(table), dtype=torch.bool, device=table.device)
            for group in groups:
                group["params"] = [p for p in group["params"] if p is not table]
            # a rate of zero: AdamW wants some parameter, and there may be no other
            groups.append({"params": [table], "lr": 0.0, "weight_decay": 0.0, "name": "rows"})
        if self.priors is not None:  # which hold the maps instead of a decay
            for group in groups:
                group["weight_decay"] = 0.0
            residuals = list(self.priors.parameters())
            groups.append({"params": residuals, "lr": self.config.user_lr, "weight_decay": 0.0})
        return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        table = self.head.users.logits
        if self.rows is not None and table.grad is not None:
            present = self._over_ranks(self._present.float()) > 0
            self.rows.step(table.grad, present, self.config.user_lr)
            self._present = torch.zeros_like(self._present)

    def on_train_epoch_start(self) -> None:
        self._sums["train"] = torch.zeros(2, device=self.device)

    def training_step(self, batch: Step, _: int) -> Tensor:
        if self.rows is not None:  # a step may be of several batches
            self._present[batch.user] = True
        step = StepOfHead(self.head, self.config.bound)
        margin, *excess = step.in_training(batch, self.rounded)
        if self.priors is not None:
            margin = margin + self.priors.residual(batch.judged)
        loss = self.loss(margin, batch.label)
        total, count = self.total(batch, loss)
        self._sums["train"] += torch.stack([total.detach(), count])
        if self.user_weights is None:
            mean = loss.mean()
        else:
            mean = total / self._over_ranks(count) * self.ranks
        if self.priors is not None:
            mean = mean + self.priors.penalty(self.head)
        for beyond_B in excess:  # a sum over the batch, where gradients of processes are averaged
            mean = mean + self.ranks * beyond_B.sum()
        return mean

    def on_train_batch_end(self, *_: Any) -> None:
        self.head.constrain()

    def on_validation_epoch_start(self) -> None:
        self._sums["val"] = torch.zeros(3, device=self.device)

    def judge(self, batch: Step) -> tuple[Tensor, Tensor]:
        """Return the loss of each pair of validation, whose things are not known, and whether it
        is right, (B,) each."""
        margin = self.head.margins(batch.things, batch.user)
        if self.priors is not None:
            margin = margin / self.priors.size
        right = torch.where(
            margin == 0, 0.5, torch.where(margin > 0, batch.label, 1.0 - batch.label)
        )
        return self.loss(margin, batch.label), right

    def validation_step(self, batch: Step, _: int) -> None:
        self._sums["val"] += torch.stack(self.total(batch, *self.judge(batch)))

    def on_validation_epoch_end(self) -> None:
        if self._trainer is not None and self._trainer.sanity_checking:
            return  # of a few batches, before any training
        loss, right, count = self._over_ranks(self._sums["val"]).tolist()
        self._validated = {"val/loss": loss / count, "val/acc": right / count}
        self._tell(self._validated)

    def on_train_epoch_end(self) -> None:
        loss, count = self._over_ranks(self._sums["train"]).tolist()
        train = {"train/loss": loss / count}
        self._tell(train)
        validated, self._validated = self._validated, {}
        self.epoch_rows.append({"epoch": self.current_epoch + 1, **train, **validated})
        val_loss = validated.get("val/loss", float("inf"))
        if val_loss < self.best_loss:
            self.best_loss, self.best_epoch = val_loss, self.current_epoch + 1
            self.best_state = {
                name: value.detach().clone() for name, value in self.head.state_dict().items()
            }
            self.waited = 0
        elif validated:
            self.waited += 1
        if has_waited(self.config, self.waited):
            self.trainer.should_stop = True
