"""``mrm``: a start for user weights that few gradient steps adapt, learned through those steps.

Meta Reward Modeling (arXiv 2601.18731) on frozen features, re-derived (evaluation.md 3.11):

    r_u(e)    = e^T V softmax(a_u)
    a_u       = a_0, then S times a_u <- a_u - eta d/da mean_j CE(x_j^T V softmax(a_u), y_j)
    loss      = of other answers of the user after those steps, and more of it for the worst users

V and a_0 are learned by differentiating through all S steps, in ``pal.train.solve.meta``. A new
user goes the same steps from the same start. Shapes: B rows, D features, K directions, U users.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pal.train.heads.drawn import drawn
from pal.train.heads.head import Prepared
from pal.train.heads.linear import LinearHead
from pal.train.heads.users import UserWeights

STEPS, RATE = 5, 10.0
"""S and eta"""
GAIN = 10.0
"""V in terms of what is learned, so that the learning rate of other heads serves this one"""


class MetaLearned(LinearHead):
    """A row of the user table holds a_u after the user's training answers."""

    name: ClassVar[str] = "mrm"
    is_amortised: ClassVar[bool] = True

    def __init__(self, dim: int, users: int, *, k: int = 2) -> None:
        super().__init__(dim, UserWeights(users, k))
        self.basis_DK = nn.Parameter(
            drawn(dim, k, lambda way_DK: way_DK.div_(GAIN * math.sqrt(dim)))
        )
        self.start_K = nn.Parameter(torch.zeros(k))

    def basis(self) -> Tensor:
        # standardised features have a norm of one; here each dimension shall have a spread of one
        return GAIN * math.sqrt(len(self.basis_DK)) * self.basis_DK

    def adapt(self, projected_BK: Tensor, label: Tensor, user_B: Tensor, users: int) -> Tensor:
        """Return each user's logits after the steps on the own answers, (U, K); ``projected_BK`` is
        x^T V. A user without answers stays at the start."""
        logits_UK = self.start_K.expand(users, -1)
        share_B1 = (1.0 / torch.bincount(user_B, minlength=users).clamp(min=1))[user_B].unsqueeze(1)
        for _ in range(STEPS):
            w_UK = logits_UK.softmax(dim=1)
            margin_B1 = (projected_BK * w_UK[user_B]).sum(dim=1, keepdim=True)
            pull_BK = share_B1 * (margin_B1.sigmoid() - label.unsqueeze(1)) * projected_BK
            slope_UK = torch.zeros_like(w_UK).index_add(0, user_B, pull_BK)
            logits_UK = logits_UK - RATE * self.users.pull_back(w_UK, slope_UK)
        return logits_UK

    @torch.no_grad()
    def infer(self, prepared: Prepared, label: Tensor, user_B: Tensor, users: int) -> Tensor:
        projected_BK = prepared[0]
        assert projected_BK is not None
        return self.users.of_logits(self.adapt(projected_BK, label, user_B, users))
