"""Heads with ideal points: what PAL-A and PAL-B share (arXiv 2406.08469).

r = compare(z, a) of the placed item z = f(item) and the ideal point a. Shapes: B rows, D features,
K prototypes, H latent dimension, U users.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from pal.train.heads.head import Mapped, MappingHead
from pal.train.heads.mlp import Architecture, MLPs
from pal.train.heads.standardise import Standardiser
from pal.train.heads.things import Table, Things
from pal.train.heads.users import UserWeights, Weights

Score = Literal["squared", "distance", "normalised", "angle"]
FIRST_SCALE, LARGEST_SCALE = 1.0 / 0.07, 100.0
SMALLEST_NORM = 1e-8


class IdealPointHead(MappingHead):
    """A user prefers the item nearer to the ideal point.

    ``score`` is one of: squared -|z - a|^2; distance -|z - a|; normalised -|z/|z| - a/|a||^2;
    angle tau <z, a> / |z||a| with tau a learnable scale of at most 100.
    """

    can_be_rounded: ClassVar[bool] = True

    def __init__(
        self,
        dim: int,
        users: int,
        *,
        k: int,
        latent_dim: int | None,
        mlp: str,
        score: Score,
        weights: Weights,
    ) -> None:
        super().__init__()
        if score not in get_args(Score):
            raise ValueError(f"score = {score!r} must be one of {', '.join(get_args(Score))}")
        self.k = k
        self.score = score
        self.latent_dim = latent_dim or dim
        self.architecture = Architecture.parse(mlp)
        self.item_scale = Standardiser(dim)
        self.f = MLPs(1, dim, self.latent_dim, self.architecture)
        self.users: UserWeights = UserWeights(users, k, weights)
        scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE))) if score == "angle" else None
        self.log_scale = scale

    @abstractmethod
    def ideal(self, prompt_BD: Tensor | None, vector_BR: Tensor) -> Tensor:
        """Return the users' ideal points under the prompts, not normalised, (B, H)."""

    def place(self, item_BD: Tensor) -> Tensor:
        """Return f of the standardised items, (B, H)."""
        placed: Tensor = self.f(self.item_scale(item_BD)).squeeze(0)
        return placed

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        return self.compare(self.place(item_BD), self.ideal(prompt_BD, vector_BR))

    def mean_reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_NR: Tensor) -> Tensor:
        """Compare each placed item with all ideal points at once."""
        placed_BH, ideal_NH = self.place(item_BD), self.ideal(None, vector_NR)
        square_B1 = placed_BH.square().sum(dim=1, keepdim=True)
        norm_N = ideal_NH.square().sum(dim=1)
        return self._compared(placed_BH @ ideal_NH.T, square_B1, norm_N).mean(dim=1)

    def margin(
        self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor, vector_BR: Tensor
    ) -> Tensor:
        things = Things.of(prompt_BD, first_BD, second_BD)
        return self._margin_to(self.ideal_of_each(things, Table(vector_BR, None)), things)

    def margins(self, things: Things, user_B: Tensor) -> Tensor:
        return self.margins_and_ideal(things, user_B)[0]

    def margins_and_ideal(self, things: Things, user_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the margins of users of the table, (B,), and the ideal points that they are nearer
        to or farther from, not normalised, (B, H)."""
        sees_others = self.architecture.sees_other_rows(self.f.training)
        if sees_others:
            things = things.row_by_row()
        users = self.users.logits.shape[0]
        everyone = torch.arange(users, device=user_B.device)
        is_few = users < user_B.shape[0] and not (sees_others or self.users.draws)
        vector = Table(self.users(everyone), user_B) if is_few else Table(self.users(user_B), None)
        ideal_BH = self.ideal_of_each(things, vector)
        return self._margin_to(ideal_BH, things), ideal_BH

    @abstractmethod
    def ideal_of_each(self, things: Things, vector: Table) -> Tensor:
        """Return ``ideal`` of each comparison for the vectors of their users, (B, H)."""

    def of_items(self, item_TD: Tensor) -> Mapped:
        return (self.place(item_TD),)

    def _margin_to(self, ideal_BH: Tensor, things: Things) -> Tensor:
        placed_TH = self.place(things.item.values)
        first_BH, second_BH = things.both(placed_TH)
        if (
            self.score == "squared"
        ):  # |z_2 - a|^2 - |z_1 - a|^2 = 2 <z_1 - z_2, a - (z_1 + z_2) / 2>
            apart_BH = first_BH - second_BH
            return 2.0 * dot(apart_BH, (ideal_BH - first_BH).add_(apart_BH, alpha=0.5))
        if self.score == "distance":
            return self.compare(first_BH, ideal_BH) - self.compare(second_BH, ideal_BH)
        (square_1, square_2), norm_B = (
            things.both(dot(placed_TH, placed_TH)),
            dot(ideal_BH, ideal_BH),
        )
        first_B = self._compared(dot(first_BH, ideal_BH), square_1, norm_B)
        return first_B - self._compared(dot(second_BH, ideal_BH), square_2, norm_B)

    def compare(self, placed_BH: Tensor, ideal_BH: Tensor) -> Tensor:
        """Return the reward of placed items for ideal points, (B,)."""
        if self.score in ("angle", "normalised"):
            return self._of_cosine(nn.functional.cosine_similarity(placed_BH, ideal_BH, dim=1))
        difference = placed_BH - ideal_BH
        if self.score == "squared":
            return -difference.square().sum(dim=1)
        return -torch.linalg.vector_norm(difference, dim=1)

    def _of_cosine(self, cosine_B: Tensor) -> Tensor:
        """tau cos, or -|z/|z| - a/|a||^2 = 2 cos - 2."""
        if self.log_scale is None:
            return 2.0 * cosine_B - 2.0
        return self.log_scale.exp() * cosine_B

    def slope(self, placed_BH: Tensor, ideal_BH: Tensor) -> Tensor:
        """Return the derivative of ``compare`` by the ideal point, (B, H)."""
        if self.score in ("angle", "normalised"):
            norm_B1 = torch.linalg.vector_norm(ideal_BH, dim=1, keepdim=True)
            size_B1 = norm_B1.clamp(min=SMALLEST_NORM)
            z, a = nn.functional.normalize(placed_BH, dim=1, eps=SMALLEST_NORM), ideal_BH / size_B1
            factor = 2.0 if self.log_scale is None else self.log_scale.exp()
            return factor * (z - (z * a).sum(dim=1, keepdim=True) * a) / size_B1
        away = placed_BH - ideal_BH
        if self.score == "squared":
            return 2.0 * away
        return away / torch.linalg.vector_norm(away, dim=1, keepdim=True).clamp(min=SMALLEST_NORM)

    def compare_mixed(
        self, inner_BK: Tensor, square_B: Tensor, gram_BKK: Tensor, w_BK: Tensor
    ) -> Tensor:
        """Return ``compare(z, sum_k w_k G_k)`` from <z, G_k>, |z|^2 and <G_k, G_l>, (B,), in
        K-space alone.

        Where an ideal point is a mixture of fixed points, adaptation needs no latent vector more
        than once.
        """
        inner_B = (inner_BK * w_BK).sum(dim=1)
        gw_BK = (gram_BKK @ w_BK.unsqueeze(2)).squeeze(2)
        return self._compared(inner_B, square_B, (gw_BK * w_BK).sum(dim=1))

    def _compared(self, inner: Tensor, square: Tensor, norm: Tensor) -> Tensor:
        """Return ``compare(z, a)`` from <z, a>, |z|^2 and |a|^2, of shapes that go together."""
        norm = norm.clamp(min=SMALLEST_NORM**2)
        if self.score in ("angle", "normalised"):
            return self._of_cosine(inner / (norm * square.clamp(min=SMALLEST_NORM**2)).sqrt())
        distance = (square - 2.0 * inner + norm).clamp(min=0.0)
        return -distance if self.score == "squared" else -(distance + SMALLEST_NORM**2).sqrt()

    def slope_mixed(
        self, inner_BK: Tensor, square_B: Tensor, gram_BKK: Tensor, w_BK: Tensor
    ) -> Tensor:
        """Return the derivative of ``compare_mixed`` by the weights, (B, K)."""
        gw_BK = (gram_BKK @ w_BK.unsqueeze(2)).squeeze(2)
        norm_B1 = (gw_BK * w_BK).sum(dim=1, keepdim=True).clamp(min=SMALLEST_NORM**2)
        mixed_B1, square_B1 = (inner_BK * w_BK).sum(dim=1, keepdim=True), square_B.unsqueeze(1)
        if self.score in ("angle", "normalised"):
            factor = 2.0 if self.log_scale is None else self.log_scale.exp()
            size_B1 = (norm_B1 * square_B1.clamp(min=SMALLEST_NORM**2)).sqrt()
            return factor * (inner_BK - mixed_B1 / norm_B1 * gw_BK) / size_B1
        toward_BK = 2.0 * (inner_BK - gw_BK)
        if self.score == "squared":
            return toward_BK
        distance_B1 = (square_B1 - 2.0 * mixed_B1 + norm_B1).clamp(min=0.0) + SMALLEST_NORM**2
        return toward_BK / (2.0 * distance_B1.sqrt())

    def upper_limits(self) -> dict[str, float]:
        # the scale is clamped itself and not in the forward pass, where it would lose its gradient
        # for good
        return {} if self.log_scale is None else {"log_scale": math.log(LARGEST_SCALE)}

    def scale_parameters(self) -> list[nn.Parameter]:
        return [] if self.log_scale is None else [self.log_scale]


def dot(one_BH: Tensor, other_BH: Tensor) -> Tensor:
    """Return the inner product of each row with its counterpart, (B,)."""
    return (one_BH * other_BH).sum(dim=1)
