"""Training a stack of heads: the loss of all of them, and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pal.config import TrainConfig
from pal.train.heads.head import Head
from pal.train.lanes import LaneBatches, Lanes
from pal.train.loss import LOSSES, weights_of_users
from pal.train.pairs import Step
from pal.train.row_adam import RowAdam
from pal.train.stack import Stack
from pal.train.stacked_adamw import StackedAdamW, over
from pal.train.steps import deterministic, has_waited, learning_rates, rounded_in_steps

Progress = Callable[[int], None]
USER_TABLE = "users.logits"
"""name of the parameter that holds what is known of each user"""
SMALLEST_WEIGHT = 1e-30


class StackTraining:
    """Trains a stack and keeps each head's best epoch by validation loss, as ``HeadTraining`` does
    for one.

    A head learns from its lane's batches alone, and its loss counts the real rows of them alone; in
    a step for which its lane has no more batch it rests. The loop is its own: Lightning takes
    longer to import than small stacks to train.
    """

    def __init__(
        self,
        heads: Sequence[Head],
        settings: Sequence[TrainConfig],
        lanes: Lanes,
        halving: int | None = None,
        folds: int = 1,
    ) -> None:
        """``settings`` differ in learning rates, weight decay and K alone; lanes are ordered by
        fold. ``halving`` h keeps the better 1/h of the heads after 1/4 and 1/2 of the epochs, by
        the mean over folds; None keeps all."""
        self.stack = Stack(heads, len(lanes), rounded_in_steps(heads[0], settings[0]))
        self.lanes = lanes
        self.settings = list(settings)
        self.epochs = settings[0].epochs
        self.loss = LOSSES[settings[0].loss]
        self.bound = settings[0].bound
        self.halving, self.folds = halving, folds
        self.alive = list(range(len(heads)))
        self.best_loss = [float("inf")] * len(heads)
        self.best_epoch = [0] * len(heads)
        self.best_state: list[dict[str, Tensor]] = [{} for _ in heads]
        self.waited = [0] * len(heads)
        """epochs since each head's best one"""
        self.user_weights: list[Tensor] | None = None
        if settings[0].loss_over == "users":
            users = len(heads[0].users.logits)
            self.user_weights = [weights_of_users(one.train.user, users) for one in lanes.each]
        self.rows: RowAdam | None = None
        self._begin_optimiser(heads[0])

    def _begin_optimiser(self, head: Head) -> None:
        roles = {id(p): role for role, group in head.roles().items() for p in group}
        role_of = {name: roles[id(p)] for name, p in head.named_parameters()}
        rates = [learning_rates(settings) for settings in self.settings]
        by_name = {
            n: torch.tensor([rate[role] for rate in rates], dtype=torch.float64)
            for n, role in role_of.items()
        }
        decays = {
            n: torch.tensor(
                [s.weight_decay if role == "maps" else 0.0 for s in self.settings],
                dtype=torch.float64,
            )
            for n, role in role_of.items()
        }
        parameters = self.stack.parameters_by_name()
        if self.settings[0].absent_users == "stay":
            table = parameters.pop(USER_TABLE)
            self.rows, self.row_rates = RowAdam(table), over(by_name[USER_TABLE], table)
        self.adamw = StackedAdamW(parameters, by_name, decays)

    def fit(self, progress: Progress = lambda epochs: None) -> None:
        """Train for all epochs, or until no head gains any more; ``progress`` is told how many more
        epochs are over."""
        training, validation = self.lanes.training(), self.lanes.validation()
        with deterministic(), torch.enable_grad():
            for epoch in range(1, self.epochs + 1):
                for batches in training:
                    self.step(batches)
                is_over = self._keep_best(epoch, self._judge(validation))
                progress(1)
                if is_over:
                    if epoch < self.epochs:
                        progress(self.epochs - epoch)
                    return

    def step(self, batches: list[Step]) -> None:
        """Make one step of training of all heads."""
        self.stack.train()
        margin_MB, penalty_MB = self.stack.margins(batches, self.bound)
        total_M, count_M = self._losses(batches, margin_MB)
        loss_M = total_M / count_M.clamp(min=SMALLEST_WEIGHT)
        if penalty_MB is not None:
            real_MB = self._real(batches)
            loss_M = loss_M + (penalty_MB if real_MB is None else penalty_MB * real_MB).sum(dim=1)
        loss = loss_M.sum()  # over heads: no head sees another's gradient
        parameters = self.stack.parameters_by_name()
        # a table of users with no numbers is in no loss
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        by_name = dict(zip(parameters, gradients, strict=True))
        self.adamw.step(by_name, self._resting(batches))
        if self.rows is not None:
            self.rows.step(by_name[USER_TABLE], self._present(batches), self.row_rates)
        self._constrain(parameters)

    def _losses(self, batches: Sequence[Step], margin_MB: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of each head's loss over its rows, and what they count together, (M,)."""
        loss_MB = self.loss(margin_MB, self._of_each([batch.label for batch in batches]))
        weight_MB = self._real(batches)
        if self.user_weights is not None:
            shared = len(batches) == 1
            owners = [batch.user for batch in batches] * (self.stack.lanes if shared else 1)
            own_MB = self._of_each(
                [own[user] for own, user in zip(self.user_weights, owners, strict=True)]
            )
            weight_MB = own_MB if weight_MB is None else own_MB * weight_MB
        if weight_MB is None:
            return loss_MB.sum(dim=1), loss_MB.new_full((len(loss_MB),), loss_MB.shape[1])
        return (weight_MB * loss_MB).sum(dim=1), weight_MB.sum(dim=1)

    def _real(self, batches: Sequence[Step]) -> Tensor | None:
        """Return which rows of each head's batch are real, (M, B) of 0 and 1; None: all are."""
        if all(batch.real is None for batch in batches):
            return None
        ones = torch.ones_like(batches[0].label)
        return self._of_each([ones if b.real is None else b.real for b in batches])

    def _resting(self, batches: Sequence[Step]) -> Tensor | None:
        """Return which heads have no real row in this step, (M,) bool; None: all have one."""
        real_MB = self._real(batches)
        if real_MB is None or bool(real_MB[:, 0].all()):  # fillers stand last
            return None
        return real_MB[:, 0] == 0.0

    def _present(self, batches: Sequence[Step]) -> Tensor:
        """Return which users each head's batch has, (M, N)."""
        users = self.stack.parameters_by_name()[USER_TABLE].shape[1]
        on = batches[0].user.device
        present = [torch.zeros(users, dtype=torch.bool, device=on) for _ in batches]
        for one, batch in zip(present, batches, strict=True):
            one[batch.user if batch.real is None else batch.user[batch.real > 0.0]] = True
        return self._of_each(present)

    def _of_each(self, values: Sequence[Tensor]) -> Tensor:
        """Return the value of the own batch for each head, (M, ...)."""
        return torch.stack(list(values)).repeat_interleave(len(self.stack) // len(values), dim=0)

    @torch.no_grad()
    def _constrain(self, parameters: dict[str, Tensor]) -> None:
        """Apply each head's own ``constrain``, which is elementwise, to the whole stack."""
        template = self.stack.template[0]
        for name, limit in template.upper_limits().items():
            parameters[name].clamp_(max=limit)

    @torch.inference_mode()
    def _judge(self, validation: LaneBatches) -> list[float]:
        """Return the loss of each head on its validation pairs, (M,)."""
        self.stack.eval()
        # of the type in which ``HeadTraining`` sums, or equal epochs would not be equal in both
        sum_M2 = torch.zeros(len(self.stack), 2, device=self.lanes.features.device)
        for batches in validation:
            found = self._losses(batches, self.stack.margins(batches)[0])
            sum_M2 += torch.stack(found, dim=1)
        losses: list[float] = (sum_M2[:, 0] / sum_M2[:, 1]).tolist()
        return losses

    def _keep_best(self, epoch: int, losses: Sequence[float]) -> bool:
        """Keep the heads for which this epoch is the best yet, and drop those that halving drops
        after it; return whether no head trains on."""
        for place, loss in enumerate(losses):
            head = self.alive[place]
            if has_waited(self.settings[head], self.waited[head]):
                continue  # alone it would not train on
            self.waited[head] += 1
            if loss < self.best_loss[head]:
                self.best_loss[head], self.best_epoch[head] = loss, epoch
                self.best_state[head] = self.stack.state_of(place)
                self.waited[head] = 0
        is_over = all(has_waited(self.settings[head], self.waited[head]) for head in self.alive)
        for due in sorted({max(1, self.epochs // 4), max(1, self.epochs // 2)}):
            if self.halving and (due == epoch or (is_over and due > epoch)):
                self._drop(self.halving)
        return is_over

    def _drop(self, halving: int) -> None:
        """Keep the better heads of each seed in all its folds, equally many, so that the stack
        stays rectangular."""
        loss_FSR = torch.tensor([self.best_loss[head] for head in self.alive]).view(
            self.folds, self.stack.lanes // self.folds, -1
        )
        heads = loss_FSR.shape[2]
        best_SR = loss_FSR.mean(dim=0).argsort(dim=1, stable=True)
        kept_SR = best_SR[:, : max(1, heads // halving)].sort(dim=1).values
        first_LR = torch.arange(self.stack.lanes).unsqueeze(1) * heads
        rows = (first_LR + kept_SR.repeat(self.folds, 1)).flatten()
        chosen = rows.to(self.stack.stacked[0].device)
        for number, parameter in enumerate(self.stack.stacked):
            self.stack.stacked[number] = nn.Parameter(parameter.detach()[chosen])
        parameters = self.stack.parameters_by_name()
        if self.rows is not None:
            self.rows.table = parameters.pop(USER_TABLE)
            self.rows.keep(chosen)
            self.row_rates = self.row_rates[chosen]
        self.adamw.parameters = parameters
        self.adamw.keep(chosen)
        self.alive = [self.alive[row] for row in rows.tolist()]
