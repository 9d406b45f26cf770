"""``vpl``: a user's vector inferred from the answers themselves, by a network trained with the
reward.

Poddar et al. 2024 on frozen features, re-derived (evaluation.md 3.7):

    h_j       = MLP([chosen; rejected])               (B, H), three matrices, no activation last
    mu, s     = pooled self-attention over a user's h_j, each kept in [-1, 1]
    z         = mu + eps exp(s / 2), brought to a norm of sqrt(H), in training; z = mu otherwise
    r(e)      = MLP([e; z])
    loss      = mean softplus(-margin) + beta KL(N(mu, e^s) || N(0, I))

Training is in ``pal.train.solve.variational``; adaptation is one forward pass. Shapes: B rows, U
users, M answers of a user at most, H hidden width.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pal.train.heads.head import Head, Prepared
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import UserVectors, by_user

LEAK = 0.2


class Variational(Head):
    """A row of the user table holds mu of the user's training answers."""

    name: ClassVar[str] = "vpl"
    is_solved: ClassVar[bool] = True
    is_amortised: ClassVar[bool] = True

    def __init__(self, dim: int, users: int, *, latent_dim: int | None = None) -> None:
        super().__init__()
        hidden = latent_dim or dim
        self.item_scale = Standardiser(dim)
        self.users = UserVectors(users, hidden, spread=0.0)
        self.read_answer = nn.Sequential(
            nn.Linear(2 * dim, hidden), nn.LeakyReLU(LEAK),
            nn.Linear(hidden, hidden), nn.LeakyReLU(LEAK),
            nn.Linear(hidden, hidden),
        )  # fmt: skip
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.mean, self.log_variance = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.net = nn.Sequential(
            nn.Linear(dim + hidden, hidden), nn.LeakyReLU(LEAK),
            nn.Linear(hidden, hidden), nn.LeakyReLU(LEAK),
            nn.Linear(hidden, 1, bias=False),
        )  # fmt: skip

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        joined = torch.cat([self.item_scale(item_BD), vector_BR], dim=1)
        value: Tensor = self.net(joined).squeeze(1)
        return value

    def posterior(
        self, first_BD: Tensor, second_BD: Tensor, label: Tensor, user: Tensor, users: int
    ) -> tuple[Tensor, Tensor]:
        """Return mu and log variance of each of U users from all their answers, (U, H) each; order
        changes nothing."""
        order = user.argsort()
        label, user = label[order], user[order]
        first, second = self.item_scale(first_BD[order]), self.item_scale(second_BD[order])
        is_first = (label >= 0.5).unsqueeze(1)
        chosen, rejected = (
            torch.where(is_first, first, second),
            torch.where(is_first, second, first),
        )
        answers_BH = self.read_answer(torch.cat([chosen, rejected], dim=1))
        query_UMH, key_UMH, value_UMH = (
            by_user(layer(answers_BH), user, users)[0]
            for layer in (self.query, self.key, self.value)
        )
        real_UM = by_user(label.unsqueeze(1), user, users)[1]
        score_UMM = query_UMH @ key_UMH.mT / math.sqrt(query_UMH.shape[2])
        weight_UMM = score_UMM.masked_fill(~real_UM.unsqueeze(1), -1e9).softmax(dim=2)
        total_UH = ((weight_UMM @ value_UMH) * real_UM.unsqueeze(2)).sum(dim=1)
        pooled_UH = total_UH / real_UM.sum(dim=1, keepdim=True).clamp(min=1)
        mean, log_variance = self.mean(pooled_UH), self.log_variance(pooled_UH)
        return mean.clamp(-1.0, 1.0), log_variance.clamp(-1.0, 1.0)

    def draw(self, mean_UH: Tensor, log_variance_UH: Tensor) -> Tensor:
        """Return a vector for each user as training sees it, (U, H)."""
        z_UH = mean_UH + torch.randn_like(mean_UH) * (log_variance_UH / 2.0).exp()
        return nn.functional.normalize(z_UH, dim=1) * math.sqrt(z_UH.shape[1])

    @torch.no_grad()
    def infer(self, prepared: Prepared, label: Tensor, user_B: Tensor, users: int) -> Tensor:
        _, first, second = prepared
        assert first is not None
        assert second is not None
        mean = self.posterior(first, second, label, user_B, users)[0]
        silent = torch.bincount(user_B, minlength=users) == 0
        return torch.where(silent.unsqueeze(1), self.users.population(), mean)
