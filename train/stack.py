"""Many heads of one shape trained together: one forward and backward pass for all of them.

Parameters of M heads are stacked along a new first dimension, and ``torch.func.vmap`` turns each
operation of the head into one batched operation. Values may differ from head to head (seed,
learning rates, weight decay, and for PAL-A the number of prototypes); shapes may not. Shapes: M
heads = S seeds x R heads of one seed, B rows, D features, K prototypes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import lightning.pytorch as lightning
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pal.config import TrainConfig
from pal.train.heads.head import Head
from pal.train.heads.pal_a import PalA
from pal.train.loss import LOSSES, weights_of_users
from pal.train.module import BoundPenalty, learning_rates
from pal.train.pairs import Batch
from pal.train.row_adam import BETAS, EPSILON, RowAdam

USER_TABLE = "users.logits"
"""name of the parameter that holds what is known of each user"""


class StackedAdamW:
    """AdamW whose learning rate and weight decay differ from head to head (Loshchilov & Hutter
    2019, Alg. 2).

    The arithmetic is torch.optim.AdamW's; only the rates are tensors that broadcast over the stack.
    """

    def __init__(
        self, parameters: dict[str, Tensor], rates: dict[str, Tensor], decays: dict[str, Tensor]
    ) -> None:
        """``parameters``: (M, ...) each; ``rates``, ``decays``: (M,) for each parameter by name."""
        self.parameters = parameters
        self.rates = {n: _over(rates[n], p) for n, p in parameters.items()}
        self.shrink = {n: 1.0 - self.rates[n] * _over(decays[n], p) for n, p in parameters.items()}
        self.first = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self.second = {n: torch.zeros_like(p) for n, p in parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: dict[str, Tensor]) -> None:
        """Update all parameters in place."""
        self.steps += 1
        correct_1 = 1.0 - BETAS[0] ** self.steps
        correct_2 = (1.0 - BETAS[1] ** self.steps) ** 0.5
        for name, value in self.parameters.items():
            gradient = gradients[name]
            value.mul_(self.shrink[name])
            self.first[name].lerp_(gradient, 1.0 - BETAS[0])
            self.second[name].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1.0 - BETAS[1])
            root = self.second[name].sqrt().div_(correct_2).add_(EPSILON)
            value.sub_(self.first[name].div(root).mul_(self.rates[name] / correct_1))

    def keep(self, rows: Tensor) -> None:
        """Go on with some heads of the stack only; the parameters were cut by the caller."""
        for state in (self.rates, self.shrink, self.first, self.second):
            for name in state:
                state[name] = state[name][rows]


def _over(values_M: Tensor, parameter: Tensor) -> Tensor:
    return values_M.to(parameter).view(-1, *[1] * (parameter.dim() - 1))


class Stack(nn.Module):
    """The parameters of M heads, and their margins on a batch."""

    def __init__(self, heads: Sequence[Head], seeds: int) -> None:
        """``heads`` are ordered by seed, equally many of each of the ``seeds`` seeds."""
        super().__init__()
        self.seeds = seeds
        # in a list, so that its parameters are not the stack's
        self.template = [copy.deepcopy(heads[0])]
        self.names = [name for name, _ in heads[0].named_parameters()]
        named = [dict(head.named_parameters()) for head in heads]
        self.stacked = nn.ParameterList(
            torch.stack([own[name].detach() for own in named]) for name in self.names
        )

    def __len__(self) -> int:
        return len(self.stacked[0])

    def parameters_by_name(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.stacked, strict=True))

    def state_of(self, head: int) -> dict[str, Tensor]:
        """Return a copy of one head's parameters by name."""
        return {
            name: value[head].detach().clone() for name, value in self.parameters_by_name().items()
        }

    def margins(self, batches: Sequence[Batch]) -> Tensor:
        """Return (M, B) margins; one batch per seed, or one for all."""
        return self._of_each(self.template[0], "", batches, ("first", "second", "user"))

    def bound_penalties(self, batches: Sequence[Batch], beta: float) -> Tensor:
        """Return (M,), each head's ``BoundPenalty`` on its batch."""
        return self._of_each(BoundPenalty(self.template[0], beta), "head.", batches, ("user",))

    def _of_each(
        self, module: nn.Module, prefix: str, batches: Sequence[Batch], fields: tuple[str, ...]
    ) -> Tensor:
        """Return what a module that holds the template gives for each head, (M, ...).

        The module reads the prompt and some ``fields`` of a batch; in it, the template's parameters
        have ``prefix`` before their names.
        """
        module.train(self.training)
        buffers = dict(module.named_buffers())
        groups = len(batches)
        parameters = {
            f"{prefix}{name}": value.view(groups, len(self) // groups, *value.shape[1:])
            for name, value in self.parameters_by_name().items()
        }
        has_prompt = batches[0].prompt is not None
        names = ("prompt", *fields) if has_prompt else fields
        inputs = [[getattr(batch, name) for batch in batches] for name in names]

        def one(own: dict[str, Tensor], *inputs: Tensor) -> Tensor:
            arguments = inputs if has_prompt else (None, *inputs)
            value: Tensor = functional_call(module, {**own, **buffers}, arguments)
            return value

        over_heads = vmap(one, in_dims=(0, *[None] * len(inputs)), randomness="different")
        if groups == 1:
            own = {name: value[0] for name, value in parameters.items()}
            return over_heads(own, *(values[0] for values in inputs))
        over_seeds = vmap(over_heads, in_dims=(0, *[0] * len(inputs)), randomness="different")
        value_SR: Tensor = over_seeds(parameters, *(torch.stack(values) for values in inputs))
        return value_SR.flatten(0, 1)


def widen(head: Head, k: int) -> Head:
    """Give a PAL-A head ``k`` prototypes: further ones get weight zero from every user, surplus
    ones are cut.

    A logit of -inf is a weight of exactly 0 with a gradient of exactly 0, so padding never learns.
    """
    if not isinstance(head, PalA) or head.k == k:  # a stack of other heads has one K
        return head
    made = copy.deepcopy(head)
    more = max(0, k - head.k)
    logits = nn.functional.pad(head.users.logits.detach(), (0, more), value=float("-inf"))
    prototypes = nn.functional.pad(head.prototypes_KD.detach(), (0, 0, 0, more))
    made.users.logits = nn.Parameter(logits[:, :k].clone())
    made.prototypes_KD = nn.Parameter(prototypes[:k].clone())
    made.k = k
    return made


class StackTraining(lightning.LightningModule):
    """Trains a stack and keeps each head's best epoch by validation loss, as ``HeadTraining`` does
    for one."""

    def __init__(
        self,
        heads: Sequence[Head],
        settings: Sequence[TrainConfig],
        seeds: int,
        halving: int | None = None,
    ) -> None:
        """``settings`` differ in learning rates, weight decay and K alone; ``halving`` h keeps the
        better 1/h of the heads after 1/4 and 1/2 of the epochs, None keeps all."""
        super().__init__()
        self.automatic_optimization = False
        self.stack = Stack(heads, seeds)
        self.settings = list(settings)
        self.epochs = settings[0].epochs
        self.loss = LOSSES[settings[0].loss]
        self.bound = settings[0].bound
        roles = {id(p): role for role, group in heads[0].roles().items() for p in group}
        self.role_of = {name: roles[id(p)] for name, p in heads[0].named_parameters()}
        self.halving = halving
        self.alive = list(range(len(heads)))
        self.best_loss = [float("inf")] * len(heads)
        self.best_epoch = [0] * len(heads)
        self.best_state: list[dict[str, Tensor]] = [{} for _ in heads]
        self.user_weights: Tensor | None = None
        self.rows: RowAdam | None = None
        self._val_sum, self._val_count = torch.zeros(0), torch.zeros(())

    def on_fit_start(self) -> None:
        if self.settings[0].loss_over == "users":
            owner: Tensor = self.trainer.datamodule.train_pairs.user
            users = len(self.stack.template[0].users.logits)
            self.user_weights = weights_of_users(owner, users)

    def configure_optimizers(self) -> None:
        rates = [learning_rates(settings) for settings in self.settings]
        by_name = {
            n: torch.tensor([rate[role] for rate in rates], dtype=torch.float64)
            for n, role in self.role_of.items()
        }
        decays = {
            n: torch.tensor(
                [s.weight_decay if role == "maps" else 0.0 for s in self.settings],
                dtype=torch.float64,
            )
            for n, role in self.role_of.items()
        }
        parameters = self.stack.parameters_by_name()
        if self.settings[0].absent_users == "stay":
            table = parameters.pop(USER_TABLE)
            self.rows, self.row_rates = RowAdam(table), _over(by_name[USER_TABLE], table)
        self.adamw = StackedAdamW(parameters, by_name, decays)

    def training_step(self, batches: list[Batch], _: int) -> None:
        loss_M = self._losses(batches)
        if self.bound is not None:
            loss_M = loss_M + self.stack.bound_penalties(batches, self.bound)
        loss = loss_M.sum()  # over heads: no head sees another's gradient
        parameters = self.stack.parameters_by_name()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        by_name = dict(zip(parameters, gradients, strict=True))
        self.adamw.step(by_name)
        if self.rows is not None:
            self.rows.step(by_name[USER_TABLE], self._present(batches), self.row_rates)
        self._constrain(parameters)

    def _losses(self, batches: Sequence[Batch]) -> Tensor:
        """Return each head's mean loss on its batch, (M,)."""
        margin_MB = self.stack.margins(batches)
        loss_MB = self.loss(margin_MB, self._of_each([batch.label for batch in batches]))
        if self.user_weights is None:
            return loss_MB.mean(dim=1)
        weight_MB = self._of_each([self.user_weights[batch.user] for batch in batches])
        return (weight_MB * loss_MB).sum(dim=1) / weight_MB.sum(dim=1)

    def _present(self, batches: Sequence[Batch]) -> Tensor:
        """Return which users each head's batch has, (M, N)."""
        users = self.stack.parameters_by_name()[USER_TABLE].shape[1]
        present = [torch.zeros(users, dtype=torch.bool, device=self.device) for _ in batches]
        for one, batch in zip(present, batches, strict=True):
            one[batch.user] = True
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

    def on_validation_epoch_start(self) -> None:
        self._val_sum = torch.zeros(len(self.stack), device=self.device)
        self._val_count = torch.zeros((), device=self.device)

    def validation_step(self, batch: Batch, _: int) -> None:
        loss_MB = self.loss(self.stack.margins([batch]), batch.label)
        if self.user_weights is None:
            self._val_sum += loss_MB.sum(dim=1)
            self._val_count += len(batch.label)
        else:
            weight_B = self.user_weights[batch.user]
            self._val_sum += (weight_B * loss_MB).sum(dim=1)
            self._val_count += weight_B.sum()

    def on_train_epoch_end(self) -> None:
        for place, loss in enumerate((self._val_sum / self._val_count).tolist()):
            head = self.alive[place]
            if loss < self.best_loss[head]:
                self.best_loss[head], self.best_epoch[head] = loss, self.current_epoch + 1
                self.best_state[head] = self.stack.state_of(place)
        if self.halving and self.current_epoch + 1 in {
            max(1, self.epochs // 4),
            max(1, self.epochs // 2),
        }:
            self._drop()

    def _drop(self) -> None:
        """Keep the better heads of each seed, equally many, so that the stack stays rectangular."""
        assert self.halving is not None
        per_seed = len(self.stack) // self.stack.seeds
        keep = max(1, per_seed // self.halving)
        rows: list[int] = []
        for seed in range(self.stack.seeds):
            places = range(seed * per_seed, (seed + 1) * per_seed)
            rows += sorted(
                sorted(places, key=lambda place: self.best_loss[self.alive[place]])[:keep]
            )
        chosen = torch.tensor(rows, device=self.device)
        for number, parameter in enumerate(self.stack.stacked):
            self.stack.stacked[number] = nn.Parameter(parameter.detach()[chosen])
        parameters = self.stack.parameters_by_name()
        if self.rows is not None:
            self.rows.table = parameters.pop(USER_TABLE)
            self.rows.keep(chosen)
            self.row_rates = self.row_rates[chosen]
        self.adamw.parameters = parameters
        self.adamw.keep(chosen)
        self.alive = [self.alive[row] for row in rows]
