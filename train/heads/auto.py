"""``auto``: PAL-B with a taste that all share, shrunk deviations from it, and K = 8.

    m_u(t)  = a_u + S(t) + sum_k w_uk D_k(t)                  w_u = softmax(omega_u)
    S, D    = k(t, landmarks) @ maps + offsets + residuals of t, where t is known
    r_u     = m_u(t) / sqrt(1 + pi var_u(t) / 8)              var: of residuals that are not known

A thing t is what is judged. Where the same two answers are given to all prompts (Agree and
Disagree, by themselves or behind the prompt), t is the prompt, the reward of an answer is plus or
minus half of m, and a_u is how readily the user agrees. Else t is an item, or an item under its
prompt, and there is no a_u. The weights sum to one, so S + D_k are K prototypical maps from prompt
to preference: this is PAL-B (arXiv 2406.08469, method.md 1.4) in one latent dimension, with priors.
``pal.train.solve.auto`` finds the numbers. Shapes: B rows, D features, L landmarks, K prototypes, C
vectors.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from pal.train.heads.head import Head, Prepared
from pal.train.heads.landmarks import Known, Landmarks
from pal.train.heads.standardise import Standardiser
from pal.train.heads.users import ReadyWeights

Reads = Literal["prompt", "items", "both"]
SHARPER = 2.0
"""a side that is told half as clearly as by the training's answers is still whole"""
SHARED_VARIANCE = 1.0
"""of the shared residual; that of a deviation is tau^2"""


