"""PAL-B: users are mixtures of K maps from prompt to ideal point (arXiv 2406.08469; method.md 1.4).

G_k = g_k(h(prompt))                  (K, B, H)
a   = sum_k w_k G_k                   (B, H)    mixed first, normalised by the cosine afterwards
z   = f(h(item))                      (B, H)
r   = tau <a, z> / |a||z|             (B,)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pal.train.heads.head import IdealPointHead
from pal.train.heads.mlp import Architecture, MLPs
from pal.train.heads.standardise import Standardiser


class PalB(IdealPointHead):
    """``g`` holds the K prototypical maps, separate from f."""

    uses_prompt = True

    def __init__(
        self, dim: int, users: int, k: int, latent_dim: int, mlp: Architecture, score: str, weights: str
    ) -> None:
        super().__init__(dim, users, k, latent_dim, mlp, score, weights)
        self.prompt_scale = Standardiser(dim)
        self.g = MLPs(k, dim, latent_dim, mlp)

    def ideal(self, prompt_BD: Tensor | None, w_BK: Tensor) -> Tensor:
        assert prompt_BD is not None, "PAL-B needs prompts"
        return torch.einsum("bk,kbh->bh", w_BK, self.g(self.prompt_scale(prompt_BD)))

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "maps": [*self.f.parameters(), *self.g.parameters()],
            "users": list(self.users.parameters()),
            "scale": [] if self.log_scale is None else [self.log_scale],
        }
