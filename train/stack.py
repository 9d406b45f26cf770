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

from pal.train.heads.arithmetic import rounded
from pal.train.heads.head import Head
from pal.train.heads.pal_a import PalA
from pal.train.pairs import Step
from pal.train.steps import StepOfHead


class Stack(nn.Module):
    """The parameters of M heads, and their margins on a batch."""

    def __init__(self, heads: Sequence[Head], lanes: int, rounds: Sequence[str] = ()) -> None:
        """``heads`` are ordered by lane, equally many of each; ``rounds``: what training reads in
        bfloat16 (``rounded_in_steps``)."""
        super().__init__()
        self.lanes = lanes
        self.rounded = list(rounds)
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

    def margins(
        self, batches: Sequence[Step], bound: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return (M, B) margins and, where there is a bound, how far ideal points lie beyond it, of
        each head and row; one batch per lane, or one for all."""
        module = StepOfHead(self.template[0], bound).train(self.training)
        prefix = "head."
        parameters = {f"{prefix}{name}": p for name, p in self.parameters_by_name().items()}
        if self.training:
            parameters.update(rounded(parameters, self.rounded))
        fixed = {f"{prefix}{name}": value for name, value in self.fixed.items()}
        inputs = [[batch.user, *batch.things.tensors()] for batch in batches]
        things = batches[0].things

        def one(
            own: dict[str, Tensor], fixed: dict[str, Tensor], user: Tensor, *tensors: Tensor
        ) -> tuple[Tensor, ...]:
            arguments = (things.of_tensors(tensors), user)
            found: tuple[Tensor, ...] = functional_call(module, {**own, **fixed}, arguments)
            return found

        nothing = [None] * len(inputs[0])
        over_heads = vmap(one, in_dims=(0, None, *nothing), randomness="different")
        alike = {name: value[0] for name, value in fixed.items()}
        is_shared = len(batches) == 1
        if is_shared and self.is_alike:
            return _both(over_heads(parameters, alike, *inputs[0]))
        of_lanes = {
            name: value.view(self.lanes, len(self) // self.lanes, *value.shape[1:])
            for name, value in parameters.items()
        }
        over_lanes = vmap(
            over_heads,
            in_dims=(
                0,
                None if self.is_alike else 0,
                *(nothing if is_shared else [0] * len(inputs[0])),
            ),
            randomness="different",
        )
        read = inputs[0] if is_shared else [torch.stack(own) for own in zip(*inputs, strict=True)]
        found_LR = over_lanes(of_lanes, alike if self.is_alike else fixed, *read)
        return _both(tuple(value_LR.flatten(0, 1) for value_LR in found_LR))


def _both(found: tuple[Tensor, ...]) -> tuple[Tensor, Tensor | None]:
    margins, *excess = found
    return margins, excess[0] if excess else None


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
