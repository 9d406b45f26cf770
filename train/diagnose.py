"""Warnings before and after training: labels that teach nothing, a loss that did not fall."""

from __future__ import annotations

import math
import warnings

import torch

from pal.errors import PalWarning
from pal.train.pairs import Pairs

UNMOVED = 2e-3
"""nats below ln 2 that a validation loss must reach to have learned anything"""


def warn_about_labels(pairs: Pairs, users: list[str]) -> None:
    """Warn about one-sided labels, and about users with a single pair or nothing but ties."""
    label = pairs.label
    if bool((label == 0.5).all()):
        say(
            "all training labels are ties, so the loss will stay at ln 2 = 0.6931; check how "
            "labels were read"
        )
    elif bool((label > 0.5).all()) or bool((label < 0.5).all()):
        side = "first" if bool((label > 0.5).all()) else "second"
        say(
            f"every training label prefers the {side} item: that is right for chosen/rejected "
            "data, but if sides were meant to be random, the label was lost, and the loss will "
            "sit at ln 2 = 0.6931 because heads cannot see the side"
        )
    count = torch.bincount(pairs.user, minlength=len(users))
    decided = torch.bincount(pairs.user, (label != 0.5).double(), minlength=len(users))
    for which, what in (
        (count == 1, "have a single training pair, which hardly determines their weights"),
        (
            (decided == 0) & (count > 0),
            "have nothing but ties in training, which say nothing of their weights",
        ),
    ):
        named = [users[number] for number in which.nonzero().squeeze(1).tolist()]
        if named and len(named) < len(users):
            say(
                f"{len(named)} of {len(users)} users, e.g. {named[0]!r}, {what}; drop them or "
                "pool their answers"
            )


def warn_about_loss(loss: float) -> None:
    """Warn if the best validation loss is that of a coin."""
    if math.isfinite(loss) and loss > math.log(2.0) - UNMOVED:
        say(
            f"the best validation loss is {loss:.4f}, that of a coin (ln 2 = 0.6931): the users "
            "may disagree (raise --k), the labels may be random or lost, or the learning rate too "
            "low"
        )


def say(text: str) -> None:
    warnings.warn(text, PalWarning, stacklevel=3)
