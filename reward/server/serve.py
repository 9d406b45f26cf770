"""The server's process: address, token, start and end."""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Callable

import uvicorn

from pal.config import ServeConfig
from pal.errors import RewardError
from pal.reward.model import RewardModel
from pal.reward.server.app import build_app
from pal.reward.server.service import Service

# a busy loop may come to a request late: it must not take its connection as idle
DRAIN_SECONDS, IDLE_SECONDS = 30, 75
BACKLOG = 2048


def run_server(
    model: RewardModel,
    settings: ServeConfig,
    token: str | None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted is answered first.

    Raises RewardError without an address.
    """
    token = token or None  # of an empty variable: as if none were given
    if token is None and not is_loopback(settings.host):
        token = secrets.token_urlsafe(24)
        say(f"bearer token, for this run only: {token}")
    listener = listen(settings.host, settings.port)
    app = build_app(Service(model, settings, token, say))
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    port = listener.getsockname()[1]
    say(f"serving {model.metadata.run} on http://{settings.host}:{port}, see /docs")
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that takes connections at once; raises RewardError where there is none."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)  # whoever reads the address may connect before uvicorn runs
    except OSError as error:
        listener.close()
        raise RewardError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose another --port or --host"
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
