"""A new user from a few answers, live: the head, the encoder and the prior stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pal.errors import PalError, RewardError
from pal.items import Prompt
from pal.reward.audience import Newcomer
from pal.train.adapt.answers import Answers
from pal.train.adapt.map import adapt_map
from pal.train.adapt.prior import Prior, Priors
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

    def __init__(
        self,
        model: RewardModel,
        pairs: Sequence[Answer],
        failures: dict[int, str] | None = None,
    ) -> None:
        """Render the pairs; raises RewardError for the first one that cannot be read, or, where
        ``failures`` are given, puts the reason there, by pair, and goes on without it."""
        self.model = model
        self.failures = failures
        self.rows: list[Row] = []
        """two for each pair"""
        self.places: list[int] = []
        """which pair each two rows are"""
        for place, pair in enumerate(pairs):
            if not 0.0 <= pair.label <= 1.0:
                raise RewardError(
                    f"{self.what} {place} has label {pair.label}; give one from 0 to 1"
                )
            try:
                sides = [model.row(pair.prompt, side) for side in (pair.first, pair.second)]
            except PalError as error:
                self._refuse(place, str(error))
                continue
            self.rows += sides
            self.places.append(place)
        self.labels = [pairs[place].label for place in self.places]
        self.encoded = 0
        """rows"""
        self._items: list[Tensor] = []
        self._prompts: list[Tensor] = []

    @torch.no_grad()
    def encode(self, rows: int) -> None:
        """Encode that many further rows; raises RewardError for one that cannot be encoded. Where
        ``failures`` are kept it costs its pair, whose two rows must be encoded together."""
        some = self.rows[self.encoded : self.encoded + rows]
        items, prompts, failures = self.model.features(some)
        pair_of = [(self.encoded + row) // 2 for row in range(len(some))]
        odd = {pair_of[row] for row in failures}
        for row in sorted(failures):
            self._refuse(self.places[pair_of[row]], failures[row])
        good = torch.tensor([row for row, pair in enumerate(pair_of) if pair not in odd])
        if len(good):
            self._items.append(items[good])
            if prompts is not None:
                self._prompts.append(prompts[good])
        self.encoded += len(some)

    def prepared(self) -> Prepared:
        """Return the pairs as the head reads them, all encoded, without those that failed."""
        device = self.model.encoder.device
        values = torch.cat(self._items).to(device)
        prompt = torch.cat(self._prompts)[::2].to(device) if self._prompts else None
        return self.model.head.prepare(prompt, values[::2], values[1::2])

    def solve(self) -> Tensor:
        """Return what the pairs are encoded for."""
        raise NotImplementedError

    def _refuse(self, place: int, reason: str) -> None:
        if self.failures is None:
            raise RewardError(f"{self.what} {place} cannot be read: {reason}")
        self.failures.setdefault(place, reason)


class Questionnaire(ItemPairs):
    """A new user's answers on the way to a vector, and to who the user may be."""

    what: ClassVar[str] = "answer"

    def __init__(self, model: RewardModel, answers: Sequence[Answer]) -> None:
        """Raises RewardError for heads and exports that have no users to add, and for the first
        answer that cannot be read."""
        self.priors = _require_priors(model)
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
            prior = self.prior_of(len(self.labels))
            adapted = adapt_map(head, answers, prior, with_covariance=True)
            vector = adapted.vectors[0]
            if bool(torch.isfinite(vector).all()):
                self.newcomer = Newcomer.of_answers(head, answers, adapted)
        if not bool(torch.isfinite(vector).all()):
            raise RewardError("the answers give a vector with NaN or infinity; send others")
        return vector

    def prior_of(self, count: int) -> Prior:
        """Return the prior of somebody with ``count`` answers, where the head is."""
        return self.priors.of(count).to(self.model.encoder.device)


def vector_from_answers(model: RewardModel, answers: Sequence[Answer]) -> Tensor:
    """Return the vector of a new user, (R,), the maximum a posteriori of some answers.

    Raises RewardError for heads and exports that have no users to add.
    """
    asked = Questionnaire(model, answers)
    asked.encode(len(asked.rows))
    return asked.solve()


def _require_priors(model: RewardModel) -> Priors:
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
