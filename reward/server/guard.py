"""Round all routes: who may ask is settled before a body is read, and every request is counted."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException
from fastapi.responses import JSONResponse

from pal.config import ServeConfig
from pal.errors import shown
from pal.reward.server.metrics import Metrics
from pal.reward.server.pages import PAGES

OPEN_PATHS = {"/health", "/openapi.json", *PAGES}
"""need no token: they tell nothing of users and answers"""
TOKEN_IN_PATH = "/get_reward/"
"""may have the token behind it: OpenRLHF's client sends no headers of its own"""
BODIES_HELD = 16
"""bodies of the largest size that may be in memory at once"""
AGAIN = {"Retry-After": "1"}


@dataclass(frozen=True)
class Rules:
    """Who may ask for what."""

    token: str | None
    hosts: frozenset[str] | None
    """the names that the server answers for; None: any"""
    other_sites: frozenset[str]
    """hosts whose pages may ask, beside the server's own"""
    max_body_bytes: int
    is_for_other_machines: bool = False
    """whether it also answers for any address in numbers, which no page can make lead here"""

    @classmethod
    def of(cls, settings: ServeConfig, token: str | None) -> Rules:
        """Without a token any page in a browser here could have its own name lead to this server:
        then only requests that call it by a name of ours are answered."""
        allowed = frozenset(name.lower() for name in settings.allowed_hosts)
        own = allowed | {settings.host.lower()} if allowed or token is None else None
        is_for_others = token is None and not is_loopback(settings.host)
        if own is not None and is_for_others:
            own |= {socket.gethostname().lower()}
        return cls(token, own, allowed, settings.max_body_bytes, is_for_others)

    def refusal(self, scope: Any) -> JSONResponse | None:
        """Return why a request is refused, None where it may go on; looks at its head only."""
        head = _Head(scope)
        return (
            self._of_host(head)
            or self._of_origin(head)
            or self._of_token(head)
            or self._of_path(head)
            or self._of_body(head)
        )

    def _of_host(self, head: _Head) -> JSONResponse | None:
        host = name_of(head.first(b"host"))
        if self.hosts is None or host in self.hosts or is_loopback(host):
            return None
        if self.is_for_other_machines and is_address(host):
            return None
        if not host and head.scope["http_version"] == "1.0":  # has no such header; no browser
            return None
        return _no(421, f"this server is not {shown(host)}; add the name to serve.allowed_hosts")

    def _of_origin(self, head: _Head) -> JSONResponse | None:
        for origin in head.all(b"origin"):
            site = origin.partition("://")[2].lower()
            is_own = bool(site) and site == head.first(b"host").lower()
            if not is_own and name_of(site) not in self.other_sites:
                return _no(403, "pages of other sites may not ask this server")
        return None

    def _of_token(self, head: _Head) -> JSONResponse | None:
        if self.token is None or head.scope["path"] in OPEN_PATHS:
            return None
        scheme, _, given = head.first(b"authorization").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.encode("latin-1")):
            return None
        path: str = head.scope["path"]
        in_path = path.removeprefix(TOKEN_IN_PATH).encode("utf-8", "surrogatepass")
        if path.startswith(TOKEN_IN_PATH) and self._is_token(in_path):
            return None
        return _no(
            401,
            f"a bearer token is needed, or the token behind {TOKEN_IN_PATH}",
            {"WWW-Authenticate": "Bearer"},
        )

    def _is_token(self, given: bytes) -> bool:
        return self.token is not None and hmac.compare_digest(given, self.token.encode())

    def _of_path(self, head: _Head) -> JSONResponse | None:
        try:
            unquote_to_bytes(head.scope.get("raw_path") or b"").decode("utf-8")
        except UnicodeDecodeError:
            return _no(400, "the path is not UTF-8; encode it before its bytes are escaped")
        return None

    def _of_body(self, head: _Head) -> JSONResponse | None:
        length = head.first(b"content-length")
        if length and (not length.isdecimal() or int(length[:20]) > self.max_body_bytes):
            return _no(413, self.too_large())
        kind = head.first(b"content-type").partition(";")[0].strip().lower()
        if head.scope["method"] == "POST" and kind != "application/json":
            # what a page of another site can send unasked has another type, or none
            return _no(415, "send JSON, with the header content-type: application/json")
        return None

    def too_large(self) -> str:
        return f"the body has more than {self.max_body_bytes} bytes; send fewer rows"


@dataclass
class _Request:
    """What is known of one request while it lasts."""

    began: float = field(default_factory=time.perf_counter)
    status: int | None = None
    is_answered: bool = False
    is_given_up: bool = False
    size: int = 0
    watch: asyncio.Task[None] | None = None


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Any, rules: Rules, metrics: Metrics) -> None:
        self.app, self.rules, self.metrics = app, rules, metrics
        self.held = 0
        """bytes of bodies in memory"""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.metrics.accepted += 1
        request = _Request()

        async def limited() -> Any:
            message = await receive()
            self._take(request, len(message.get("body", b"")))
            if message["type"] == "http.request" and not message.get("more_body"):
                asked = asyncio.current_task()
                request.watch = asyncio.create_task(_end_when_given_up(request, receive, asked))
            return message

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                request.status = message["status"]
            await send(message)
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            request.is_answered = request.is_answered or is_last

        try:
            await (self.rules.refusal(scope) or self.app)(scope, limited, counted)
        except asyncio.CancelledError:
            if request.is_given_up:
                return
            if request.status is not None:
                raise
            # the time after SIGTERM is over
            await _no(503, "the server is ending; ask again", AGAIN)(scope, limited, counted)
        except Exception:  # our mistake: answered with 500 further out
            request.status, request.is_answered = 500, True
            raise
        finally:
            if request.watch is not None:
                request.watch.cancel()
            self.held -= request.size
            # never the path itself, which may name a user
            path = getattr(scope.get("route"), "path_format", "other")
            seconds = time.perf_counter() - request.began
            self.metrics.count(path, request.status or 500, seconds, request.is_answered)

    def _take(self, request: _Request, size: int) -> None:
        request.size += size
        self.held += size
        if request.size > self.rules.max_body_bytes:
            raise HTTPException(413, self.rules.too_large())
        if self.held > BODIES_HELD * self.rules.max_body_bytes:
            raise HTTPException(429, "too many large requests at once; try again", AGAIN)


async def _end_when_given_up(request: _Request, receive: Any, asked: Any) -> None:
    """End a request whose client has gone, so that nobody waits behind work for nobody."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not request.is_answered:
        request.is_given_up = True
        asked.cancel()


class _Head:
    """The head of a request."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope

    def all(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in self.scope["headers"] if key == name]

    def first(self, name: bytes) -> str:
        return next(iter(self.all(name)), "")


def name_of(host: str) -> str:
    """Return a host without its port, as it is compared."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    name = host.rpartition(":")[0] if host.count(":") == 1 else host
    return name.rstrip(".")


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    if is_address(host):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def is_only_here(settings: ServeConfig, token: str | None) -> bool:
    """Tell whether only this machine can ask: not even through a proxy, and with a token the server
    answers under any name that one may have."""
    return token is None and is_loopback(settings.host) and not settings.allowed_hosts


def is_address(host: str) -> bool:
    """Tell whether a host is given by its address in numbers."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _no(status: int, reason: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": reason}, status, headers)
