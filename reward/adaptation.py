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


@torch.no_grad()
def vector_from_answers(model: RewardModel, answers: Sequence[Answer]) -> Tensor:
    """Return the vector of a new user, (R,), the maximum a posteriori of some answers.

    Raises RewardError for heads and exports that have no users to add.
    """
    head, prior = model.head, _require_prior(model)
    if not answers:
        raise RewardError("adapting a user needs at least one answer")
    rows = [row for number, answer in enumerate(answers) for row in _rows(model, number, answer)]
    items, prompts, failures = model.features(rows)
    if failures:
        row = min(failures)
        raise RewardError(f"answer {row // 2} cannot be read: {failures[row]}")
    device = model.encoder.device
    values = items.to(device)
    prompt = None if prompts is None else prompts[::2].to(device)
    prepared = head.prepare(prompt, values[::2], values[1::2])
    labels = [answer.label for answer in answers]
    label = torch.tensor(labels, dtype=torch.float32, device=device)
    user = torch.zeros(len(answers), dtype=torch.long, device=device)
    if head.is_amortised:
        return head.infer(prepared, label, user, 1)[0]
    here = replace(
        prior,
        mean=prior.mean.to(device),
        precision=prior.precision.to(device),
        centres=prior.centres.to(device),
    )
    return adapt_map(head, Answers(prepared, label, user, 1), here).vectors[0]


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


def _rows(model: RewardModel, number: int, answer: Answer) -> list[Row]:
    if not 0.0 <= answer.label <= 1.0:
        raise RewardError(f"answer {number} has label {answer.label}; give one from 0 to 1")
    try:
        return [model.row(answer.prompt, item) for item in (answer.first, answer.second)]
    except PalError as error:
        raise RewardError(f"answer {number} cannot be read: {error}") from error
