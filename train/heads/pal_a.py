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


class PalA(IdealPointHead):
    """``learner`` says how prototypes P become an ideal point.

    ``f(Pw)``: P lives among the standardised features, f maps items and mixtures alike. ``f(P)w``: f maps
    the prototypes, then they are mixed. ``Pw``: P lives in the latent space and is only mixed.
    """

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__(config, dim, users)
        self.learner = config.learner
        size = self.latent_dim if self.learner == "Pw" else dim
        self.prototypes_KD = nn.Parameter(nn.functional.normalize(torch.randn(config.k, size), dim=1))

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
        return self.place(first_BD), self.place(second_BD)

    def prepared_margin(self, prepared: Prepared, code_UR: Tensor, user_B: Tensor) -> Tensor:
        first_BH, second_BH = prepared
        assert first_BH is not None
        assert second_BH is not None
        ideal_BH = self.ideal(None, code_UR)[user_B]
        if self.score == "squared":  # |z_2 - a|^2 - |z_1 - a|^2 without the squares of a
            return ((first_BH - second_BH) * (2.0 * ideal_BH - first_BH - second_BH)).sum(dim=1)
        return self.compare(first_BH, ideal_BH) - self.compare(second_BH, ideal_BH)

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "maps": list(self.f.parameters()),
            "prototypes": [self.prototypes_KD],
            "users": list(self.users.parameters()),
            "scale": self.scale_parameters(),
        }
