"""Who somebody may be, for a probability instead of a reward: an average over people.

A reward is one number for an item. Which of two responses somebody prefers depends on who it is,
and of a stranger or a newcomer that is not known. So

    P(first) = sum_m w_m sigma(r_m(first) - r_m(second))

over people m, each as likely as w_m: all seen users for a stranger, and for somebody who has given
a few answers the seen users by the likelihood of those answers, and draws round the maximum of the
posterior, as ``pal evaluate`` has it (train/adapt/average.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pal.train.adapt.answers import Answers
from pal.train.adapt.average import seen_vectors, weights_of_seen
from pal.train.adapt.map import Adapted
from pal.train.heads.head import Head, Prepared

DRAWS, SEED = 256, 0
"""people round the maximum of the posterior, in pairs on both sides of it"""
LEAST_WEIGHT = 1e-5
"""of a person who is left out"""


@dataclass(frozen=True)
class Audience:
    """People: their vectors, (M, R), and how likely somebody is to be like each, (M,)."""

    vectors: Tensor
    weights: Tensor

    @classmethod
    def of_one(cls, vector_R: Tensor) -> Audience:
        """Return the audience of somebody who is known."""
        return cls(vector_R.unsqueeze(0), torch.ones(1, device=vector_R.device))

    @classmethod
    def of_seen(cls, head: Head) -> Audience:
        """Return who a stranger may be: any of the seen users."""
        vectors_NR = seen_vectors(head)
        if not vectors_NR.shape[1]:  # all users are the same
            return cls.of_one(vectors_NR[0])
        return cls(vectors_NR, vectors_NR.new_full((len(vectors_NR),), 1.0 / len(vectors_NR)))

    @classmethod
    def of_answers(cls, head: Head, answers: Answers, adapted: Adapted) -> Audience:
        """Return who the only user of some answers may be; ``adapted`` has a covariance."""
        assert adapted.covariance is not None
        pi_N, share = (value[0] for value in weights_of_seen(head, answers, adapted))
        noise_DR = torch.randn(
            DRAWS // 2, adapted.logits.shape[1], generator=torch.Generator().manual_seed(SEED)
        ).to(adapted.logits)
        spread = torch.linalg.cholesky(adapted.covariance[0])
        away_DR = noise_DR @ spread.T
        draws_DR = adapted.logits[0] + torch.cat([away_DR, -away_DR])
        others = (1.0 - share) / DRAWS
        weights = torch.cat([share * pi_N, others.expand(DRAWS)]).float()
        vectors = torch.cat([seen_vectors(head), head.users.of_logits(draws_DR)])
        kept = weights > LEAST_WEIGHT
        return cls(vectors[kept], weights[kept] / weights[kept].sum())

    def probability(self, head: Head, prepared: Prepared) -> Tensor:
        """Return P(first preferred) of prepared pairs, (B,)."""
        margin_BM = head.margins_of_each(prepared, self.vectors).double()
        return (margin_BM.sigmoid() * self.weights.double()).sum(dim=1).float()

    def to(self, device: str | torch.device) -> Audience:
        return Audience(self.vectors.to(device), self.weights.to(device))