class Auto(Head):
    """``reads``: what is judged; prompt: the prompt, by one of two answers; items: an item; both:
    an item under a prompt."""

    name: ClassVar[str] = "auto"
    is_solved: ClassVar[bool] = True
    tau: Tensor
    side_item_D: Tensor
    side_prompt_D: Tensor
    side_base: Tensor
    """how an answer's side follows from features, where prompts are judged"""

    def __init__(self, dim: int, users: int, *, k: int = 8, reads: Reads | None = None) -> None:
        super().__init__()
        reads = reads or "items"  # the dataset decides before (pal.train.build.settled)
        if reads not in get_args(Reads):
            raise ValueError(f"reads = {reads!r} must be one of {', '.join(get_args(Reads))}")
        self.reads: Reads = reads
        self.uses_prompt = reads != "items"
        self.item_scale = Standardiser(dim)
        if self.uses_prompt:
            self.prompt_scale = Standardiser(dim)
        self.users = ReadyWeights(users, k)
        width = 2 * dim if reads == "both" else dim
        self.landmarks = Landmarks(width)
        self.known = Known(width, 1 + k)
        self.maps_LM = nn.Parameter(torch.zeros(0, 1 + k))
        self.offsets_M = nn.Parameter(torch.zeros(1 + k))
        self.register_buffer("tau", torch.tensor(0.0))
        self.register_buffer("side_item_D", torch.zeros(dim))
        self.register_buffer("side_prompt_D", torch.zeros(dim))
        self.register_buffer("side_base", torch.tensor(0.0))

    def things(self, prompt_BD: Tensor | None, item_BD: Tensor) -> Tensor:
        """Return the standardised features of what is judged, (B, D) or, for both, (B, 2 D)."""
        if self.reads == "items":
            return self.item_scale(item_BD)
        assert prompt_BD is not None, "this head reads prompts"
        if self.reads == "prompt":
            return self.prompt_scale(prompt_BD)
        item = self.item_scale(item_BD)
        # what fits a prompt shows in products of features; of a mean squared norm of one again
        fits = math.sqrt(item.shape[1]) * item * self.prompt_scale(prompt_BD)
        return torch.cat([item, fits], dim=1) / math.sqrt(2.0)

    def sides(self, prompt_BD: Tensor, item_BD: Tensor) -> Tensor:
        """Return which of the two answers items are, 1/2 or -1/2, (B,); less for what is
        neither."""
        item, prompt = self.item_scale(item_BD), self.prompt_scale(prompt_BD)
        side_B = item @ self.side_item_D + prompt @ self.side_prompt_D + self.side_base
        return (SHARPER * side_B).clamp(-0.5, 0.5)

    def tastes(self, thing_BX: Tensor) -> tuple[Tensor, Tensor]:
        """Return S and D_k of things, (B, 1 + K), and for how many things of a margin the residual
        is not known, (B,): of one with few answers a part."""
        residual_BM, known_B = self.known(thing_BX)
        taste_BM = self.landmarks(thing_BX) @ self.maps_LM + self.offsets_M + residual_BM
        compared = 1.0 if self.reads == "prompt" else 2.0
        return taste_BM, compared * (1.0 - known_B)

    def terms(self, prompt_BD: Tensor | None, item_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a user's vector is multiplied with, (B, 1 + K), the same for everybody,
        (B,), side by side, (B, 2 + K); and how much is not known, (B,)."""
        taste_BM, dropped_B = self.tastes(self.things(prompt_BD, item_BD))
        if self.reads == "prompt":
            assert prompt_BD is not None
            side_B1 = self.sides(prompt_BD, item_BD).unsqueeze(1)
            return torch.cat([side_B1, side_B1 * taste_BM], dim=1), dropped_B
        return torch.cat([torch.zeros_like(taste_BM[:, :1]), taste_BM], dim=1), dropped_B

    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        return self._value(*self.terms(prompt_BD, item_BD), vector_BR)

    def mean_reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_NR: Tensor) -> Tensor:
        term_BM, dropped_B = self.terms(prompt_BD, item_BD)
        return self._of_each(term_BM, dropped_B, vector_NR).mean(dim=1)

    def _of_each(self, term_BM: Tensor, dropped_B: Tensor, vector_CR: Tensor) -> Tensor:
        """Return ``_value`` of each row for each of C vectors, (B, C)."""
        one_C1 = torch.ones_like(vector_CR[:, :1])
        coefficient_CM = torch.cat([vector_CR[:, :1], one_C1, vector_CR[:, 1:]], dim=1)
        square_C = vector_CR[:, 1:].square().sum(dim=1)
        return term_BM @ coefficient_CM.T / self._size(dropped_B.unsqueeze(1), square_C)

    def _value(self, term_BM: Tensor, dropped_B: Tensor, vector_BR: Tensor) -> Tensor:
        """Return a_u, S and D_k of rows put together and moderated, (B,)."""
        ready_B1, weight_BK = vector_BR[:, :1], vector_BR[:, 1:]
        coefficient_BM = torch.cat([ready_B1, torch.ones_like(ready_B1), weight_BK], dim=1)
        size_B = self._size(dropped_B, weight_BK.square().sum(dim=1))
        return (term_BM * coefficient_BM).sum(dim=1) / size_B

    def _size(self, dropped: Tensor, square: Tensor) -> Tensor:
        variance = dropped * (SHARED_VARIANCE + self.tau.square() * square)
        return torch.sqrt(1.0 + torch.pi * variance / 8.0)

    def margin(
        self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor, vector_BR: Tensor
    ) -> Tensor:
        each = torch.arange(len(first_BD), device=first_BD.device)
        return self.prepared_margin(self.prepare(prompt_BD, first_BD, second_BD), vector_BR, each)

    def prepare(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> Prepared:
        """Reduce pairs to the terms of both items; where the prompt is judged, to one term."""
        if self.reads != "prompt":
            return *self.terms(prompt_BD, first_BD), *self.terms(prompt_BD, second_BD)
        assert prompt_BD is not None, "this head reads prompts"
        taste_BM, dropped_B = self.tastes(self.things(prompt_BD, first_BD))
        first_B, second_B = (self.sides(prompt_BD, item) for item in (first_BD, second_BD))
        side_B1 = (first_B - second_B).unsqueeze(1)
        return torch.cat([side_B1, side_B1 * taste_BM], dim=1), dropped_B

    def prepared_margin(self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor) -> Tensor:
        own = vector_UR[user_B]
        values = [self._value(*pair, own) for pair in _pairs_of(prepared)]
        return values[0] if len(values) == 1 else values[0] - values[1]

    def margins_of_each(self, prepared: Prepared, vector_CR: Tensor) -> Tensor:
        values = [self._of_each(*pair, vector_CR) for pair in _pairs_of(prepared)]
        return values[0] if len(values) == 1 else values[0] - values[1]

    def margin_and_slope(
        self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        own_BR = vector_UR[user_B]
        margin, slope, sign = own_BR.new_zeros(len(own_BR)), torch.zeros_like(own_BR), 1.0
        for term_BM, dropped_B in _pairs_of(prepared):
            value_B = self._value(term_BM, dropped_B, own_BR)
            weight_BK = own_BR[:, 1:]
            size_B1 = self._size(dropped_B, weight_BK.square().sum(dim=1)).unsqueeze(1)
            shrinks_BK = (torch.pi / 8.0) * (dropped_B * self.tau.square()).unsqueeze(1) * weight_BK
            own_slope = (
                term_BM[:, 2:] / size_B1 - value_B.unsqueeze(1) * shrinks_BK / size_B1.square()
            )
            slope = slope + sign * torch.cat([term_BM[:, :1] / size_B1, own_slope], dim=1)
            margin, sign = margin + sign * value_B, -1.0
        return margin, slope

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Take the number of landmarks and of known things from what is loaded."""
        for owner, name in (
            (self, "maps_LM"), (self.landmarks, "points_LD"), (self.landmarks, "metric_RD"),
            (self.known, "points_TD"), (self.known, "residuals_TC"), (self.known, "sure_T"),
        ):  # fmt: skip
            inner = {id(self.landmarks): "landmarks.", id(self.known): "known."}.get(id(owner), "")
            found = state_dict.get(f"{prefix}{inner}{name}")
            present = getattr(owner, name)
            if found is not None and found.shape[1:] == present.shape[1:]:
                present.data = present.data.new_zeros(found.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class OneTaste(Auto):
    """``one-taste``: the same without deviations: what all share, and how readily each user
    agrees. What ``auto`` gains over it is plurality, and nothing else."""

    name: ClassVar[str] = "one-taste"

    def __init__(self, dim: int, users: int, *, reads: Reads | None = None) -> None:
        super().__init__(dim, users, k=1, reads=reads)


def _pairs_of(prepared: Prepared) -> list[tuple[Tensor, Tensor]]:
    """Return terms and what is not known, of one thing or of two."""
    values = [value for value in prepared if value is not None]
    return list(zip(values[::2], values[1::2], strict=True))
