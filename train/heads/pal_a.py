"""PAL-A: users are mixtures of K prototypical ideal points (arXiv 2406.08469; method.md 1.3).

w   = softmax(Omega[user])            (B, K)
a   = f(w P), or f(P) w, or P w       (B, H)
z   = f(h(prompt, item))              (B, H)    the prompt enters through the item's text
r   = -|z - a|^2                      (B,)
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from pal.train.heads.drawn import directions
from pal.train.heads.head import Mapped, Prepared
from pal.train.heads.ideal_point import IdealPointHead, Score
from pal.train.heads.things import Table, Things
from pal.train.heads.users import Weights, blocks_of_users, by_user

Learner = Literal["f(Pw)", "f(P)w", "Pw"]


class PalA(IdealPointHead):
    """``learner`` says how prototypes P become an ideal point.

    ``f(Pw)``: P lives among the standardised features, f maps items and mixtures alike. ``f(P)w``:
    f maps the prototypes, then they are mixed. ``Pw``: P lives in the latent space and is only
    mixed.
    """

    name: ClassVar[str] = "pal-a"

    def __init__(
        self,
        dim: int,
        users: int,
        *,
        k: int = 2,
        latent_dim: int | None = None,
        mlp: str = "mlp2-relu-dropout0-residual",
        score: Score = "squared",
        learner: Learner = "f(Pw)",
        weights: Weights = "mixture",
    ) -> None:
        super().__init__(
            dim, users, k=k, latent_dim=latent_dim, mlp=mlp, score=score, weights=weights
        )
        if learner not in get_args(Learner):
            raise ValueError(f"learner = {learner!r} must be one of {', '.join(get_args(Learner))}")
        self.learner = learner
        size = self.latent_dim if learner == "Pw" else dim
        self.prototypes_KD = nn.Parameter(directions(k, size))

    def ideal(self, prompt_BD: Tensor | None, vector_BR: Tensor) -> Tensor:
        if self.learner == "f(Pw)":
            mapped: Tensor = self.f(vector_BR @ self.prototypes_KD).squeeze(0)
            return mapped
        return vector_BR @ self.fixed_points()

    def fixed_points(self) -> Tensor:
        """Return the points that are mixed, (K, H), for the learners that mix last."""
        if self.learner == "Pw":
            return self.prototypes_KD
        mapped: Tensor = self.f(self.prototypes_KD).squeeze(0)
        return mapped

    def ideal_of_each(self, things: Things, vector: Table) -> Tensor:
        return vector.each(self.ideal(None, vector.values))

    def prepare_mapped(self, prompt: Mapped | None, first: Mapped, second: Mapped) -> Prepared:
        """For squared distances z_1 - z_2 and |z_2|^2 - |z_1|^2 say all that margins need."""
        (first_BH,), (second_BH,) = first, second
        if self.score != "squared":
            return first_BH, second_BH
        apart_BH = first_BH - second_BH
        return apart_BH, -(apart_BH * (first_BH + second_BH)).sum(dim=1)

    def prepared_margin(self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor) -> Tensor:
        return self._margin(prepared, self.ideal(None, vector_UR)[user_B])

    def _margin(self, prepared: Prepared, ideal_BH: Tensor) -> Tensor:
        one, other = prepared
        assert one is not None
        assert other is not None
        if self.score == "squared":
            return 2.0 * (one * ideal_BH).sum(dim=1) + other
        return self.compare(one, ideal_BH) - self.compare(other, ideal_BH)

    def margins_of_each(self, prepared: Prepared, vector_CR: Tensor) -> Tensor:
        one, other = prepared
        if self.score != "squared":
            return super().margins_of_each(prepared, vector_CR)
        assert one is not None
        assert other is not None
        return 2.0 * (one @ self.ideal(None, vector_CR).T) + other.unsqueeze(1)

    def margin_and_slope(
        self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For f(Pw), f is differentiated once per user and not once per pair."""
        one, other = prepared
        assert one is not None
        assert other is not None
        points_KH = None if self.learner == "f(Pw)" else self.fixed_points()
        margins, slopes = [], []
        for users, rows in blocks_of_users(user_B, len(vector_UR)):
            ideal_UH, jacobian_KUH = self._ideal_and_slope(vector_UR[users], points_KH)
            here = user_B[rows] - users.start
            if self.score == "squared":
                table_UMH, real_UM = by_user(one[rows], here, len(ideal_UH))
                margin_UM = (table_UMH @ ideal_UH.unsqueeze(2)).squeeze(2)
                margins.append(2.0 * margin_UM[real_UM] + other[rows])
                slope_UMK = 2.0 * (table_UMH @ jacobian_KUH.permute(1, 2, 0))
            else:
                ideal_BH = ideal_UH[here]
                margins.append(self._margin((one[rows], other[rows]), ideal_BH))
                toward_BH = self.slope(one[rows], ideal_BH) - self.slope(other[rows], ideal_BH)
                table_UMH, real_UM = by_user(toward_BH, here, len(ideal_UH))
                slope_UMK = table_UMH @ jacobian_KUH.permute(1, 2, 0)
            slopes.append(slope_UMK[real_UM])
        return torch.cat(margins), torch.cat(slopes)

    def _ideal_and_slope(
        self, vector_UR: Tensor, points_KH: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the ideal points of users, (U, H), and their derivatives by each weight, (K, U,
        H); ``points_KH`` are those that are mixed, None where f follows."""
        if points_KH is None:
            once_CR, place_U = distinct(vector_UR)
            ideal_CH, slope_KCH = self.f.along(once_CR @ self.prototypes_KD, self.prototypes_KD)
            if place_U is None:
                return ideal_CH, slope_KCH
            return ideal_CH[place_U], slope_KCH[:, place_U]
        return vector_UR @ points_KH, points_KH.unsqueeze(1).expand(-1, len(vector_UR), -1)

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "maps": list(self.f.parameters()),
            "prototypes": [self.prototypes_KD],
            "users": list(self.users.parameters()),
            "scale": self.scale_parameters(),
        }


def distinct(vector_UR: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the vectors of users without repeats, (C, R), and which is whose, (U,); the vectors
    themselves and None where their first numbers tell that most differ. New users start at a few
    places."""
    if len(vector_UR) < 2 or 2 * len(vector_UR[:, 0].unique()) > len(vector_UR):
        return vector_UR, None
    once_CR, place_U = vector_UR.unique(dim=0, return_inverse=True)
    return once_CR, place_U
