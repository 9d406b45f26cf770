"""``vpl``: a user's vector inferred from the answers themselves, by a network trained with the
reward.

Poddar et al. 2024 on frozen features, re-derived (evaluation.md 3.7):

    h_j       = MLP([chosen; rejected])               (B, H)
    mu, s     = pooled self-attention over a user's h_j, each kept in [-1, 1]
    z         = mu + eps exp(s / 2)                   in training; z = mu otherwise
    r(e)      = MLP([e; z])
    loss      = mean softplus(-margin) + beta KL(N(mu, e^s) || N(0, I))

Adaptation is one forward pass. Shapes: B rows, U users, M answers of a user at most, H hidden
width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pal.config import TrainConfig
from pal.errors import TrainError
from pal.train.heads.head import Head, Prepared
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import UserVectors, by_user
from pal.train.loss import LOSSES

if TYPE_CHECKING:
    from pal.train.fit import TrainingData

BETA, CYCLES, LEAK = 3e-6, 4, 0.2
PASSES = 3
"""through the answers in an epoch, for many of them are context and not targets"""
TARGETS, LARGEST_CONTEXT = 16, 32


class Variational(Head):
    """A row of the user table holds mu of the user's training answers."""

    is_solved = True
    is_amortised = True

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__()
        hidden = config.latent_dim or dim
        self.item_scale = Standardiser(dim)
        self.users = UserVectors(users, hidden, spread=0.0)
        layers: list[nn.Module] = []
        for n_in in (2 * dim, hidden, hidden):
            layers += [nn.Linear(n_in, hidden), nn.LeakyReLU(LEAK)]
        self.read_answer = nn.Sequential(*layers)
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.mean, self.log_variance = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.net = nn.Sequential(
            nn.Linear(dim + hidden, hidden), nn.LeakyReLU(LEAK), nn.Linear(hidden, hidden), nn.LeakyReLU(LEAK),
            nn.Linear(hidden, 1, bias=False),
        )  # fmt: skip

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, code_BR: Tensor) -> Tensor:
        value: Tensor = self.net(torch.cat([self.item_scale(item_BD), code_BR], dim=1)).squeeze(1)
        return value

    def posterior(
        self, first_BD: Tensor, second_BD: Tensor, label: Tensor, user: Tensor, users: int
    ) -> list[Tensor]:
        """Return mu and log variance of each of U users from all their answers, (U, H) each; order
        changes nothing."""
        order = user.argsort()
        first_BD, second_BD, label, user = (
            first_BD[order],
            second_BD[order],
            label[order],
            user[order],
        )
        is_first = (label >= 0.5).unsqueeze(1)
        first, second = self.item_scale(first_BD), self.item_scale(second_BD)
        pair = torch.cat(
            [torch.where(is_first, first, second), torch.where(is_first, second, first)], dim=1
        )
        answers_BH = self.read_answer(pair)
        q, k, v = (
            by_user(layer(answers_BH), user, users)[0]
            for layer in (self.query, self.key, self.value)
        )
        real_UM = by_user(label.unsqueeze(1), user, users)[1]
        weight = (
            (q @ k.mT / math.sqrt(q.shape[2]))
            .masked_fill(~real_UM.unsqueeze(1), -1e9)
            .softmax(dim=2)
        )
        pooled = ((weight @ v) * real_UM.unsqueeze(2)).sum(dim=1) / real_UM.sum(
            dim=1, keepdim=True
        ).clamp(min=1)
        return [self.mean(pooled).clamp(-1.0, 1.0), self.log_variance(pooled).clamp(-1.0, 1.0)]

    @torch.no_grad()
    def infer(self, prepared: Prepared, label: Tensor, user_B: Tensor, users: int) -> Tensor:
        _, first, second = prepared
        assert first is not None
        assert second is not None
        mean = self.posterior(first, second, label, user_B, users)[0]
        silent = torch.bincount(user_B, minlength=users) == 0
        return torch.where(silent.unsqueeze(1), self.users.population(), mean)

    def solve(self, data: TrainingData, settings: TrainConfig) -> None:
        """Train by AdamW on random splits of users' answers into context and targets; the best
        epoch is kept."""
        networks = [p for name, p in self.named_parameters() if name != "users.logits"]
        optimiser = torch.optim.AdamW(networks, lr=settings.lr, weight_decay=settings.weight_decay)
        loss_of, best, best_loss = LOSSES[settings.loss], {}, float("inf")
        for epoch in range(settings.epochs):
            phase = (epoch * CYCLES / settings.epochs) % 1.0
            beta = BETA * 0.5 * (1.0 - math.cos(math.pi * phase))
            for context, target in _episodes(data.train.user, len(data.users), settings.batch_size):
                mean, log_variance = self.posterior(*self._answers(data, context), len(data.users))
                z = mean + torch.randn_like(mean) * (log_variance / 2.0).exp()
                batch = data.train.batch(data.features, target)
                margin = self.margin(None, batch.first.float(), batch.second.float(), z[batch.user])
                divergence = -0.5 * (1.0 + log_variance - mean.square() - log_variance.exp()).sum(
                    dim=1
                )
                loss = loss_of(margin, batch.label).mean() + beta * divergence[batch.user].mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            loss_now = self._validate(data, settings)
            if loss_now < best_loss:
                best_loss, best = (
                    loss_now,
                    {n: v.detach().clone() for n, v in self.state_dict().items()},
                )
        if not best:
            raise TrainError(
                "the validation loss was never finite; train with a lower --set train.lr"
            )
        self.load_state_dict(best)

    @torch.no_grad()
    def _validate(self, data: TrainingData, settings: TrainConfig) -> float:
        """Fill the user table from all training answers and return the validation loss under it."""
        everything = torch.arange(len(data.train), device=data.train.user.device)
        self.users.logits.copy_(
            self.posterior(*self._answers(data, everything), len(data.users))[0]
        )
        batch = data.val.batch(data.features, slice(None))
        margin = self.margin(
            None, batch.first.float(), batch.second.float(), self.users(batch.user)
        )
        return float(LOSSES[settings.loss](margin, batch.label).mean())

    def _answers(self, data: TrainingData, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        batch = data.train.batch(data.features, rows)
        return batch.first.float(), batch.second.float(), batch.label, batch.user

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "maps": [p for name, p in self.named_parameters() if name != "users.logits"],
            "users": list(self.users.parameters()),
        }


def _episodes(user_B: Tensor, users: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield context and target rows, disjoint, ``PASSES`` times as many targets an epoch as there
    are answers.

    Each episode takes some users, orders their answers at random, and cuts each order at a random
    place.
    """
    at_once = max(1, min(users, batch_size // TARGETS))
    for _ in range(max(1, round(PASSES * len(user_B) / (at_once * TARGETS)))):
        chosen = torch.randperm(users)[:at_once].to(user_B.device)
        rows = torch.isin(user_B, chosen).nonzero().squeeze(1)
        rows = rows[torch.rand(len(rows)).argsort().to(rows.device)]
        owner = user_B[rows]
        order = owner.argsort(stable=True)
        count = torch.bincount(owner, minlength=users)
        place = torch.empty_like(order)
        place[order] = (
            torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[owner[order]]
        )
        context = (
            torch.rand(users).to(rows.device) * count.clamp(max=2 * LARGEST_CONTEXT) / 2.0
        ).long() + 1
        is_context = place < context[owner]
        is_target = ~is_context & (place < (context + TARGETS)[owner])
        yield rows[is_context], rows[is_target]
