"""The routes. Their document, at /docs, says what each takes and gives; at / is a page to try
them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer

from pal.reward.server import direct
from pal.reward.server.about import model_route
from pal.reward.server.body import BodyRoute, refusal_of
from pal.reward.server.compare import compare_route
from pal.reward.server.guard import Guard, Rules
from pal.reward.server.interview import interview_routes
from pal.reward.server.learn import user_routes
from pal.reward.server.openrlhf import openrlhf_routes
from pal.reward.server.pages import page_routes
from pal.reward.server.schemas import ScoreReply, ScoreRequest
from pal.reward.server.service import Service


def build_app(service: Service) -> FastAPI:
    """Return the application round a service."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    metadata = service.model.metadata
    summary = f"Rewards of run {metadata.run}"
    app = FastAPI(
        title="pal reward model",
        summary=summary,
        version=metadata.pal_version,
        lifespan=life,
        docs_url=None,  # FastAPI's own pages ask other places for scripts
        redoc_url=None,
    )

    # for the document only: the guard has asked for the token before
    asks = [] if service.token is None else [Depends(HTTPBearer(auto_error=False))]
    for routes in (
        reward_routes, compare_route, user_routes, interview_routes, openrlhf_routes, model_route,
        metrics_route,
    ):  # fmt: skip
        app.include_router(routes(service), dependencies=asks)
    app.include_router(page_routes(app, summary))

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["service"])
    async def health() -> dict[str, Any]:
        """Whether rewards can be had; needs no token and tells nothing of users."""
        status = "ok" if service.is_running else "starting"
        return {"status": status, "waiting": service.worker.turns.waiting}

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        return refusal_of(error)

    app.add_middleware(direct.Direct, service=service)
    rules = Rules.of(service.settings, service.token)
    app.add_middleware(Guard, rules=rules, metrics=service.metrics)
    return app


def reward_routes(service: Service) -> APIRouter:
    """Return the routes that give rewards."""
    router = APIRouter(route_class=BodyRoute)

    @router.post("/v1/score", tags=["rewards"])
    async def score(body: ScoreRequest) -> ScoreReply:
        """One reward per prompt and response, text or chat messages."""
        return await direct.score(service, body)

    return router


def metrics_route(service: Service) -> APIRouter:
    """Return the route that tells the counters."""
    router = APIRouter(tags=["service"])

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counters for Prometheus."""
        return service.metrics.text()

    return router
