"""PAL-A: users are mixtures of K prototypical ideal points (arXiv 2406.08469; method.md 1.3).

w   = softmax(Omega[user])            (B, K)
a   = f(w P), or f(P) w, or P w       (B, H)
z   = f(h(prompt, item))              (B, H)    the prompt enters through the item's text
r   = -|z - a|^2                      (B,)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from pal.config import TrainConfig
from pal.train.heads.head import Prepared
from pal.train.heads.ideal_point import IdealPointHead
from pal.train.heads.users import by_user

USERS_AT_ONCE = 512


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

    def margin_and_slope(self, prepared: Prepared, code_UR: Tensor, user_B: Tensor) -> tuple[Tensor, Tensor]:
        """For f(Pw), f is differentiated once per user and not once per pair."""
        if self.learner != "f(Pw)":
            points_KH = self.fixed_points()
            ideal_UH = code_UR @ points_KH
            return self._by_blocks(prepared, ideal_UH, points_KH.T.expand(len(code_UR), -1, -1), user_B)
        base_UD = code_UR @ self.prototypes_KD

        def column(direction_D: Tensor) -> tuple[Tensor, Tensor]:
            primal, tangent = jvp(lambda x: self.f(x)[0], (base_UD,), (direction_D.expand_as(base_UD),))[:2]
            return primal, tangent

        ideal_UH, jacobian_KUH = vmap(column, out_dims=(None, 0))(self.prototypes_KD)  # type: ignore[arg-type]
        return self._by_blocks(prepared, ideal_UH, jacobian_KUH.permute(1, 2, 0), user_B)

    def _by_blocks(
        self, prepared: Prepared, ideal_UH: Tensor, jacobian_UHK: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return margins and their slopes for users' ideal points and the points' derivatives, some users at a time."""
        first_BH, second_BH = prepared
        assert first_BH is not None
        assert second_BH is not None
        margin = first_BH.new_empty(len(user_B))
        slope = first_BH.new_empty(len(user_B), jacobian_UHK.shape[2])
        order = user_B.argsort(stable=True)
        count = torch.bincount(user_B, minlength=len(ideal_UH))
        stop = 0
        for users in torch.arange(len(ideal_UH), device=user_B.device).split(USERS_AT_ONCE):
            start, stop = stop, stop + int(count[users].sum())
            rows = order[start:stop]
            if not len(rows):
                continue
            first, second, ideal = first_BH[rows], second_BH[rows], ideal_UH[user_B[rows]]
            margin[rows] = self.compare(first, ideal) - self.compare(second, ideal)
            toward = (
                2.0 * (first - second)
                if self.score == "squared"
                else self.slope(first, ideal) - self.slope(second, ideal)
            )
            table, real = by_user(toward, user_B[rows] - users[0], len(users))
            slope[rows] = (table @ jacobian_UHK[users])[real]
        return margin, slope

    def roles(self) -> dict[str, list[nn.Parameter]]:
        return {
            "maps": list(self.f.parameters()),
            "prototypes": [self.prototypes_KD],
            "users": list(self.users.parameters()),
            "scale": self.scale_parameters(),
        }
