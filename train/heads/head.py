"""What every head offers, and what a new one must bring.

A head computes r_u(prompt, item), a scalar per row, from features and the user's *vector*; its user
table turns the numbers of users it was trained on into vectors. A user outside the table brings a
vector of its own. Shapes: B rows, D features, R numbers of a vector (K prototypes for PAL), N
users, U users at hand, C vectors to compare, H latent dimension.

A new head is a subclass of ``Head`` in a file of this folder. It must have

- ``name``, by which ``train.head`` chooses it;
- a constructor ``(dim, users, *, ...)`` that sets ``self.users`` to a table of N users: ``NoUsers``
  where all are alike, ``UserVectors``, ``UserWeights``, or one of its own. Keyword-only arguments
  named like settings of ``train:`` (``k``, ``latent_dim``, ``mlp``, ...) take their values, the
  default standing for null; others keep their default. A value that cannot be used raises
  ValueError with a sentence that names the argument: ``k = 3 must be even``;
- ``reward``, the equation. A term that depends on the user and the prompt alone, such as a bias of
  each user, cancels in a margin and cannot be learned from comparisons: leave it out.

It may have

- ``uses_prompt = True``, if ``reward`` reads the prompt's feature. Otherwise ``prompt_BD`` is None
  in training, and the prompt is part of the items' text;
- ``item_scale`` and ``prompt_scale``, Standardisers: training fits them to the training pairs'
  items and prompts before anything else;
- ``roles``, if not all parameters apart from the users' are maps, or ``upper_limits``;
- the base ``MappingHead``, with ``of_items`` and ``of_prompts``, what it computes of an item or a
  prompt alone, and ``prepare_mapped``, which puts them together: each distinct thing is then
  computed once;
- ``prepare`` and ``prepared_margin``, together, and ``margins_of_each`` or ``margin_and_slope``:
  quicker ways to what the methods here compute. They must give the same numbers;
- ``is_solved = True`` and a function in ``train/solve/`` that finds its parameters without gradient
  steps, or ``is_amortised = True`` and ``infer``, which reads a new user's answers in one pass.

Many heads of one shape are trained at once by ``torch.func.vmap``, so ``margins`` must not look at
values (no ``if tensor > 0``) nor change buffers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from pal.train.heads.things import Things
from pal.train.heads.users import UserTable

Prepared = tuple[Tensor | None, ...]
Mapped = tuple[Tensor, ...]
"""what is computed of things alone, a row for each"""


class Head(nn.Module, ABC):
    """A reward on features."""

    name: ClassVar[str]
    """what ``train.head`` calls it; classes that are only shared by heads have none"""
    uses_prompt: bool = False
    """whether it reads the prompt's feature; a head that may or may not says so of itself"""
    is_solved: ClassVar[bool] = False
    """whether ``pal.train.solve`` finds its parameters, instead of gradient steps"""
    has_residuals: ClassVar[bool] = False
    """whether training under ``train.priors`` gives a residual to each thing that is judged, and
    ``moderate`` says later that those of other things are not known"""
    is_linear: ClassVar[bool] = False
    """whether rewards are linear in the vector, so that the mean user has the mean reward"""
    is_amortised: ClassVar[bool] = False
    """whether ``infer`` adapts it, instead of an optimisation over the raw numbers"""
    can_be_rounded: ClassVar[bool] = False
    """whether training steps may read its matrices in bfloat16 (``arithmetic.Multiplying``)"""
    users: UserTable

    @abstractmethod
    def reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_BR: Tensor) -> Tensor:
        """Return r_u(prompt, item), (B,)."""

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Return every parameter once, by role, which decides its learning rate: ``maps``,
        ``prototypes``, ``users`` or ``scale``. Weight decay acts on maps alone."""
        users = list(self.users.parameters())
        known = {id(parameter) for parameter in users}
        return {"maps": [p for p in self.parameters() if id(p) not in known], "users": users}

    def mean_reward(self, prompt_BD: Tensor | None, item_BD: Tensor, vector_NR: Tensor) -> Tensor:
        """Return the mean of the rewards of N users, (B,): what a stranger's reward is.

        It is not the reward of the mean vector, where nobody may be.
        """
        first_R, *others = vector_NR
        total_B = self.reward(prompt_BD, item_BD, first_R.expand(len(item_BD), -1))
        for vector_R in others:
            total_B = total_B + self.reward(prompt_BD, item_BD, vector_R.expand(len(item_BD), -1))
        return total_B / len(vector_NR)

    def margin(
        self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor, vector_BR: Tensor
    ) -> Tensor:
        """Return r_u(first) - r_u(second), (B,); positive means that the first is preferred."""
        first = self.reward(prompt_BD, first_BD, vector_BR)
        return first - self.reward(prompt_BD, second_BD, vector_BR)

    def forward(
        self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor, user_B: Tensor
    ) -> Tensor:
        """Return the margins of users of the table, (B,)."""
        return self.margins(Things.of(prompt_BD, first_BD, second_BD), user_B)

    def margins(self, things: Things, user_B: Tensor) -> Tensor:
        """Return the same of things, each distinct one computed once, (B,)."""
        prepared = self.prepare_mapped(*self.mapped(things))
        each = torch.arange(len(user_B), device=user_B.device)
        return self.prepared_margin(prepared, self.users(user_B), each)

    def of_prompts(self, prompt_PD: Tensor) -> Mapped:
        """Compute what needs only the prompt."""
        return (prompt_PD,)

    def of_items(self, item_TD: Tensor) -> Mapped:
        """Compute what needs only the item, whoever the user and whatever the prompt is."""
        return (item_TD,)

    def mapped(self, things: Things) -> tuple[Mapped | None, Mapped, Mapped]:
        """Return ``of_prompts`` and ``of_items`` of the prompts, first and second items, each with
        B rows."""
        prompt = None
        if things.prompt is not None:
            prompt = tuple(map(things.prompt.each, self.of_prompts(things.prompt.values)))
        both = [things.both(value) for value in self.of_items(things.item.values)]
        return prompt, tuple(first for first, _ in both), tuple(second for _, second in both)

    def prepare_mapped(self, prompt: Mapped | None, first: Mapped, second: Mapped) -> Prepared:
        """Return ``prepare`` of pairs from what was computed of their prompts and items, each with
        B rows."""
        return self.prepare(None if prompt is None else prompt[0], first[0], second[0])

    def prepare(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> Prepared:
        """Compute all that margins need of pairs whoever the user is, each with B rows: once per
        adaptation."""
        return prompt_BD, first_BD, second_BD

    def prepared_margin(self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor) -> Tensor:
        """Return the margins of prepared pairs for U users' vectors, (B,); ``user_B`` says whose
        each pair is."""
        prompt, first, second = prepared
        assert first is not None
        assert second is not None
        return self.margin(prompt, first, second, vector_UR[user_B])

    def margins_of_each(self, prepared: Prepared, vector_CR: Tensor) -> Tensor:
        """Return the margins of all prepared pairs under each of C vectors, (B, C)."""
        rows = next(len(value) for value in prepared if value is not None)
        columns = []
        for c in range(len(vector_CR)):
            user_B = torch.full((rows,), c, dtype=torch.long, device=vector_CR.device)
            columns.append(self.prepared_margin(prepared, vector_CR, user_B))
        return torch.stack(columns, dim=1)

    def margin_and_slope(
        self, prepared: Prepared, vector_UR: Tensor, user_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return ``prepared_margin`` and its derivatives by the own user's vector, (B,) and (B, R).

        Rows are sorted by user. A pair depends on its own user alone, so one backward pass through
        a vector for each row gives all derivatives. Heads with a closed form override this.
        """
        with torch.enable_grad():
            own_BR = vector_UR[user_B].detach().requires_grad_()
            each = torch.arange(len(user_B), device=user_B.device)
            margin = self.prepared_margin(prepared, own_BR, each)
            if not own_BR.shape[1]:
                return margin.detach(), own_BR.detach()
            (slope_BR,) = torch.autograd.grad(margin.sum(), own_BR)
        return margin.detach(), slope_BR

    def infer(self, prepared: Prepared, label: Tensor, user_B: Tensor, users: int) -> Tensor:
        """Return new users' vectors by one pass over their answers, (U, R); only for heads that say
        ``is_amortised``."""
        raise NotImplementedError

    def moderate(self, size: float) -> None:
        """Divide all rewards by a number, in place; only for heads that say ``has_residuals``."""
        raise NotImplementedError

    def upper_limits(self) -> dict[str, float]:
        """Return the parameters that must be brought back after a step, by name, with their largest
        value."""
        return {}

    @torch.no_grad()
    def constrain(self) -> None:
        """Bring parameters back into their range after a step."""
        parameters = dict(self.named_parameters())
        for name, limit in self.upper_limits().items():
            parameters[name].clamp_(max=limit)


class MappingHead(Head):
    """A head that computes most of its reward from items alone and from prompts alone."""

    def prepare(self, prompt_BD: Tensor | None, first_BD: Tensor, second_BD: Tensor) -> Prepared:
        return self.prepare_mapped(*self.mapped(Things.of(prompt_BD, first_BD, second_BD)))

    @abstractmethod
    def prepare_mapped(self, prompt: Mapped | None, first: Mapped, second: Mapped) -> Prepared:
        """Return what margins need of pairs from ``of_prompts`` and ``of_items``."""
