"""One connection: a client that is slow or silent has it for a bounded time only."""

from __future__ import annotations

import asyncio
import json
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pal.config import ServeConfig

_SENTENCE = json.dumps({"detail": "the request did not arrive in time; send it again"}).encode()
TOO_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_SENTENCE), _SENTENCE)
)


def bounded_by(settings: ServeConfig) -> type[BoundedConnection]:
    """Return the protocol for uvicorn, which makes one of it for each connection."""

    class Connection(BoundedConnection):
        seconds: ClassVar = {
            "idle": settings.idle_seconds,
            "head": settings.head_seconds,
            "body": settings.body_seconds,
            "reply": settings.body_seconds,
        }

    return Connection


class BoundedConnection(H11Protocol):
    """uvicorn's protocol with an end to each thing that a client lets the server wait for.

    uvicorn itself ends only connections that are idle after a reply. The time runs from the
    beginning of each thing, whatever trickles in meanwhile.
    """

    seconds: ClassVar[dict[str, float]]
    """by what is waited for"""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._waits_for: tuple[str, Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as uvicorn's parser calls it. A request that it was part of is
        given up, and to a reply that has begun nothing is added: h11 would refuse both."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def _watch(self) -> None:
        """Start a timer if something else is waited for now, also the same of another request."""
        what = self._what_is_missing()
        waits_for = None if what is None else (what, self.cycle)
        if waits_for == self._waits_for:
            return
        self._stop_timer()
        self._waits_for = waits_for
        if what is not None:
            self._timer = self.loop.call_later(self.seconds[what], self._end)

    def _what_is_missing(self) -> str | None:
        if self.flow.write_paused:
            return "reply"
        if self.conn.their_state is h11.SEND_BODY:
            return "body"
        if self.conn.their_state is h11.IDLE:
            return "head" if self.conn.trailing_data[0] else "idle"
        return None

    def _end(self) -> None:
        if self.transport.is_closing() or self._waits_for is None:
            return
        what, cycle = self._waits_for
        if what == "reply":
            self.transport.abort()
            return
        is_unanswered = what == "head" or (what == "body" and not cycle.response_started)
        if is_unanswered:
            self.transport.write(TOO_LATE)
        if what == "body":
            cycle.disconnected = True  # so that the application adds nothing to it
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
