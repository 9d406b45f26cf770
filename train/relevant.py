"""Which settings of ``train:`` decide what a head becomes.

Two heads whose relevant settings are equal are the same head: a sweep trains it once, and a run may
take the place of the other. Where a head does not read a setting, its value is left out.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from pal.config import TrainConfig
from pal.records import JsonObject
from pal.train.build import build_head, defaults_of, has_priors, kind_of, resolve
from pal.train.heads.auto import Auto
from pal.train.heads.linear import LinearHead
from pal.train.heads.meta import MetaLearned
from pal.train.heads.users import UserWeights
from pal.train.heads.variational import Variational

DATA = {"head", "view", "users", "pairs_per_user"}
STEPS = {"loss", "epochs", "batch_size"}
RATES = {
    "maps": {"lr", "weight_decay"},
    "prototypes": {"prototype_lr"},
    "users": {"user_lr", "absent_users"},
    "scale": {"scale_lr"},
}
"""what the optimiser reads, by the role of a parameter"""
SOLVERS: dict[type, set[str]] = {
    LinearHead: {"ridge"},
    Variational: {"lr", "weight_decay", *STEPS},
    Auto: set(),
    MetaLearned: {"lr", "weight_decay", "epochs", "batch_size"},
}
"""what is read to solve a head of this or a derived class, the nearest counts; of a head that is
not named here, all that any head is trained by counts"""


@lru_cache(maxsize=4096)
def relevant_names(settings: TrainConfig) -> frozenset[str]:
    """Return the names of the settings that decide what training makes of a head."""
    settings = resolve(settings)
    kind = kind_of(settings)
    names = DATA | set(defaults_of(kind))
    if kind.can_be_rounded:
        names.add("precision")
    if not kind.is_solved:
        of_loss = {"priors", "starts", "bound", "loss_over"}
        if settings.patience is not None:  # null changes nothing, no head's name either
            of_loss.add("patience")
        # under priors residuals of things learn at the rate of users, and maps do not decay
        rates = _rates_of(settings)
        if has_priors(settings):
            rates = rates - {"weight_decay"} | {"user_lr"}
        return frozenset(names | STEPS | of_loss | rates)
    own = next((SOLVERS[base] for base in kind.__mro__ if base in SOLVERS), None)
    return frozenset(
        names | own if own is not None else names.union({"ridge"}, STEPS, *RATES.values())
    )


def relevant_settings(settings: TrainConfig) -> JsonObject:
    """Return the settings that decide what training makes of a head, its own defaults filled in."""
    include = set(relevant_names(settings))
    found: JsonObject = resolve(settings).model_dump(mode="json", include=include)
    return found


def _rates_of(settings: TrainConfig) -> set[str]:
    """Return the settings of the optimiser that move some parameter of a head."""
    with torch.device("meta"):  # shapes alone: no memory, and no number is drawn
        head = build_head(settings, settings.latent_dim or 2, 1)
    learning = {role for role, group in head.roles().items() if any(p.numel() for p in group)}
    if isinstance(head.users, UserWeights) and head.users.logits.shape[1] == 1:
        learning.discard("users")  # the softmax of one number is 1, with a gradient of 0
    return set().union(*(RATES[role] for role in learning))
