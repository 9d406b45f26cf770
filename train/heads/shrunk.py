"""PAL-A and PAL-B whose prototypes are a shared taste and shrunk deviations from it.

    r_u = [ a_u side(item) + sum_k w_uk R_k ] / size              w_u = softmax(omega_u)
    PAL-B: R_k = <f(item) / |f(item)|, g_k(prompt)>               g_k = W_k phi_k + b_k
    PAL-A: R_k = 2 <f(item), p_k> - |f(item)|^2                   f = W phi + b

    W_k = W_0 + sigma V_k, b_k alike, p_k = p_0 + sigma delta_k;  W_0, V_k, FAR W, FAR b, a_u,
    omega_u ~ N(0, 1);  hidden layers, PAL-B's f and p_k ~ N(as drawn, the variance of that draw)

Weights sum to one, so an ideal point is a mixture of K prototypical ones (arXiv 2406.08469); in
PAL-A |a|^2 cancels in a margin. The shared part of PAL-B is no parameter: it is integrated out, and
what is left is a prior that couples the K prototypes (``held.deviating``). Its reward is an inner
product and no angle, for the length of an ideal point says how sure it is. Where a vote is an
answer, Agree or Disagree, a_u is how readily the user agrees. ``size`` stands for what is not known
of a thing (``pal.train.priors``). Shapes: B rows, D features, K prototypes, H latent dimension, C
vectors.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from pal.train.heads.drawn import directions, drawn
from pal.train.heads.head import Head, Prepared
from pal.train.heads.held import HeldMLPs, deviating, moved
from pal.train.heads.mlp import Architecture, MLPs
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import ReadyWeights

START = 0.5
"""spread of the first user logits: at zero all prototypes would be alike for ever"""
FAR = 8.0
"""how far PAL-A's first ideal points lie, in units of what items are apart: -|z|^2, which users do
not differ in, then bends rewards little"""
First = dict[str, Tensor]


class ShrunkHead(Head):
    """A reward that is linear in the user's vector [a_u, w_u]."""

    has_residuals: ClassVar[bool] = True
    is_linear: ClassVar[bool] = True
    side_D: Tensor
    size: Tensor

    def __init__(
        self,
        dim: int,
        users: int,
        *,
        k: int = 2,
        latent_dim: int | None = None,
        mlp: str = "mlp2-gelu-dropout0",
        sigma: float = 1.0,
    ) -> None:
        super().__init__()
        self.k, self.latent_dim, self.sigma = k, latent_dim or dim, sigma
        self.architecture = Architecture.parse(mlp)
        self.item_scale = Standardiser(dim)
        self.users: ReadyWeights = ReadyWeights(users, k)
        self.users.logits.data[:, 1:] = drawn(users, k, lambda one_UK: START * one_UK)
        self.register_buffer("side_D", torch.zeros(dim))
        self.register_buffer("size", torch.tensor(1.0))
        self.make_maps(dim)

    @abstractmethod
    def make_maps(self, dim: int) -> None:
        """Make what places items and what the prototypes are."""

    @abstractmethod
    def terms(self, prompt_BD: Tensor | None, item_BD: Tensor) -> Tensor:
        """Return R_k of rows, (B, K)."""

    @abstractmethod
    def fit(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> None:
        """Take the sizes of features from pairs of the training."""

    @abstractmethod
    def first_values(self) -> First:
        """Return what is held near its first values, by name; to be copied before training."""

    @abstractmethod
    def surprise(self, first: First) -> Tensor:
        """Return the negative log prior of all parameters, up to a constant."""

    def all_terms(self, prompt_BD: Tensor | None, item_BD: Tensor) -> Tensor:
        """Return what a user's vector is multiplied with, (B, 1 + K)."""
        side_B1 = (self.item_scale(item_BD) @ self.side_D).unsqueeze(1)
        return torch.cat([side_B1, self.terms(prompt_BD, item_BD)], dim=1) / self.size

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        return (self.all_terms(prompt_BD, item_BD) * vector_BR).sum(dim=1)

    def margin(
        self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor, vector_BR: Tensor
    ) -> Tensor:
        (term_BR,) = self.prepare(prompt_BD, first_BD, second_BD)
        assert term_BR is not None
        return (term_BR * vector_BR).sum(dim=1)

    def prepare(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> Prepared:
        """Reduce pairs to what vectors are multiplied with."""
        first_BR = self.all_terms(prompt_BD, first_BD)
        return (first_BR - self.all_terms(prompt_BD, second_BD),)

    def prepared_margin(self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor) -> Tensor:
        return self.margin_and_slope(prepared, vector_UR, user_B)[0]

    def margins_of_each(self, prepared: Prepared, vector_CR: Tensor) -> Tensor:
        (term_BR,) = prepared
        assert term_BR is not None
        return term_BR @ vector_CR.T

    def margin_and_slope(
        self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        (term_BR,) = prepared
        assert term_BR is not None
        return (term_BR * vector_UR[user_B]).sum(dim=1), term_BR

    def moderate(self, size: float) -> None:
        self.size.fill_(size)

    def _users_surprise(self) -> Tensor:
        return 0.5 * self.users.logits.square().sum()


class ShrunkPalB(ShrunkHead):
    """PAL-B under priors."""

    uses_prompt: bool = True

    def make_maps(self, dim: int) -> None:
        self.prompt_scale = Standardiser(dim)
        self.f = MLPs(1, dim, self.latent_dim, self.architecture)
        self.g = HeldMLPs(self.k, dim, self.latent_dim, self.architecture)

    def terms(self, prompt_BD: Tensor | None, item_BD: Tensor) -> Tensor:
        assert prompt_BD is not None, "PAL-B needs prompts"
        placed_BH: Tensor = self.f(self.g.gain * self.item_scale(item_BD))[0]
        placed_BH = nn.functional.normalize(placed_BH, dim=1)
        return torch.einsum("bh,kbh->bk", placed_BH, self.g(self.prompt_scale(prompt_BD)))

    def fit(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> None:
        assert prompt_BD is not None, "PAL-B needs prompts"
        self.g.fit(self.prompt_scale(prompt_BD.unique(dim=0)))

    def first_values(self) -> First:
        of_g = {f"g.{name}": value for name, value in self.g.hidden().items()}
        return {**of_g, **{f"f.{name}": value for name, value in self.f.named_parameters()}}

    def surprise(self, first: First) -> Tensor:
        shared = deviating(self.g.out_CHF, self.sigma) + deviating(self.g.bias_CH, self.sigma)
        now: First = dict(self.first_values())
        return shared + moved(now, first) + self._users_surprise()

    def roles(self) -> dict[str, list[nn.Parameter]]:
        maps = [*self.f.parameters(), *self.g.parameters()]
        return {"maps": maps, "users": list(self.users.parameters())}


class ShrunkPalA(ShrunkHead):
    """PAL-A under priors, with the learner Pw: prototypes live in the latent space."""

    def make_maps(self, dim: int) -> None:
        self.f = HeldMLPs(1, dim, self.latent_dim, self.architecture)
        way_KH = directions(1 + self.k, self.latent_dim)
        # 2 <f, p_0> has a variance of about one, 2 <f, delta_k> of sigma^2
        self.prototypes_KH = nn.Parameter(0.5 * FAR * (way_KH[:1] + self.sigma * way_KH[1:]))

    def terms(self, prompt_BD: Tensor | None, item_BD: Tensor) -> Tensor:
        placed_BH: Tensor = self.f(self.item_scale(item_BD))[0]
        square_B1 = placed_BH.square().sum(dim=1, keepdim=True)
        return 2.0 * placed_BH @ self.prototypes_KH.T - square_B1

    def fit(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> None:
        is_vote = bool(self.side_D.any())
        other_BD = self.item_scale(second_BD) if is_vote else None
        self.f.fit(self.item_scale(first_BD), other_BD)

    def first_values(self) -> First:
        hidden = {f"f.{name}": value for name, value in self.f.hidden().items()}
        return {**hidden, "prototypes_KH": self.prototypes_KH}

    def surprise(self, first: First) -> Tensor:
        now: First = dict(self.first_values())
        away_KH = now.pop("prototypes_KH") - first["prototypes_KH"]
        prototypes = 2.0 * self.latent_dim / (FAR * self.sigma) ** 2 * away_KH.square().sum()
        mapped = 0.5 * FAR**2 * (self.f.out_CHF.square().sum() + self.f.bias_CH.square().sum())
        return mapped + prototypes + moved(now, first) + self._users_surprise()

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "maps": list(self.f.parameters()),
            "prototypes": [self.prototypes_KH],
            "users": list(self.users.parameters()),
        }


SHRUNK: dict[str, type[ShrunkHead]] = {"pal-a": ShrunkPalA, "pal-b": ShrunkPalB}
"""what stands for a head under priors"""
__all__ = ["SHRUNK", "First", "ShrunkHead", "ShrunkPalA", "ShrunkPalB"]
