"""``POST /v1/interview``: what to ask a new user next, and what the answers so far tell.

Nothing is kept between two requests: each brings all questions, and the labels of those that are
answered. Who is to be known afterwards is adapted with the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastapi import APIRouter, HTTPException
from torch import Tensor

from pal.errors import PalError, RewardError
from pal.reward.adaptation import Questionnaire
from pal.reward.audience import Audience, Newcomer, People
from pal.reward.model import Answer, RewardModel
from pal.reward.server.batching import AnswersJob, cost_of
from pal.reward.server.body import BodyRoute, aside
from pal.reward.server.schemas import (
    InterviewReply,
    InterviewRequest,
    QuestionBody,
    QuestionsReply,
)
from pal.reward.server.service import LONGEST_REASON, Service
from pal.train.adapt.active import next_questions
from pal.train.adapt.answers import Answers
from pal.train.adapt.map import adapt_map


class Interview(Questionnaire):
    """Questions to a new user on the way to what is predicted of each, and to the next one."""

    what = "question"

    def __init__(
        self, model: RewardModel, questions: Sequence[Answer], is_answered: Sequence[bool]
    ) -> None:
        """Raises RewardError for heads and exports that have no users to add, and for the first
        question that cannot be read."""
        super().__init__(model, questions)
        self.is_answered = list(is_answered)
        self.next: int | None = None
        """the question whose answer tells most, once solved; None where all are answered"""
        self.before: list[float] = []
        """P(first preferred) of each question by somebody who was asked nothing"""
        self.vector: list[float] = []

    @torch.no_grad()
    def solve(self) -> Tensor:
        """Return P(first preferred) of each question, (n,), by the answers so far."""
        head, device = self.model.head, self.model.encoder.device
        label = torch.tensor(self.labels, dtype=torch.float32, device=device)
        everything = Answers(self.prepared(), label, torch.zeros_like(label).long(), 1)
        asked = torch.tensor(self.is_answered, device=device)
        known = everything.take(asked.nonzero().squeeze(1))
        stranger = self.model.users.anybody
        if head.is_amortised:
            vector, audience = self._of_amortised(known, stranger)
            self.next = next((n for n, is_done in enumerate(self.is_answered) if not is_done), None)
        else:
            adapted = adapt_map(head, known, self._prior_here(), with_covariance=True)
            vector = adapted.vectors[0]
            audience = Newcomer.of_answers(head, known, adapted) if len(known.label) else stranger
            row = int(next_questions(head, adapted, everything, asked)[0])
            self.next = row if row >= 0 else None
        now = audience.probability(head, everything.prepared)
        if not bool(torch.isfinite(now).all() & torch.isfinite(vector).all()):
            raise RewardError("the answers give NaN or infinity; send others")
        self.before = stranger.probability(head, everything.prepared).tolist()
        self.vector = vector.tolist()
        return now

    def _of_amortised(self, known: Answers, stranger: People) -> tuple[Tensor, Audience]:
        """Return the vector, and who the user may be, of a head that infers users in one pass."""
        if not len(known.label):
            return self.model.users.default, stranger
        vector = self.model.head.infer(known.prepared, known.label, known.user, 1)[0]
        return vector, People.of_one(vector)


def interview_routes(service: Service) -> APIRouter:
    """Return the routes."""
    router = APIRouter(route_class=BodyRoute, tags=["users"])

    @router.get("/v1/questions")
    async def questions() -> QuestionsReply:
        """Questions to begin an interview with; none where the server was given none."""
        return QuestionsReply(questions=service.questions)

    @router.post("/v1/interview")
    async def interview(body: InterviewRequest) -> InterviewReply:
        """Which question to ask a new user next, and what the answers so far tell; keeps
        nothing."""
        try:
            asked = await aside(read, body.questions)
        except PalError as error:
            raise HTTPException(422, str(error)[:LONGEST_REASON]) from error
        job = AnswersJob(asked, [cost_of(row, service.longest) for row in asked.rows])
        now = await service.ask(lambda: service.worker.submit_answers(job))
        return InterviewReply(
            next=asked.next, p=now.tolist(), p_before=asked.before, weights=asked.vector
        )

    def read(bodies: Sequence[QuestionBody]) -> Interview:
        pairs, is_answered = [], []
        for number, body in enumerate(bodies):
            try:
                first, second = service.item_of(body.first), service.item_of(body.second)
            except RewardError as error:
                raise RewardError(f"question {number} cannot be read: {error}") from error
            label = 0.5 if body.label is None else body.label
            pairs.append(Answer(body.prompt, first, second, label))
            is_answered.append(body.label is not None)
        asked = Interview(service.model, pairs, is_answered)
        service.require_modest(asked)
        return asked

    return router
