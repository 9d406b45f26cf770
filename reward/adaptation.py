"""A new user from a few answers, live: the head, the encoder and the prior stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pal.errors import PalError, RewardError
from pal.items import Prompt
from pal.train.adapt.answers import Answers
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import Prior

if TYPE_CHECKING:
    from pal.reward.model import RewardModel, Row


@dataclass(frozen=True)
class Answer:
    """One user's comparison of two items under a prompt; ``label`` is P(first preferred)."""

    prompt: Prompt
    first: Any
    second: Any
    label: float = 1.0


class Questionnaire:
    """A new user's answers on the way to a vector: encoded some at a time, then solved for.

    A server encodes a few between two batches of others; ``vector_from_answers`` all at once.
    """

    def __init__(self, model: RewardModel, answers: Sequence[Answer]) -> None:
        """Render the answers; raises RewardError for heads and exports that have no users to add,
        and for the first answer that cannot be read."""
        self.model, self.prior = model, _require_prior(model)
        if not answers:
            raise RewardError("adapting a user needs at least one answer")
        self.labels = [answer.label for answer in answers]
        self.rows = [row for number, one in enumerate(answers) for row in _rows(model, number, one)]
        """two for each answer"""
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
            answer = (self.encoded + row) // 2
            raise RewardError(f"answer {answer} cannot be read: {failures[row]}")
        self._items.append(items)
        if prompts is not None:
            self._prompts.append(prompts)
        self.encoded += len(some)

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Return the user's vector, (R,), the maximum a posteriori of the answers, all encoded."""
        head, device = self.model.head, self.model.encoder.device
        values = torch.cat(self._items).to(device)
        prompt = torch.cat(self._prompts)[::2].to(device) if self._prompts else None
        prepared = head.prepare(prompt, values[::2], values[1::2])
        label = torch.tensor(self.labels, dtype=torch.float32, device=device)
        user = torch.zeros(len(label), dtype=torch.long, device=device)
        vector = self._infer(Answers(prepared, label, user, 1))
        if not bool(torch.isfinite(vector).all()):
            raise RewardError("the answers give a vector with NaN or infinity; send others")
        return vector

    def _infer(self, answers: Answers) -> Tensor:
        head, device = self.model.head, self.model.encoder.device
        if head.is_amortised:
            return head.infer(answers.prepared, answers.label, answers.user, 1)[0]
        here = replace(
            self.prior,
            mean=self.prior.mean.to(device),
            precision=self.prior.precision.to(device),
            centres=self.prior.centres.to(device),
        )
        return adapt_map(head, answers, here).vectors[0]


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


def _rows(model: RewardModel, number: int, answer: Answer) -> tuple[Row, Row]:
    if not 0.0 <= answer.label <= 1.0:
        raise RewardError(f"answer {number} has label {answer.label}; give one from 0 to 1")
    try:
        return model.row(answer.prompt, answer.first), model.row(answer.prompt, answer.second)
    except PalError as error:
        raise RewardError(f"answer {number} cannot be read: {error}") from error
