"""A new user from a few answers, live: the head, the encoder and the prior stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pal.errors import PalError, RewardError
from pal.items import Prompt
from pal.reward.audience import Audience, Newcomer
from pal.train.adapt.answers import Answers, rows_of
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import Prior
from pal.train.heads.head import Prepared

if TYPE_CHECKING:
    from pal.reward.model import RewardModel, Row


@dataclass(frozen=True)
class Answer:
    """One user's comparison of two items under a prompt; ``label`` is P(first preferred)."""

    prompt: Prompt
    first: Any
    second: Any
    label: float = 1.0


class ItemPairs:
    """Pairs of items on the way to something: encoded some at a time, then solved for.

    A server encodes a few between two batches of others' rows.
    """

    what: ClassVar[str]
    """the word for one of them"""

    def __init__(self, model: RewardModel, pairs: Sequence[Answer]) -> None:
        """Render the pairs; raises RewardError for the first one that cannot be read."""
        self.model = model
        self.labels = [pair.label for pair in pairs]
        self.rows = [
            row for n, pair in enumerate(pairs) for row in _rows(model, self.what, n, pair)
        ]
        """two for each pair"""
        self.encoded = 0
        """rows"""
        self._items: list[Tensor] = []
        self._prompts: list[Tensor] = []

    @torch.no_grad()
    def encode(self, rows: int) -> None:
        """Encode that many further rows; raises RewardError for one that cannot be encoded."""
        some = self.rows[self.encoded : self.encoded + rows]
        items, prompts, failures = self.model.features(some)
        if failures:
            row = min(failures)
            place = (self.encoded + row) // 2
            raise RewardError(f"{self.what} {place} cannot be read: {failures[row]}")
        self._items.append(items)
        if prompts is not None:
            self._prompts.append(prompts)
        self.encoded += len(some)

    def prepared(self) -> Prepared:
        """Return the pairs as the head reads them, all encoded."""
        device = self.model.encoder.device
        values = torch.cat(self._items).to(device)
        prompt = torch.cat(self._prompts)[::2].to(device) if self._prompts else None
        return self.model.head.prepare(prompt, values[::2], values[1::2])

    def solve(self) -> Tensor:
        """Return what the pairs are encoded for."""
        raise NotImplementedError


class Questionnaire(ItemPairs):
    """A new user's answers on the way to a vector, and to who the user may be."""

    what: ClassVar[str] = "answer"

    def __init__(self, model: RewardModel, answers: Sequence[Answer]) -> None:
        """Raises RewardError for heads and exports that have no users to add, and for the first
        answer that cannot be read."""
        self.prior = _require_prior(model)
        if not answers:
            raise RewardError("adapting a user needs at least one answer")
        super().__init__(model, answers)
        self.newcomer: Newcomer | None = None
        """known once the answers are solved; None where the vector tells all"""

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Return the user's vector, (R,), the maximum a posteriori of the answers, all encoded."""
        head, device = self.model.head, self.model.encoder.device
        label = torch.tensor(self.labels, dtype=torch.float32, device=device)
        user = torch.zeros(len(label), dtype=torch.long, device=device)
        answers = Answers(self.prepared(), label, user, 1)
        if head.is_amortised:
            vector = head.infer(answers.prepared, answers.label, answers.user, 1)[0]
        else:
            adapted = adapt_map(head, answers, self._prior_here(), with_covariance=True)
            vector = adapted.vectors[0]
            if bool(torch.isfinite(vector).all()):
                self.newcomer = Newcomer.of_answers(head, answers, adapted)
        if not bool(torch.isfinite(vector).all()):
            raise RewardError("the answers give a vector with NaN or infinity; send others")
        return vector

    def _prior_here(self) -> Prior:
        device = self.model.encoder.device
        return replace(
            self.prior,
            mean=self.prior.mean.to(device),
            precision=self.prior.precision.to(device),
            centres=self.prior.centres.to(device),
        )


class Comparisons(ItemPairs):
    """Pairs of items on the way to probabilities, each for an audience of its own."""

    what = "comparison"

    def __init__(
        self, model: RewardModel, pairs: Sequence[Answer], audiences: Sequence[Audience]
    ) -> None:
        super().__init__(model, pairs)
        self.audiences = list(audiences)

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Return P(first preferred) of each pair, (n,)."""
        prepared = self.prepared()
        found = torch.zeros(len(self.audiences))
        rows_of_each: dict[int, list[int]] = {}
        for row, audience in enumerate(self.audiences):
            rows_of_each.setdefault(id(audience), []).append(row)
        for rows in rows_of_each.values():
            some = rows_of(prepared, torch.tensor(rows, device=self.model.encoder.device))
            audience = self.audiences[rows[0]]
            found[rows] = audience.probability(self.model.head, some).cpu()
        return found


def vector_from_answers(model: RewardModel, answers: Sequence[Answer]) -> Tensor:
    """Return the vector of a new user, (R,), the maximum a posteriori of some answers.

    Raises RewardError for heads and exports that have no users to add.
    """
    asked = Questionnaire(model, answers)
    asked.encode(len(asked.rows))
    return asked.solve()


def _require_prior(model: RewardModel) -> Prior:
    if not model.head.users.logits.shape[1]:
        raise RewardError(
            f"head {model.head.name} is the same for everybody, so nobody can be adapted to; train "
            "pal-a"
        )
    if model.contents.prior is None:
        raise RewardError(
            "this export holds one fixed reward, so no user can be added; use pal export "
            "--population"
        )
    return model.contents.prior


def _rows(model: RewardModel, what: str, number: int, pair: Answer) -> tuple[Row, Row]:
    if not 0.0 <= pair.label <= 1.0:
        raise RewardError(f"{what} {number} has label {pair.label}; give one from 0 to 1")
    try:
        return model.row(pair.prompt, pair.first), model.row(pair.prompt, pair.second)
    except PalError as error:
        raise RewardError(f"{what} {number} cannot be read: {error}") from error
