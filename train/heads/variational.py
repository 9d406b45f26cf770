"""``vpl``: a user's vector inferred from the answers themselves, by a network trained with the
reward.

Poddar et al. 2024 on frozen features, re-derived (evaluation.md 3.7):

    h_j       = MLP([chosen; rejected])               (B, H), three matrices, no activation last
    mu, s     = of self-attention over a user's h_j, the mean over queries, each kept in [-1, 1]
    z         = mu + eps exp(s / 2), brought to a norm of sqrt(H), in training; z = mu otherwise
    r(e)      = MLP([e; z])
    loss      = mean softplus(-margin) + beta KL(N(mu, e^s) || N(0, I))

The mean over queries comes before the layer of values: both are linear. Nothing is chosen in a tie
(a label of one half), so no user is inferred from one; it is a target of training like any other
answer. Training is in ``pal.train.solve.variational``; adaptation is one forward pass. Shapes: B
rows, A distinct answers, U users, M answers of a user at most, H hidden width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from pal.train.heads.head import Mapped, Prepared
from pal.train.heads.networks import Joined, JoinedNetwork
from pal.train.heads.standardise import Standardiser
from pal.train.heads.things import taken
from pal.train.heads.users import UserVectors, by_user

LEAK = 0.2
NUMBERS_AT_ONCE = 2**24
"""that are laid out for the answers of some users: people give one answer, or thousands"""


class Variational(JoinedNetwork):
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
            Joined(dim, hidden, hidden), nn.LeakyReLU(LEAK),
            nn.Linear(hidden, hidden), nn.LeakyReLU(LEAK),
            nn.Linear(hidden, 1, bias=False),
        )  # fmt: skip

    def of_items(self, item_TD: Tensor) -> Mapped:
        """Nothing: answers are read from the items themselves, and both would be much to keep."""
        return (item_TD,)

    def parts(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        first_BD, second_BD = super().parts(prepared)
        return self.hidden(first_BD), self.hidden(second_BD)

    def posterior(
        self,
        chosen_AD: Tensor,
        rejected_AD: Tensor,
        answer_B: Tensor | None,
        user_B: Tensor,
        users: int,
    ) -> tuple[Tensor, Tensor]:
        """Return mu and log variance of each of U users from all their answers, (U, H) each; order
        changes nothing. Items are standardised. Row i is answer ``answer_B[i]`` of A; None: the
        rows are the answers."""
        answers_AH = self.read_answer(torch.cat([chosen_AD, rejected_AD], dim=1))
        read = [self.query(answers_AH), self.key(answers_AH), answers_AH]
        order = user_B.argsort()
        user_B = user_B[order]
        answer_B = order if answer_B is None else answer_B[order]
        pooled_UH = answers_AH.new_zeros(users, answers_AH.shape[1])
        for some_U in blocks_of_answers(
            torch.bincount(user_B, minlength=users), answers_AH.shape[1]
        ):
            number_U = torch.full((users,), -1, device=user_B.device)
            number_U[some_U] = torch.arange(len(some_U), device=user_B.device)
            own_B = number_U[user_B]
            rows = (own_B >= 0).nonzero().squeeze(1)
            laid_out = [
                by_user(taken(value, answer_B[rows]), own_B[rows], len(some_U)) for value in read
            ]
            (query, real_UM), (key, _), (own, _) = laid_out
            weight_UM = attention(query, key, real_UM)
            heard_UH = self.value((weight_UM.unsqueeze(1) @ own).squeeze(1))
            pooled_UH = pooled_UH.index_copy(0, some_U, heard_UH)
        mean, log_variance = self.mean(pooled_UH), self.log_variance(pooled_UH)
        return mean.clamp(-1.0, 1.0), log_variance.clamp(-1.0, 1.0)

    def draw(self, mean_UH: Tensor, log_variance_UH: Tensor) -> Tensor:
        """Return a vector for each user as training sees it, (U, H)."""
        z_UH = mean_UH + torch.randn_like(mean_UH) * (log_variance_UH / 2.0).exp()
        return nn.functional.normalize(z_UH, dim=1) * math.sqrt(z_UH.shape[1])

    @torch.no_grad()
    def infer(self, prepared: Prepared, label: Tensor, user_B: Tensor, users: int) -> Tensor:
        first, second = (self.item_scale(item_BD) for item_BD in super().parts(prepared))
        rows, chosen, rejected = choices(first, second, label)
        mean = self.posterior(chosen, rejected, None, user_B[rows], users)[0]
        silent = torch.bincount(user_B[rows], minlength=users) == 0
        return torch.where(silent.unsqueeze(1), self.users.population(), mean)


def choices(first: Tensor, second: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return which answers choose an item, (C,), and the chosen and the rejected items of those,
    (C, ...): all but ties, whose sides mean nothing."""
    rows = (label != 0.5).nonzero().squeeze(1)
    first, second = first[rows], second[rows]
    is_first = (label[rows] > 0.5).view(-1, *[1] * (first.dim() - 1))
    return rows, torch.where(is_first, first, second), torch.where(is_first, second, first)


def attention(query_UMH: Tensor, key_UMH: Tensor, real_UM: Tensor) -> Tensor:
    """Return how much each of a user's answers is attended to, the mean over all answers of that
    user, (U, M); a user's add up to one. Some of the queries at a time."""
    users, most, width = query_UMH.shape
    total_UM = query_UMH.new_zeros(users, most)
    at_once = max(1, NUMBERS_AT_ONCE // (users * most))
    for some_UQH, real_UQ in zip(
        query_UMH.split(at_once, dim=1), real_UM.split(at_once, dim=1), strict=True
    ):
        score_UQM = some_UQH @ key_UMH.mT / math.sqrt(width)
        weight_UQM = score_UQM.masked_fill(~real_UM.unsqueeze(1), -1e9).softmax(dim=2)
        total_UM = total_UM + (weight_UQM * real_UQ.unsqueeze(2)).sum(dim=1)
    return total_UM / real_UM.sum(dim=1, keepdim=True).clamp(min=1)


def blocks_of_answers(count_U: Tensor, width: int) -> Iterator[Tensor]:
    """Yield the numbers of some users at a time, (U,), for whom not too much is laid out: all that
    have an answer where that is little, else those with similarly many answers together."""
    count = count_U.cpu()
    order = count.argsort(stable=True)
    order = order[count[order] > 0]

    def laid_out(users: int, most: int) -> int:
        return users * most * max(most, width)

    if not len(order):
        return
    if laid_out(len(order), int(count.max())) <= NUMBERS_AT_ONCE:
        yield order.sort().values.to(count_U.device)
        return
    start = 0
    for stop in range(1, len(order) + 1):
        is_last = stop == len(order)
        if is_last or laid_out(stop + 1 - start, int(count[order[stop]])) > NUMBERS_AT_ONCE:
            yield order[start:stop].sort().values.to(count_U.device)
            start = stop
