"""What is believed of a new user before any answer: the seen users' mean and spread.

Shapes: U users, N seen users, R raw numbers, C communities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pal.train.heads.head import Head
from pal.train.heads.users import UserWeights

Spread = Literal["isotropic", "empirical", "community"]
SMALLEST_WEIGHT = 1e-6
DEFAULT_STRENGTH = 0.3
"""used where no validation users tune it; on planted users as good as a tuned one"""
TUNED_SHOTS = (1, 2, 5, 10, 20, 50, 100)
"""numbers of answers for which a prior is tuned: few answers need a stronger one"""


def tuned_for(count: int) -> int:
    """Return for which number of answers the prior of ``count`` answers is tuned, in an evaluation
    and in an export alike: the largest one that is not above."""
    return max((shots for shots in TUNED_SHOTS if shots <= count), default=TUNED_SHOTS[0])


@dataclass(frozen=True)
class Prior:
    """N(mean, precision^-1) over raw numbers; ``mean`` (R,) or, once users are known, (U, R);
    ``precision`` (R, R).

    ``centres`` (C, R) are the means of the seen users' communities: other places to start from,
    since margins of mixed maps are not concave. ``by_community``: each user's prior lies around the
    best of them.
    """

    mean: Tensor
    precision: Tensor
    centres: Tensor
    by_community: bool = False

    def around(self, mean_UR: Tensor) -> Prior:
        return replace(self, mean=mean_UR)

    def to(self, device: str | torch.device) -> Prior:
        return replace(
            self,
            mean=self.mean.to(device),
            precision=self.precision.to(device),
            centres=self.centres.to(device),
        )


@dataclass(frozen=True)
class Priors:
    """The priors of new users, by the number of answers that each is tuned for, at least one."""

    by_shots: Mapping[int, Prior]

    @classmethod
    def always(cls, prior: Prior) -> Priors:
        """Return one prior whatever the number of answers."""
        return cls({TUNED_SHOTS[0]: prior})

    def of(self, count: int) -> Prior:
        """Return the prior of somebody with ``count`` answers."""
        fitting = [shots for shots in self.by_shots if shots <= tuned_for(count)]
        return self.by_shots[max(fitting, default=min(self.by_shots))]


def make_prior(head: Head, strength: float, spread: Spread = "isotropic") -> Prior:
    """Return the empirical prior of a head's seen users.

    The mean is the raw row whose vector is the seen users' mean vector. ``isotropic``: precision is
    ``strength`` times the identity;
    ``empirical``: ``strength`` times the inverse of the seen users' covariance, shrunk by a tenth
    towards its mean variance;
    ``community``: isotropic around the community that fits a user's answers best, a mixture of
    Gaussians of which each user keeps one.
    """
    if head.users.has_prior:
        return standard_prior(head)
    on_simplex = isinstance(head.users, UserWeights)
    logits = centred(head, head.users.logits.detach().float())
    size = logits.shape[1]
    mean = head.users.population().detach().float()
    if on_simplex:
        mean = mean.clamp(min=SMALLEST_WEIGHT).log()
    mean = centred(head, mean.unsqueeze(0))[0]
    centres = communities(logits, logits) if on_simplex else logits[:0]
    identity = torch.eye(size, device=logits.device)
    if spread != "empirical" or size == 0 or len(logits) < 2:  # one user has no spread
        return Prior(mean, strength * identity, centres, by_community=spread == "community")
    covariance = torch.cov(logits.T).reshape(size, size)
    level = covariance.diagonal().mean().clamp(min=1e-6)
    shrunk = 0.9 * covariance + 0.1 * level * identity
    return Prior(mean, strength * torch.linalg.inv(shrunk), centres)


def standard_prior(head: Head) -> Prior:
    """Return N(0, 1), under which the seen users' own raw numbers were fitted."""
    logits = head.users.logits.detach().float()
    mean = torch.zeros_like(logits[0])
    centres = communities(logits, logits[:, 1:])  # the first number is no weight
    return Prior(mean, torch.eye(len(mean), device=mean.device), centres)


def communities(logits_NR: Tensor, weights_NK: Tensor) -> Tensor:
    """Return the mean raw numbers of the seen users who lean to the same prototype, by the logits
    of their weights, one row for each that has some."""
    leaning = weights_NK.argmax(dim=1)
    return torch.stack([logits_NR[leaning == k].mean(dim=0) for k in leaning.unique().tolist()])


def centred(head: Head, logits: Tensor) -> Tensor:
    """Remove the constant that a softmax ignores; a weight of zero counts as one in a million."""
    if not isinstance(head.users, UserWeights):
        return logits
    logits = torch.maximum(logits, logits.amax(dim=1, keepdim=True) + math.log(SMALLEST_WEIGHT))
    return logits - logits.mean(dim=1, keepdim=True)
