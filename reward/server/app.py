"""The routes. Their OpenAPI document, at /docs, says what each takes and gives."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse

from pal.reward.server.body import BodyRoute, refusal_of
from pal.reward.server.guard import Guard, Rules
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

    app.include_router(reward_routes(service))
    app.include_router(user_routes(service))
    app.include_router(metrics_route(service))

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["service"])
    async def health() -> dict[str, Any]:
        """Whether rewards can be had; needs no token and tells nothing of users."""
        status = "ok" if service.is_running else "starting"
        return {"status": status, "waiting": service.worker.turns.waiting}

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        return refusal_of(error)

    rules = Rules.of(service.settings, service.token)
    app.add_middleware(Guard, rules=rules, metrics=service.metrics)
    return app


def reward_routes(service: Service) -> APIRouter:
    """Return the routes that give rewards."""
    router = APIRouter(route_class=BodyRoute)

    @router.post("/get_reward", tags=["OpenRLHF"])
    async def get_reward(body: OpenRlhfRequest) -> OpenRlhfReply:
        """OpenRLHF's remote reward. Empty lists are answered with empty lists."""
        count = len(body.query)
        if service.model.is_image and count:
            raise HTTPException(
                422, "this model rewards images, which OpenRLHF does not send; use /v1/score"
            )
        for name, values in (("prompts", body.prompts), ("labels", body.labels)):
            if values:
                _require_count(name, len(values), count, "queries", "send as many or none")
        given = body.prompts or [""] * count
        items = [response_of(*pair) for pair in zip(body.query, given, strict=True)]
        prompts = [None if prompt == "" else prompt for prompt in given]
        users = [user_of_label(label) for label in body.labels] or [None] * count
        found = await service.score(prompts, items, users)
        instead = service.settings.reward_of_failed
        rewards = [instead if reward is None else reward for reward in found.rewards]
        return OpenRlhfReply(
            rewards=rewards,
            scores=[None if reward is None else _logistic(reward) for reward in rewards],
            extra_logs={"pal_user_known": [float(known) for known in found.is_known]},
            errors=found.errors,
        )

    @router.post("/v1/score", tags=["rewards"])
    async def score(body: ScoreRequest) -> ScoreReply:
        """One reward per prompt and response, text or chat messages."""
        count = len(body.responses)
        users = body.users if isinstance(body.users, list) else [body.users] * count
        for name, values in (("prompts", body.prompts), ("users", users)):
            _require_count(name, len(values), count, "responses", "send as many")
        found = await service.score(body.prompts, body.responses, users)
        return ScoreReply(rewards=found.rewards, errors=found.errors, unknown_users=found.strangers)

    return router


def user_routes(service: Service) -> APIRouter:
    """Return the routes that learn and forget users."""
    router = APIRouter(tags=["users"], route_class=BodyRoute)

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


def _logistic(reward: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * reward))  # no exponential that could overflow
