"""The routes. Their OpenAPI document, at /docs, says what each takes and gives."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse

from pal.reward.server.guard import Guard
from pal.reward.server.schemas import (
    AdaptReply,
    AdaptRequest,
    OpenRlhfReply,
    OpenRlhfRequest,
    ScoreReply,
    ScoreRequest,
    response_of,
    user_of_label,
)
from pal.reward.server.service import Service


def build_app(service: Service) -> FastAPI:
    """Return the application round a service."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    metadata = service.model.metadata
    app = FastAPI(
        title="pal reward model",
        summary=f"Rewards of run {metadata.run}",
        version=metadata.pal_version,
        lifespan=life,
    )

    async def allowed(request: Request) -> None:  # not a thread of the pool for each request
        if service.token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_right = hmac.compare_digest(given.encode(), service.token.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    app.include_router(reward_routes(service), dependencies=[Depends(allowed)])
    app.include_router(user_routes(service), dependencies=[Depends(allowed)])
    app.include_router(metrics_route(service), dependencies=[Depends(allowed)])

    @app.get("/health", tags=["service"])
    async def health() -> dict[str, Any]:
        """Whether rewards can be had; needs no token and tells nothing of users."""
        status = "ok" if service.is_running else "starting"
        return {"status": status, "waiting": service.worker.waiting}

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        # without what was sent, which may be large, or NaN, which is no JSON
        found = [
            {key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()
        ]
        return JSONResponse({"detail": found}, 422)

    limit = service.settings.max_body_bytes
    app.add_middleware(Guard, metrics=service.metrics, max_body_bytes=limit)
    return app


def reward_routes(service: Service) -> APIRouter:
    """Return the routes that give rewards."""
    router = APIRouter()

    @router.post("/get_reward", tags=["OpenRLHF"])
    async def get_reward(body: OpenRlhfRequest) -> OpenRlhfReply:
        """OpenRLHF's remote reward. Empty lists are answered with empty lists."""
        if service.model.is_image:
            raise HTTPException(
                422, "this model rewards images, which OpenRLHF does not send; use /v1/score"
            )
        count = len(body.query)
        for name, values in (("prompts", body.prompts), ("labels", body.labels)):
            if values:
                _require_count(name, len(values), count, "queries", "send as many or none")
        prompts = body.prompts or [""] * count
        users = [user_of_label(label) for label in body.labels] or [None] * count
        items = [
            response_of(query, prompt) for query, prompt in zip(body.query, prompts, strict=True)
        ]
        rewards, _ = await service.score([prompt or None for prompt in prompts], items, users)
        known = [float(not service.model.users.is_stranger(user)) for user in users]
        scores = torch.tensor(rewards).sigmoid().tolist()
        return OpenRlhfReply(rewards=rewards, scores=scores, extra_logs={"pal_user_known": known})

    @router.post("/v1/score", tags=["rewards"])
    async def score(body: ScoreRequest) -> ScoreReply:
        """One reward per prompt and response, text or chat messages."""
        count = len(body.responses)
        users = body.users if isinstance(body.users, list) else [body.users] * count
        for name, values in (("prompts", body.prompts), ("users", users)):
            _require_count(name, len(values), count, "responses", "send as many")
        rewards, strangers = await service.score(body.prompts, body.responses, users)
        return ScoreReply(rewards=rewards, unknown_users=strangers)

    return router


def user_routes(service: Service) -> APIRouter:
    """Return the routes that learn and forget users."""
    router = APIRouter(tags=["users"])

    @router.post("/v1/users/{user:path}/adapt")
    async def adapt(user: str, body: Annotated[AdaptRequest, Body()]) -> AdaptReply:
        """Learn a user from a few answers; kept over restarts."""
        return await service.adapt(user, body.answers)

    @router.delete("/v1/users/{user:path}")
    async def forget(user: str) -> dict[str, Any]:
        """Forget a user who was adapted here, on disk too."""
        return {"user": await service.forget(user), "forgotten": True}

    return router


def metrics_route(service: Service) -> APIRouter:
    """Return the route that tells the counters."""
    router = APIRouter(tags=["service"])

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counters for Prometheus."""
        return service.metrics.text()

    return router


def _require_count(name: str, found: int, wanted: int, what: str, remedy: str) -> None:
    if found != wanted:
        raise HTTPException(422, f"{found} {name} for {wanted} {what}; {remedy}")
