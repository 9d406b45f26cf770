"""Who somebody may be, for a probability instead of a reward: an average over people.

A reward is one number for an item. Which of two responses somebody prefers depends on who it is,
and of a stranger or a newcomer that is not known. A stranger may be any of the seen users:

    P(first) = sum_m w_m sigma(r_m(first) - r_m(second))

and of somebody who has given a few answers the same is predicted as ``pal evaluate`` predicts
(train/adapt/average.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pal.train.adapt.answers import Answers
from pal.train.adapt.average import Belief, seen_vectors
from pal.train.adapt.curvature import Covariance
from pal.train.adapt.map import Adapted
from pal.train.heads.head import Head, Prepared


@dataclass(frozen=True)
class People:
    """People: their vectors, (M, R), and how likely somebody is to be like each, (M,)."""

    vectors: Tensor
    weights: Tensor

    @classmethod
    def of_one(cls, vector_R: Tensor) -> People:
        """Return somebody who is known."""
        return cls(vector_R.unsqueeze(0), torch.ones(1, device=vector_R.device))

    @classmethod
    def of_seen(cls, head: Head) -> People:
        """Return who a stranger may be: any of the seen users."""
        vectors_NR = seen_vectors(head)
        if not vectors_NR.shape[1]:  # all users are the same
            return cls.of_one(vectors_NR[0])
        return cls(vectors_NR, vectors_NR.new_full((len(vectors_NR),), 1.0 / len(vectors_NR)))

    def probability(self, head: Head, prepared: Prepared) -> Tensor:
        """Return P(first preferred) of prepared pairs, (B,)."""
        margin_BM = head.margins_of_each(prepared, self.vectors).double()
        return (margin_BM.sigmoid() * self.weights.double()).sum(dim=1).float()


def of_known(head: Head, prepared: Prepared, vector_BR: Tensor) -> Tensor:
    """Return P(first preferred) of prepared pairs by people who are known, one for each, (B,)."""
    each_B = torch.arange(len(vector_BR), device=vector_BR.device)
    return head.prepared_margin(prepared, vector_BR, each_B).double().sigmoid().float()


@dataclass(frozen=True)
class Newcomer:
    """Somebody who has given a few answers."""

    belief: Belief
    """of one user"""

    @classmethod
    def of_answers(cls, head: Head, answers: Answers, adapted: Adapted) -> Newcomer:
        """Return who the only user of some answers may be; ``adapted`` has a covariance."""
        return cls(Belief.of(head, answers, adapted))

    def probability(self, head: Head, prepared: Prepared) -> Tensor:
        """Return P(first preferred) of prepared pairs, (B,)."""
        count = next(len(value) for value in prepared if value is not None)
        label = torch.zeros(count, device=self.belief.logits.device)
        pairs = Answers(prepared, label, label.long(), 1)
        return self.belief.probability(head, pairs).float()

    def to(self, device: str | torch.device) -> Newcomer:
        belief = self.belief
        return Newcomer(
            Belief(
                belief.likeness.to(device), belief.share.to(device), belief.logits.to(device),
                belief.covariance.to(device),
            )
        )  # fmt: skip

    def numbers(self) -> Tensor:
        """Return all there is to know as 1 + R + R^2 + N numbers, (n,)."""
        belief = self.belief
        covariance = belief.covariance.whole()[0].flatten()
        parts = (belief.share, belief.logits[0], covariance, belief.likeness[0])
        return torch.cat([part.double() for part in parts])

    @classmethod
    def of_numbers(cls, numbers: Tensor, size: int) -> Newcomer:
        """Return who ``numbers`` tell of, of a head whose users have ``size`` raw numbers.

        Raises ValueError where there are too few.
        """
        known = 1 + size + size * size
        if len(numbers) <= known:
            raise ValueError(f"{len(numbers)} numbers are no newcomer of a head with {size}")
        share, logits, covariance = numbers[:known].split([1, size, size * size])
        logits, covariance = logits.float(), covariance.float().reshape(1, size, size)
        return cls(
            Belief(
                numbers[known:].double().unsqueeze(0), share.double(), logits.unsqueeze(0),
                Covariance(covariance),
            )
        )  # fmt: skip


Audience = People | Newcomer
