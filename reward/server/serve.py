"""The server's process: address, token, start and end."""

from __future__ import annotations

import gc
import secrets
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import uvicorn

from pal.config import ServeConfig
from pal.errors import RewardError
from pal.reward.model import RewardModel
from pal.reward.server.app import build_app
from pal.reward.server.connection import bounded_by
from pal.reward.server.guard import is_loopback
from pal.reward.server.questions import questions_of
from pal.reward.server.service import Service

BACKLOG = 2048
SWITCH_SECONDS = 0.0005
"""a pass of the model asks for the interpreter a hundred times, and each time would wait for 5 ms
while another thread reads a long body"""


def run_server(
    model: RewardModel,
    settings: ServeConfig,
    token: str | None,
    say: Callable[[str], None] = lambda text: None,
    is_open: bool = False,
    data: Path | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted is answered first, with 503 what takes too
    long. A second signal ends the process at once.

    ``is_open``: other machines need no token. ``data``: where prepared datasets are, for the
    questions of the page. Raises RewardError without an address, without a file to keep users in,
    or for questions that cannot be asked.
    """
    token = token or None  # of an empty variable: as if none were given
    if is_open and token is not None:
        raise RewardError("--no-token and a token exclude each other; leave one of them out")
    if token is None and not is_loopback(settings.host) and not is_open:
        token = secrets.token_urlsafe(24)
        say(f"bearer token, for this run only: {token}")
    questions = questions_of(model, settings, data, token)
    listener = listen(settings.host, settings.port)
    try:
        server = Server.of(Service(model, settings, token, say, questions))
    except BaseException:
        listener.close()
        raise
    port = listener.getsockname()[1]
    say(f"serving {model.metadata.run} on http://{settings.host}:{port}, routes at /docs")
    if is_open and not is_loopback(settings.host):
        say(
            f"whoever reaches port {port} may ask for rewards, and teach and forget users: no token"
        )
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # else each full collection, of all that torch brings, stops everybody for 300 ms
    try:
        server.run(sockets=[listener])
    finally:
        gc.unfreeze()  # else the end of Python finds what torch brings never freed, and says so


class Server(uvicorn.Server):
    """uvicorn's server, which a second signal of any kind ends."""

    @classmethod
    def of(cls, service: Service) -> Server:
        """Return the server of a service, with its bounds on time."""
        settings = service.settings
        config = uvicorn.Config(
            build_app(service),
            log_level="warning",
            access_log=False,
            http=bounded_by(settings),
            ws="none",
            proxy_headers=False,
            timeout_keep_alive=settings.idle_seconds,
            timeout_graceful_shutdown=settings.drain_seconds,
        )
        return cls(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        super().handle_exit(sig, frame)


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
