"""PAL-B: users are mixtures of K maps from prompt to ideal point (arXiv 2406.08469; method.md 1.4).

G_k = g_k(h(prompt))                  (K, B, H)
a   = sum_k w_k G_k                   (B, H)    mixed first, normalised by the cosine afterwards
z   = f(h(item))                      (B, H)
r   = tau <a, z> / |a||z|             (B,)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pal.config import TrainConfig
from pal.train.heads.head import Prepared
from pal.train.heads.ideal_point import IdealPointHead
from pal.train.heads.mlp import MLPs
from pal.train.heads.standardise import Standardiser


class PalB(IdealPointHead):
    """``g`` holds the K prototypical maps, separate from f."""

    uses_prompt = True

    def __init__(self, config: TrainConfig, dim: int, users: int) -> None:
        super().__init__(config, dim, users)
        self.prompt_scale = Standardiser(dim)
        self.g = MLPs(config.k, dim, self.latent_dim, self.architecture)

    def ideal(self, prompt_BD: Tensor | None, code_BR: Tensor) -> Tensor:
        assert prompt_BD is not None, "PAL-B needs prompts"
        return torch.einsum("bk,kbh->bh", code_BR, self.g(self.prompt_scale(prompt_BD)))

    def prepare(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> Prepared:
        """Reduce pairs to K-space: inner products and squares of both items, and the prompts' Gram
        matrices."""
        assert prompt_BD is not None, "PAL-B needs prompts"
        maps_BKH = self.g(self.prompt_scale(prompt_BD)).transpose(0, 1)
        prepared: list[Tensor] = []
        for item in (first_BD, second_BD):
            placed = self.place(item)
            prepared += [torch.einsum("bh,bkh->bk", placed, maps_BKH), placed.square().sum(dim=1)]
        return *prepared, torch.einsum("bkh,blh->bkl", maps_BKH, maps_BKH)

    def prepared_margin(self, prepared: Prepared, code_UR: Tensor, user_B: Tensor) -> Tensor:
        inner_1, square_1, inner_2, square_2, gram = (
            value for value in prepared if value is not None
        )
        w = code_UR[user_B]
        return self.compare_mixed(inner_1, square_1, gram, w) - self.compare_mixed(
            inner_2, square_2, gram, w
        )

    def margin_and_slope(
        self, prepared: Prepared, code_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        inner_1, square_1, inner_2, square_2, gram = (
            value for value in prepared if value is not None
        )
        w = code_UR[user_B]
        slope = self.slope_mixed(inner_1, square_1, gram, w) - self.slope_mixed(
            inner_2, square_2, gram, w
        )
        return self.prepared_margin(prepared, code_UR, user_B), slope

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "maps": [*self.f.parameters(), *self.g.parameters()],
            "users": list(self.users.parameters()),
            "scale": self.scale_parameters(),
        }
