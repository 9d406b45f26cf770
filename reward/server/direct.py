"""``POST /v1/score`` without the layers of the framework: they take longer than all the rest of a
request of one row. What is answered is what FastAPI's route answers, which the document shows."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import TypeAdapter, ValidationError

from pal.reward.server.body import parsed, refusal_of
from pal.reward.server.schemas import ScoreReply, ScoreRequest
from pal.reward.server.service import Service, require_count

PATH = "/v1/score"
_REQUEST = TypeAdapter(ScoreRequest)
NOTHING_SENT = {"type": "missing", "loc": ("body",), "msg": "Field required"}


class _Route:
    """What the counters call it."""

    path_format = PATH


class Direct:
    """ASGI middleware that answers one route itself."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_ours = scope["type"] == "http" and (scope["method"], scope["path"]) == ("POST", PATH)
        if not is_ours:
            await self.app(scope, receive, send)
            return
        scope["route"] = _Route
        try:
            reply = await answer(self.service, await _body_of(receive))
        except HTTPException as error:
            content = {"detail": error.detail}
            reply = JSONResponse(content, error.status_code, headers=error.headers)
        except RequestValidationError as error:
            reply = refusal_of(error)
        await reply(scope, receive, send)


async def answer(service: Service, raw: bytes) -> Response:
    """Return the reply to a body; raises HTTPException and RequestValidationError."""
    if not raw:
        raise RequestValidationError([NOTHING_SENT])
    sent = await parsed(raw)
    try:
        asked = _REQUEST.validate_python(sent, from_attributes=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RequestValidationError(
            [{**problem, "loc": ("body", *problem["loc"])} for problem in found]
        ) from error
    reply = await score(service, asked)
    return Response(reply.model_dump_json(), media_type="application/json")


async def score(service: Service, body: ScoreRequest) -> ScoreReply:
    """Return one reward per prompt and response; raises HTTPException."""
    count = len(body.responses)
    users = body.users if isinstance(body.users, list) else [body.users] * count
    for name, values in (("prompts", body.prompts), ("users", users)):
        require_count(name, len(values), count, "responses", "send as many")
    found = await service.score(body.prompts, body.responses, users)
    return ScoreReply(rewards=found.rewards, errors=found.errors, unknown_users=found.strangers)


async def _body_of(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HTTPException(400, "the body did not arrive")  # nobody is there to read it
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
