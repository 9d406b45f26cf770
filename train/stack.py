"""Many heads of one shape as one module: one forward pass for all of them.

Parameters of M heads are stacked along a new first dimension, and ``torch.func.vmap`` turns each
operation of the head into one batched operation. Heads that read the same batches are a lane: those
of one seed, or of one fold and seed; what is not learned, the statistics of the features, is one
for each lane. Values may differ from head to head (learning rates, weight decay, and for PAL-A the
number of prototypes); shapes may not. Shapes: M heads = L lanes x R heads of one lane, B rows, D
features, K prototypes, N users.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from pal.train.heads.head import Head
from pal.train.heads.pal_a import PalA
from pal.train.module import BoundPenalty
from pal.train.pairs import Batch


class Stack(nn.Module):
    """The parameters of M heads, and their margins on a batch."""

    def __init__(self, heads: Sequence[Head], lanes: int) -> None:
        """``heads`` are ordered by lane, equally many of each."""
        super().__init__()
        self.lanes = lanes
        # in a list, so that its parameters are not the stack's
        self.template = [copy.deepcopy(heads[0])]
        self.names = [name for name, _ in heads[0].named_parameters()]
        named = [dict(head.named_parameters()) for head in heads]
        self.stacked = nn.ParameterList(
            torch.stack([own[name].detach() for own in named]) for name in self.names
        )
        fixed = [dict(head.named_buffers()) for head in heads[:: len(heads) // lanes]]
        self.fixed = {name: torch.stack([own[name] for own in fixed]) for name in fixed[0]}
        """(L, ...) what is not learned, by name"""
        self.is_alike = all(bool((value == value[:1]).all()) for value in self.fixed.values())
        """whether all lanes have the same of it"""

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
        """Return (M, B) margins; one batch per lane, or one for all."""
        return self._of_each(self.template[0], "", batches, ("first", "second", "user"))

    def bound_penalties(self, batches: Sequence[Batch], beta: float) -> Tensor:
        """Return (M, B), the ``BoundPenalty`` of each head and row."""
        return self._of_each(BoundPenalty(self.template[0], beta), "head.", batches, ("user",))

    def _of_each(
        self, module: nn.Module, prefix: str, batches: Sequence[Batch], fields: tuple[str, ...]
    ) -> Tensor:
        """Return what a module that holds the template gives for each head, (M, ...).

        The module reads the prompt and some ``fields`` of a batch; in it, the template's parameters
        have ``prefix`` before their names.
        """
        module.train(self.training)
        has_prompt = batches[0].prompt is not None
        names = ("prompt", *fields) if has_prompt else fields
        inputs = [[getattr(batch, name) for batch in batches] for name in names]
        parameters = {f"{prefix}{name}": p for name, p in self.parameters_by_name().items()}
        fixed = {f"{prefix}{name}": value for name, value in self.fixed.items()}

        def one(own: dict[str, Tensor], fixed: dict[str, Tensor], *inputs: Tensor) -> Tensor:
            arguments = inputs if has_prompt else (None, *inputs)
            value: Tensor = functional_call(module, {**own, **fixed}, arguments)
            return value

        nothing = [None] * len(inputs)
        over_heads = vmap(one, in_dims=(0, None, *nothing), randomness="different")
        alike = {name: value[0] for name, value in fixed.items()}
        is_shared = len(batches) == 1
        if is_shared and self.is_alike:
            return over_heads(parameters, alike, *(values[0] for values in inputs))
        of_lanes = {
            name: value.view(self.lanes, len(self) // self.lanes, *value.shape[1:])
            for name, value in parameters.items()
        }
        over_lanes = vmap(
            over_heads,
            in_dims=(
                0,
                None if self.is_alike else 0,
                *(nothing if is_shared else [0] * len(inputs)),
            ),
            randomness="different",
        )
        read = [values[0] if is_shared else torch.stack(values) for values in inputs]
        value_LR: Tensor = over_lanes(of_lanes, alike if self.is_alike else fixed, *read)
        return value_LR.flatten(0, 1)


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


def with_users(head: Head, users: int) -> Head:
    """Give a head a table of so many users: further ones are in no batch and never learn, surplus
    ones are cut."""
    logits_NR = head.users.logits.detach()
    if len(logits_NR) == users:
        return head
    made = copy.deepcopy(head)
    more = logits_NR.new_zeros(max(0, users - len(logits_NR)), logits_NR.shape[1])
    made.users.logits = nn.Parameter(torch.cat([logits_NR, more])[:users].clone())
    return made
