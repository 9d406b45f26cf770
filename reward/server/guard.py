"""Round all routes: requests are counted, and those that are too large end before they are read."""

from __future__ import annotations

import time
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from pal.reward.server.metrics import Metrics


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Any, metrics: Metrics, max_body_bytes: int) -> None:
        self.app, self.metrics, self.limit = app, metrics, max_body_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.metrics.accepted += 1
        began = time.perf_counter()
        status, is_answered = 500, False
        seen = 0

        async def limited() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, self._refusal())
            return message

        async def counted(message: Any) -> None:
            nonlocal status, is_answered
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            is_answered = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            if self._is_too_large(scope["headers"]):
                await JSONResponse({"detail": self._refusal()}, 413)(scope, receive, counted)
            else:
                await self.app(scope, limited, counted)
        except Exception:  # our mistake: answered with 500 further out
            status, is_answered = 500, True
            raise
        finally:
            # never the path itself, which may name a user
            path = getattr(scope.get("route"), "path_format", "other")
            self.metrics.count(path, status, time.perf_counter() - began, is_answered)

    def _is_too_large(self, headers: Any) -> bool:
        told = [value for name, value in headers if name == b"content-length"]
        return bool(told) and (not told[0].isdigit() or int(told[0]) > self.limit)

    def _refusal(self) -> str:
        return f"the body has more than {self.limit} bytes; send fewer rows"
