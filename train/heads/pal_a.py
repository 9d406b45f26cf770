"""PAL-A: users are mixtures of K prototypical ideal points (arXiv 2406.08469; method.md 1.3).

w   = softmax(Omega[user])            (B, K)
a   = f(w P), or f(P) w, or P w       (B, H)
z   = f(h(prompt, item))              (B, H)    the prompt enters through the item's text
r   = -|z - a|^2                      (B,)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pal.config import TrainConfig
from pal.train.heads.head import Prepared
from pal.train.heads.ideal_point import IdealPointHead
from pal.train.heads.users import blocks_of_users, by_user


class PalA(IdealPointHead):
    """``learner`` says how prototypes P become an ideal point.

    ``f(Pw)``: P lives among the standardised features, f maps items and mixtures alike. ``f(P)w``:
    f maps the prototypes, then they are mixed. ``Pw``: P lives in the latent space and is only
    mixed.
    """

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__(config, dim, users)
        self.learner = config.learner
        size = self.latent_dim if self.learner == "Pw" else dim
        self.prototypes_KD = nn.Parameter(
            nn.functional.normalize(torch.randn(config.k, size), dim=1)
        )

    def ideal(self, prompt_BD: Tensor | None, code_BR: Tensor) -> Tensor:
        if self.learner == "f(Pw)":
            mapped: Tensor = self.f(code_BR @ self.prototypes_KD)[0]
            return mapped
        return code_BR @ self.fixed_points()

    def fixed_points(self) -> Tensor:
        """Return the points that are mixed, (K, H), for the learners that mix last."""
        if self.learner == "Pw":
            return self.prototypes_KD
        mapped: Tensor = self.f(self.prototypes_KD)[0]
        return mapped

    def prepare(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> Prepared:
        """Place both items. For squared distances z_1 - z_2 and |z_2|^2 - |z_1|^2 say all that
        margins need."""
        first_BH, second_BH = self.place(first_BD), self.place(second_BD)
        if self.score != "squared":
            return first_BH, second_BH
        apart_BH = first_BH - second_BH
        return apart_BH, -(apart_BH * (first_BH + second_BH)).sum(dim=1)

    def prepared_margin(self, prepared: Prepared, code_UR: Tensor, user_B: Tensor) -> Tensor:
        return self._margin(prepared, self.ideal(None, code_UR)[user_B])

    def _margin(self, prepared: Prepared, ideal_BH: Tensor) -> Tensor:
        one, other = prepared
        assert one is not None
        assert other is not None
        if self.score == "squared":
            return 2.0 * (one * ideal_BH).sum(dim=1) + other
        return self.compare(one, ideal_BH) - self.compare(other, ideal_BH)

    def margins_of_each(self, prepared: Prepared, code_CR: Tensor) -> Tensor:
        one, other = prepared
        if self.score != "squared":
            return super().margins_of_each(prepared, code_CR)
        assert one is not None
        assert other is not None
        return 2.0 * (one @ self.ideal(None, code_CR).T) + other.unsqueeze(1)

    def margin_and_slope(
        self, prepared: Prepared, code_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """For f(Pw), f is differentiated once per user and not once per pair."""
        if self.learner == "f(Pw)":
            ideal_UH, jacobian_KUH = self.f.along(code_UR @ self.prototypes_KD, self.prototypes_KD)
        else:
            points_KH = self.fixed_points()
            ideal_UH, jacobian_KUH = (
                code_UR @ points_KH,
                points_KH.unsqueeze(1).expand(-1, len(code_UR), -1),
            )
        one, other = prepared
        assert one is not None
        assert other is not None
        margins, slopes = [], []
        for users, rows in blocks_of_users(user_B, len(code_UR)):
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
