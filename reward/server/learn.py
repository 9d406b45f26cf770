"""``/v1/users/USER``: users are learned from a few answers, kept, and forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Body, HTTPException

from pal.errors import PalError
from pal.reward.adaptation import Questionnaire
from pal.reward.model import Answer
from pal.reward.server.body import BodyRoute
from pal.reward.server.schemas import AdaptReply, AdaptRequest, AnswerBody
from pal.reward.server.service import AGAIN, Service
from pal.users import user_name

LONGEST_ID = 1024
Result = TypeVar("Result")


def user_routes(service: Service) -> APIRouter:
    """Return the routes that learn and forget users."""
    router = APIRouter(tags=["users"], route_class=BodyRoute)

    @router.post("/v1/users/{user:path}/adapt")
    async def adapt(user: str, body: Annotated[AdaptRequest, Body()]) -> AdaptReply:
        """Learn a user from a few answers; kept over restarts."""
        name, answers = name_of_path(user), body.answers
        asked, vector = await service.solve(len(answers), lambda: questionnaire(answers))

        def keep() -> None:
            service.store.put(name, len(answers), vector, asked.newcomer)
            service.model.users.add(name, vector, asked.newcomer)

        await change(keep)
        weights = [round(float(weight), 6) for weight in vector]
        return AdaptReply(user=name, answers=len(answers), weights=weights)

    @router.delete("/v1/users/{user:path}")
    async def forget(user: str) -> dict[str, Any]:
        """Forget a user who was adapted here, on disk too."""
        name = name_of_path(user)

        def remove() -> bool:
            is_gone = service.store.remove(name)
            if is_gone:
                service.model.users.forget(name)
            return is_gone

        if not await change(remove):
            raise HTTPException(404, "this user was not adapted here")
        return {"user": name, "forgotten": True}

    def questionnaire(bodies: Sequence[AnswerBody]) -> Questionnaire:
        answers = [
            Answer(
                body.prompt,
                *service.reader.sides_of("answer", number, body.chosen, body.rejected),
                body.label,
            )
            for number, body in enumerate(bodies)
        ]
        asked = Questionnaire(service.model, answers)
        service.reader.require_modest(asked)
        return asked

    async def change(what: Callable[[], Result]) -> Result:
        """Change what is known of users, in the file first: one change after the other, and each to
        its end, so that file and memory agree."""
        try:
            return await asyncio.get_running_loop().run_in_executor(service.changes, what)
        except PalError as error:
            raise HTTPException(503, str(error), AGAIN) from error

    return router


def name_of_path(user: str) -> str:
    """Return the name of the user in a path; raises HTTPException for none."""
    name = user_name(user)
    if name is None:
        raise HTTPException(422, "the path names no user")
    if len(name) > LONGEST_ID:
        raise HTTPException(
            422, f"a user's id has {len(name):,} letters; give one of at most {LONGEST_ID:,}"
        )
    return name
