"""``POST /v1/interview``: what to ask a new user next, and what the answers so far tell.

Nothing is kept between two requests: each brings all questions, and the labels of those that are
answered. Who is to be known afterwards is adapted with the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fastapi import APIRouter, Response
from torch import Tensor

from pal.errors import RewardError
from pal.reward.adaptation import Questionnaire
from pal.reward.audience import Audience, Newcomer, People
from pal.reward.model import Answer, RewardModel
from pal.reward.server.body import BodyRoute
from pal.reward.server.schemas import (
    InterviewReply,
    InterviewRequest,
    QuestionBody,
    QuestionsReply,
)
from pal.reward.server.service import Service
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
            prior = self.prior_of(len(known.label))
            adapted = adapt_map(head, known, prior, with_covariance=True)
            vector = adapted.vectors[0]
            audience = Newcomer.of_answers(head, known, adapted) if len(known.label) else stranger
            row = int(next_questions(head, adapted, everything, asked)[0])
            self.next = row if row >= 0 else None
        now = audience.probability(head, everything.prepared)
        before = stranger.probability(head, everything.prepared)
        if not all(bool(found.isfinite().all()) for found in (now, before, vector)):
            raise RewardError("the answers give NaN or infinity; send others")
        self.before = before.tolist()
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

    questions_reply = QuestionsReply(questions=service.questions).model_dump_json().encode()

    @router.get("/v1/questions", response_model=QuestionsReply)
    async def questions() -> Response:
        """Questions to begin an interview with; none where the server was given none."""
        return Response(questions_reply, media_type="application/json")

    @router.post("/v1/interview")
    async def interview(body: InterviewRequest) -> InterviewReply:
        """Which question to ask a new user next, and what the answers so far tell; keeps
        nothing."""
        count = len(body.questions)
        asked, now = await service.solve(count, lambda: read(body.questions))
        return InterviewReply(
            next=asked.next, p=now.tolist(), p_before=asked.before, weights=asked.vector
        )

    def read(bodies: Sequence[QuestionBody]) -> Interview:
        pairs = []
        for number, body in enumerate(bodies):
            sides = service.reader.sides_of("question", number, body.first, body.second)
            pairs.append(Answer(body.prompt, *sides, 0.5 if body.label is None else body.label))
        asked = Interview(service.model, pairs, [body.label is not None for body in bodies])
        service.reader.require_modest(asked)
        return asked

    return router
