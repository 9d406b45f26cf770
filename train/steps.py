"""What training in steps is for a head, alone or in a stack: its learning rates, what a step reads,
when it has waited long enough; without Lightning, whose import takes seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pal.config import TrainConfig
from pal.train.heads.arithmetic import matrices, rounded
from pal.train.heads.head import Head
from pal.train.heads.ideal_point import IdealPointHead
from pal.train.heads.things import Things
from pal.train.pairs import Step


def learning_rates(config: TrainConfig) -> dict[str, float]:
    """Return the learning rate of each role of a parameter."""
    return {
        "maps": config.lr,
        "prototypes": config.prototype_lr,
        "users": config.user_lr,
        "scale": config.scale_lr,
    }


def has_waited(config: TrainConfig, waited: int) -> bool:
    """Say whether training ends after so many validations in a row without a better one."""
    return config.patience is not None and waited >= config.patience


def optimiser_groups(head: Head, config: TrainConfig) -> list[dict[str, Any]]:
    """Return AdamW groups, one per role; a parameter in none or in two is our mistake."""
    rates = learning_rates(config)
    roles = head.roles()
    grouped = [parameter for parameters in roles.values() for parameter in parameters]
    assert len(grouped) == len({id(p) for p in grouped}), "a parameter has two roles"
    assert {id(p) for p in grouped} == {id(p) for p in head.parameters()}, "a parameter has no role"
    return [
        {
            "params": parameters,
            "lr": rates[role],
            "weight_decay": config.weight_decay if role == "maps" else 0.0,
            "name": role,
        }
        for role, parameters in roles.items()
        if parameters
    ]


class StepOfHead(nn.Module):
    """What a step needs of a head: margins, (B,), and where there is a bound how far each row's
    ideal point lies beyond it before any normalisation, max(0, |a_b| - beta), (B,) (method.md
    1.7)."""

    def __init__(self, head: Head, bound: float | None) -> None:
        super().__init__()
        self.head, self.bound = head, bound

    def forward(self, things: Things, user_B: Tensor) -> tuple[Tensor, ...]:
        if self.bound is None:
            return (self.head.margins(things, user_B),)
        assert isinstance(self.head, IdealPointHead), "resolve refuses a bound of other heads"
        margin_B, ideal_BH = self.head.margins_and_ideal(things, user_B)
        return margin_B, (torch.linalg.vector_norm(ideal_BH, dim=1) - self.bound).clamp(min=0.0)

    def in_training(self, batch: Step, rounds: Sequence[str]) -> tuple[Tensor, ...]:
        """Return the same for a batch, some weights read in bfloat16 (``rounded_in_steps``)."""
        read = rounded(dict(self.named_parameters()), rounds)
        found: tuple[Tensor, ...] = functional_call(self, read, (batch.things, batch.user))
        return found


def rounded_in_steps(head: Head, config: TrainConfig) -> list[str]:
    """Return the names of the weights that training steps read in bfloat16, as ``StepOfHead`` has
    them."""
    assert config.precision != "auto", "resolve asks the machine"
    return matrices(StepOfHead(head, None)) if config.precision == "bfloat16" else []


@contextmanager
def deterministic() -> Iterator[None]:
    """Let torch take only ways that give the same every time, for the length of the block.

    Memory is not filled before something is written into it, which torch does then by itself to
    show errors: 5 to 13 % of the time of a step. Set by the mode of debugging, as
    ``use_deterministic_algorithms`` imports torch's compiler for the same.
    """
    memory: Any = torch.utils.deterministic  # torch declares no type of its setting
    before, was_filled = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = was_filled
