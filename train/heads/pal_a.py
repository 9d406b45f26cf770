"""PAL-A: users are mixtures of K prototypical ideal points (arXiv 2406.08469; method.md 1.3).

w   = softmax(Omega[user])            (B, K)
a   = f(w P)                          (B, H)
z   = f(h(prompt, item))              (B, H)    the prompt enters through the item's text
r   = -|z - a|^2                      (B,)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pal.train.heads.head import IdealPointHead
from pal.train.heads.mlp import Architecture


class PalA(IdealPointHead):
    """``prototypes`` P live in the space of standardised features, and f maps items and mixtures alike."""

    uses_prompt = False

    def __init__(
        self, dim: int, users: int, k: int, latent_dim: int, mlp: Architecture, score: str, weights: str
    ) -> None:
        super().__init__(dim, users, k, latent_dim, mlp, score, weights)
        self.prototypes_KD = nn.Parameter(nn.functional.normalize(torch.randn(k, dim), dim=1))

    def ideal(self, prompt_BD: Tensor | None, w_BK: Tensor) -> Tensor:
        mapped: Tensor = self.f(w_BK @ self.prototypes_KD)[0]
        return mapped

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "maps": list(self.f.parameters()),
            "prototypes": [self.prototypes_KD],
            "users": list(self.users.parameters()),
            "scale": [] if self.log_scale is None else [self.log_scale],
        }
