"""Training under priors: the maximum of a posterior, with a residual for each thing that is judged.

    loss = mean CE(m + E_1 - E_2, y) + (1/n) [ sum_t E_t^2 / 2 - ln prior(head) ]

n being the number of training pairs: one strength of the priors is right whatever n is. A thing is
what is judged: an item (under its prompt, where the head reads that), so E_1 and E_2 are those of
the two items; where the same two answers are given to all prompts, the prompt, whose E_t counts for
the answer that agrees and against the other. E_t is the thing's random effect, what everybody likes
of it beyond its features. Without it the maps memorise it: things are the sample, not answers. Of
other things it is dropped, and margins are divided by

    size = sqrt(1 + pi var / 8),     var = 1 for one thing, 2 for two

the probit approximation of the average over what was dropped. Shapes: n pairs, T things, B rows, D
features.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from pal.cache.mapped import Features
from pal.train.heads.head import Head
from pal.train.heads.shrunk import First, ShrunkHead
from pal.train.heads.standardise import Standardiser
from pal.train.pairs import Judged, Pairs
from pal.train.solve.choose import gained
from pal.train.two_answers import Apart

PATH = (1.0, 4.0, 16.0)
"""values of sigma from strong to weak: the default, which needs no evidence, and others"""
ERRORS = 2.0
"""standard errors over things that a weaker prior must gain"""
ROWS_TO_FIT = 4096
"""pairs that the sizes of features are taken from, at most"""


class Priors(nn.Module):
    """What training under priors adds to a head: residuals of things, and a penalty."""

    def __init__(self, head: Head, pairs: Pairs, is_vote: bool) -> None:
        """``pairs``: the training pairs with their things (``with_things``)."""
        super().__init__()
        assert pairs.judged is not None
        self.pairs = len(pairs)
        things = int(pairs.judged.thing.max()) + 1
        self.residual_T = nn.Parameter(torch.zeros(things, device=pairs.label.device))
        self.size = math.sqrt(1.0 + math.pi * (1.0 if is_vote else 2.0) / 8.0)
        self.first: First = {}
        if isinstance(head, ShrunkHead):
            self.first = {n: value.detach().clone() for n, value in head.first_values().items()}

    def residual(self, judged: Judged | None) -> Tensor:
        """Return what is added to the margins of training pairs, (B,)."""
        assert judged is not None
        return (judged.sign * self.residual_T[judged.thing]).sum(dim=1)

    def penalty(self, head: Head) -> Tensor:
        """Return the negative log prior of all numbers for each training pair."""
        total = 0.5 * self.residual_T.square().sum()
        if isinstance(head, ShrunkHead):
            # a Trainer moves the head, but not these
            self.first = {n: v.to(self.residual_T.device) for n, v in self.first.items()}
            total = total + head.surprise(self.first)
        return total / self.pairs


def prepare(head: Head, pairs: Pairs, features: Features, is_vote: bool) -> None:
    """Let a fresh head take from the training pairs what its priors are about: the direction from
    one answer to the other, and the sizes of features."""
    if not isinstance(head, ShrunkHead):
        return
    if is_vote:
        head.side_D.copy_(_apart(pairs, features, head.item_scale).axis())
    rows = torch.randperm(len(pairs))[:ROWS_TO_FIT].to(features.device)
    batch = pairs.batch(features, rows)
    head.fit(batch.prompt, batch.first, batch.second)


def with_things(
    pairs: Pairs, features: Features, scale: Standardiser, is_vote: bool, reads_prompt: bool
) -> Pairs:
    """Return pairs that know their things, numbered from 0; ``scale``: of items, where the features
    are."""
    if is_vote:
        assert pairs.prompt is not None, "votes have prompts"
        thing = pairs.prompt.unique(return_inverse=True)[1]
        half = torch.where(_apart(pairs, features, scale).first_agrees(), 0.5, -0.5)
        judged = Judged(torch.stack([thing, thing], dim=1), torch.stack([half, half], dim=1))
        return replace(pairs, judged=judged)
    rows = torch.cat([pairs.first, pairs.second]).unsqueeze(1)
    if reads_prompt:
        assert pairs.prompt is not None
        rows = torch.cat([rows, pairs.prompt.repeat(2).unsqueeze(1)], dim=1)
    thing = rows.unique(dim=0, return_inverse=True)[1]
    sign = torch.tensor([1.0, -1.0], device=thing.device).expand(len(pairs), 2)
    return replace(pairs, judged=Judged(thing.view(2, -1).T, sign))


def _apart(pairs: Pairs, features: Features, scale: Standardiser) -> Apart:
    """Return by how much the two items of each pair differ."""
    item, row = torch.cat([pairs.first, pairs.second]).unique(return_inverse=True)
    return Apart.of(scale(features[item]), *row.chunk(2))


def gains_clearly(default_B: Tensor, found_B: Tensor, judged: Judged | None) -> bool:
    """Say whether losses of validation pairs gain more than two standard errors over the things
    that are judged."""
    assert judged is not None
    one, two = judged.thing.cpu().numpy().T
    mean, error = gained(
        (default_B - found_B).double().cpu().numpy(), [one] if (one == two).all() else [one, two]
    )
    return mean > ERRORS * error
