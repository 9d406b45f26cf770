"""PAL-B: users are mixtures of K maps from prompt to ideal point (arXiv 2406.08469; method.md 1.4).

G_k = g_k(h(prompt))                  (K, B, H)
a   = sum_k w_k G_k                   (B, H)    mixed first, normalised by the cosine afterwards
z   = f(h(item))                      (B, H)
r   = tau <a, z> / |a||z|             (B,)
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pal.train.heads.head import Mapped, Prepared
from pal.train.heads.ideal_point import IdealPointHead, Score
from pal.train.heads.mlp import MLPs
from pal.train.heads.standardise import Standardiser
from pal.train.heads.things import Table, Things
from pal.train.heads.users import Weights


class PalB(IdealPointHead):
    """``g`` holds the K prototypical maps, separate from f."""

    name: ClassVar[str] = "pal-b"
    uses_prompt: bool = True

    def __init__(
        self,
        dim: int,
        users: int,
        *,
        k: int = 2,
        latent_dim: int | None = None,
        mlp: str = "mlp2-gelu-dropout0",
        score: Score = "angle",
        weights: Weights = "mixture",
    ) -> None:
        super().__init__(
            dim, users, k=k, latent_dim=latent_dim, mlp=mlp, score=score, weights=weights
        )
        self.prompt_scale = Standardiser(dim)
        self.g = MLPs(k, dim, self.latent_dim, self.architecture)

    def maps(self, prompt_BD: Tensor | None) -> Tensor:
        """Return the K ideal points of each prompt, (K, B, H)."""
        assert prompt_BD is not None, "PAL-B needs prompts"
        points_KBH: Tensor = self.g(self.prompt_scale(prompt_BD))
        return points_KBH

    def ideal(self, prompt_BD: Tensor | None, vector_BR: Tensor) -> Tensor:
        return torch.einsum("bk,kbh->bh", vector_BR, self.maps(prompt_BD))

    def ideal_of_each(self, things: Things, vector: Table) -> Tensor:
        """Map each prompt once, and mix for each comparison."""
        assert things.prompt is not None, "PAL-B needs prompts"
        maps_BKH = things.prompt.each(self.maps(things.prompt.values).transpose(0, 1))
        return torch.einsum("bk,bkh->bh", vector.each(), maps_BKH)

    def mean_reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_NR: Tensor) -> Tensor:
        """Map each prompt once, and mix in K-space."""
        maps_BKH = self.maps(prompt_BD).transpose(0, 1)
        placed_BH = self.place(item_BD)
        inner_BN = torch.einsum("bh,bkh->bk", placed_BH, maps_BKH) @ vector_NR.T
        mixed_BNK = vector_NR @ torch.einsum("bkh,blh->bkl", maps_BKH, maps_BKH)
        norm_BN = (mixed_BNK * vector_NR).sum(dim=2)
        square_B1 = placed_BH.square().sum(dim=1, keepdim=True)
        return self._compared(inner_BN, square_B1, norm_BN).mean(dim=1)

    def of_prompts(self, prompt_PD: Tensor) -> Mapped:
        """Return the K ideal points and their inner products."""
        maps_PKH = self.maps(prompt_PD).transpose(0, 1).contiguous()
        return maps_PKH, maps_PKH @ maps_PKH.mT

    def of_items(self, item_TD: Tensor) -> Mapped:
        placed_TH = self.place(item_TD)
        return placed_TH, placed_TH.square().sum(dim=1)

    def prepare_mapped(self, prompt: Mapped | None, first: Mapped, second: Mapped) -> Prepared:
        """Reduce pairs to K-space: inner products and squares of both items, and the prompts' Gram
        matrices."""
        assert prompt is not None, "PAL-B needs prompts"
        maps_BKH, gram_BKK = prompt
        both_B2H = torch.stack([first[0], second[0]], dim=1)
        inner_1, inner_2 = (both_B2H @ maps_BKH.mT).unbind(dim=1)
        return inner_1, first[1], inner_2, second[1], gram_BKK

    def prepared_margin(self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor) -> Tensor:
        inner_1, square_1, inner_2, square_2, gram = (
            value for value in prepared if value is not None
        )
        w = vector_UR[user_B]
        first = self.compare_mixed(inner_1, square_1, gram, w)
        return first - self.compare_mixed(inner_2, square_2, gram, w)

    def margin_and_slope(
        self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        inner_1, square_1, inner_2, square_2, gram = (
            value for value in prepared if value is not None
        )
        w = vector_UR[user_B]
        first = self.slope_mixed(inner_1, square_1, gram, w)
        slope = first - self.slope_mixed(inner_2, square_2, gram, w)
        return self.prepared_margin(prepared, vector_UR, user_B), slope

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "maps": [*self.f.parameters(), *self.g.parameters()],
            "users": list(self.users.parameters()),
            "scale": self.scale_parameters(),
        }
