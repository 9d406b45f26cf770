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
        self.prototypes_KD = nn.Parameter(nn.functional.normalize(torch.randn(k, size), dim=1))

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
        if self.learner == "f(Pw)":
            mixed_UD = vector_UR @ self.prototypes_KD
            ideal_UH, jacobian_KUH = self.f.along(mixed_UD, self.prototypes_KD)
        else:
            points_KH = self.fixed_points()
            ideal_UH = vector_UR @ points_KH
            jacobian_KUH = points_KH.unsqueeze(1).expand(-1, len(vector_UR), -1)
        one, other = prepared
        assert one is not None
        assert other is not None
        margins, slopes = [], []
        for users, rows in blocks_of_users(user_B, len(vector_UR)):
            here, jacobian_UHK = user_B[rows] - users.start, jacobian_KUH[:, users].permute(1, 2, 0)
            if self.score == "squared":  # one product gives slopes and margins
                table_UMH, real_UM = by_user(one[rows], here, users.stop - users.start)
                both = torch.cat([jacobian_UHK, ideal_UH[users].unsqueeze(2)], dim=2)
                found_BK = 2.0 * (table_UMH @ both)[real_UM]
                margins.append(found_BK[:, -1] + other[rows])
                slopes.append(found_BK[:, :-1])
            else:
                ideal_BH = ideal_UH[user_B[rows]]
                margins.append(self._margin((one[rows], other[rows]), ideal_BH))
                toward_BH = self.slope(one[rows], ideal_BH) - self.slope(other[rows], ideal_BH)
                table_UMH, real_UM = by_user(toward_BH, here, users.stop - users.start)
                slopes.append((table_UMH @ jacobian_UHK)[real_UM])
        return torch.cat(margins), torch.cat(slopes)

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "maps": list(self.f.parameters()),
            "prototypes": [self.prototypes_KD],
            "users": list(self.users.parameters()),
            "scale": self.scale_parameters(),
        }
