"""A reward model over HTTP. Requests wait in one bounded queue, one thread scores them in batches,
none are mixed up.

OpenRLHF's remote reward (``--reward.remote_url http://HOST:PORT/get_reward``) carries the users in
``labels``, which is the column of ``--data.label_key``: an id, or JSON with ``user_id``.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import json
import queue
import secrets
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from pal.config import ServeConfig
from pal.errors import ConfigError, RewardError
from pal.reward.model import Answer, RewardModel, Row
from pal.reward.users import id_of

try:
    import fastapi
    import uvicorn
    from fastapi import Body, Depends, FastAPI, HTTPException, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse
    from pydantic import BaseModel, Field
except ImportError as error:
    raise ConfigError(
        "pal serve needs FastAPI and uvicorn; install the extra: pip install 'pal-heads[serve]'"
    ) from error

assert fastapi
DRAIN_SECONDS, IDLE_SECONDS = (
    30,
    75,
)  # a busy loop may come to a request late: it must not take its connection as idle
MOST_ANSWERS, BACKLOG = 512, 2048


class OpenRlhfRequest(BaseModel):
    """OpenRLHF sends ``query``: the decoded prompt and response; ``prompts``: the prompts alone;
    ``labels``: users."""

    query: list[str]
    prompts: list[str] = []
    labels: list[Any] = []


class OpenRlhfReply(BaseModel):
    rewards: list[float]
    scores: list[float]
    """rewards as numbers between 0 and 1, by the logistic function"""
    extra_logs: dict[str, list[float]]


class ScoreRequest(BaseModel):
    """``users``: ids, mixtures such as {"0": 0.3, "1": 0.7}, or null; one for each response, or one
    for all.

    A model of images takes their files' bytes in base64 for ``responses``.
    """

    prompts: list[str | list[dict[str, Any]]]
    responses: list[str | list[dict[str, Any]]]
    users: list[str | dict[str, float] | None] | str | dict[str, float] | None = None


class ScoreReply(BaseModel):
    rewards: list[float]
    unknown_users: int
    """rows whose user is not known, scored as the population"""


class AnswerBody(BaseModel):
    """One comparison by the user; images in base64."""

    prompt: str | list[dict[str, Any]] = ""
    chosen: str | list[dict[str, Any]]
    rejected: str | list[dict[str, Any]]
    label: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """P(chosen preferred); 0.5 is a tie"""


class AdaptRequest(BaseModel):
    """All answers of a user; they replace what was known of the user."""

    answers: Annotated[list[AnswerBody], Field(min_length=1, max_length=MOST_ANSWERS)]


class AdaptReply(BaseModel):
    user: str
    answers: int
    weights: list[float]


@dataclass
class Job:
    """Rows that one request waits for, or a call that only the model's thread may make."""

    done: Callable[[Any, BaseException | None], None]
    rows: Sequence[Row] = ()
    codes: Tensor | None = None
    call: Callable[[], Any] | None = None

    @property
    def size(self) -> int:
        return len(self.rows) or 1


class Full(Exception):
    """As many rows are waiting as may."""


class Worker:
    """The one thread that touches the model. Jobs become batches of at most ``max_batch`` rows,
    large ones in parts."""

    def __init__(self, model: RewardModel, settings: ServeConfig) -> None:
        self.model, self.settings = model, settings
        self.jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.waiting = 0
        self.batches = 0
        self.rows = 0
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, name="reward-model", daemon=True)

    def submit(self, job: Job) -> None:
        """Queue a job; raises Full. A request larger than the whole queue is taken only by an idle
        one."""
        with self._lock:
            if self.waiting and self.waiting + job.size > self.settings.queue:
                raise Full
            self.waiting += job.size
        self.jobs.put(job)

    def stop(self) -> None:
        """Do what was accepted, then end."""
        self.jobs.put(None)
        self.thread.join()

    def _run(self) -> None:
        running = True
        while running:
            first = self.jobs.get()
            if first is None:
                return
            batch, size = [first], first.size
            until = time.monotonic() + self.settings.max_wait_ms / 1000
            while size < self.settings.max_batch:
                try:
                    job = self.jobs.get(timeout=max(0.0, until - time.monotonic()))
                except queue.Empty:
                    break
                if job is None:
                    running = False
                    break
                batch.append(job)
                size += job.size
            self._do(batch)
            with self._lock:
                self.waiting -= size

    def _do(self, batch: list[Job]) -> None:
        for job in batch:
            if job.call is not None:
                try:
                    job.done(job.call(), None)
                except BaseException as error:
                    job.done(None, error)
        scored = [job for job in batch if job.call is None]
        rows = [row for job in scored for row in job.rows]
        if not rows:
            return
        try:
            codes = torch.cat([job.codes for job in scored if job.codes is not None])
            rewards, failures = self.model.score_rows(rows, codes)
        except BaseException as error:
            for job in scored:
                job.done(None, error)
            return
        self.batches += 1
        self.rows += len(rows)
        start = 0
        for job in scored:
            stop = start + len(job.rows)
            bad = [row for row in failures if start <= row < stop]
            if bad:
                job.done(
                    None,
                    RewardError(f"row {min(bad) - start} cannot be scored: {failures[min(bad)]}"),
                )
            else:
                job.done(rewards[start:stop].tolist(), None)
            start = stop


class UserStore:
    """Codes of users adapted at runtime, in SQLite: they survive a restart, and belong to one
    head."""

    def __init__(self, path: Path | str, head: str) -> None:
        self.head = head
        self._lock = threading.Lock()
        try:
            self.connection = sqlite3.connect(path, check_same_thread=False)
            with self._lock, self.connection:
                self.connection.execute("PRAGMA journal_mode=WAL")
                self.connection.execute(
                    "CREATE TABLE IF NOT EXISTS users (head TEXT, user TEXT, answers INTEGER, "
                    "code BLOB,"
                    " PRIMARY KEY (head, user))"
                )
        except sqlite3.Error as error:
            raise RewardError(
                f"cannot keep users in {path} ({error}); give another file as serve.store"
            ) from error

    def put(self, user: str, answers: int, code: Tensor) -> None:
        raw = code.float().cpu().numpy().tobytes()
        with self._lock, self.connection:
            self.connection.execute(
                "REPLACE INTO users VALUES (?, ?, ?, ?)", (self.head, user, answers, raw)
            )

    def remove(self, user: str) -> bool:
        with self._lock, self.connection:
            return bool(
                self.connection.execute(
                    "DELETE FROM users WHERE head = ? AND user = ?", (self.head, user)
                ).rowcount
            )

    def load(self) -> dict[str, Tensor]:
        """Return every user's code."""
        with self._lock:
            found = self.connection.execute(
                "SELECT user, code FROM users WHERE head = ?", (self.head,)
            ).fetchall()
        return {user: torch.frombuffer(bytearray(raw), dtype=torch.float32) for user, raw in found}

    def close(self) -> None:
        self.connection.close()


class Service:
    """What the routes share: the model, its thread, the users and the counters."""

    def __init__(
        self, model: RewardModel, settings: ServeConfig, token: str | None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:  # fmt: skip
        self.model, self.settings, self.token, self.say = model, settings, token, say
        self.accepted = 0
        """requests whose head has arrived"""
        self.worker = Worker(model, settings)
        self.store = UserStore(
            settings.store or "users.sqlite", str(model.facts.get("head_sha256", "run"))
        )
        for user, code in self.store.load().items():
            model.users.add(user, code)
        self.requests: Counter[tuple[str, int]] = Counter()
        self.unknown = 0
        self.seconds = 0.0

    async def score(
        self, prompts: Sequence[Any], items: Sequence[Any], users: Sequence[Any]
    ) -> tuple[list[float], int]:
        """Return rewards in order, and how many users were strangers; raises HTTPException."""
        if not items:
            return [], 0
        if len(items) > self.settings.queue:
            raise HTTPException(
                413,
                f"{len(items)} rows are more than the {self.settings.queue} that may wait; send "
                "fewer",
            )
        try:
            rows = [
                self.model.row(prompt, self.item(item))
                for prompt, item in zip(prompts, items, strict=True)
            ]
            codes = self.model.users.codes(users)
        except RewardError as error:
            raise HTTPException(422, str(error)) from error
        strangers = sum(isinstance(user, str) and user not in self.model.users for user in users)
        self.unknown += strangers
        size = self.settings.max_batch
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        found = await asyncio.gather(
            *[self.ask(rows=rows[part], codes=codes[part]) for part in parts]
        )
        return [reward for part in found for reward in part], strangers

    def item(self, sent: Any) -> Any:
        """Return a response as the model takes it: an image is bytes, never a path, which would be
        read here."""
        if not self.model.is_image:
            return sent
        try:
            return base64.b64decode(sent, validate=True)
        except (TypeError, ValueError) as error:
            raise HTTPException(
                422, "this model rewards images: send their files' bytes in base64"
            ) from error

    async def ask(self, **what: Any) -> Any:
        """Let the model's thread do something and wait for it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():  # whoever asked has gone
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def done(result: Any, error: BaseException | None) -> None:
            loop.call_soon_threadsafe(settle, result, error)

        try:
            self.worker.submit(Job(done, **what))
        except Full as error:
            raise HTTPException(
                429, "too many rows are waiting; try again", {"Retry-After": "1"}
            ) from error
        try:
            return await future
        except RewardError as error:
            raise HTTPException(422, str(error)) from error

    def metrics(self) -> str:
        """Return the counters in Prometheus' text format."""
        lines = ["# TYPE pal_requests_total counter"]
        lines += [
            f'pal_requests_total{{path="{path}",code="{code}"}} {count}'
            for (path, code), count in sorted(self.requests.items())
        ]
        for name, kind, value in (
            ("pal_rows_total", "counter", self.worker.rows), ("pal_batches_total", "counter", self.worker.batches),
            ("pal_rows_waiting", "gauge", self.worker.waiting), ("pal_unknown_users_total", "counter", self.unknown),
            ("pal_users_adapted", "gauge", len(self.model.users.added)),
            ("pal_request_seconds_total", "counter", round(self.seconds, 6)),
        ):  # fmt: skip
            lines += [f"# TYPE {name} {kind}", f"{name} {value}"]
        return "\n".join(lines) + "\n"


def user_of_label(label: Any) -> Any:
    """Return the user that an OpenRLHF label carries: an id, an object with ``user_id`` or its
    JSON, or nobody."""
    if isinstance(label, str) and label.lstrip().startswith("{"):
        try:
            label = json.loads(label)
        except (json.JSONDecodeError, RecursionError):
            return label
    return id_of(label.get("user_id") if isinstance(label, dict) else label) or None


def response_of(query: str, prompt: str) -> str:
    """Return what follows the prompt in a query; all of it where the prompt does not lead it."""
    return query.removeprefix(prompt) if prompt else query


def build_app(service: Service) -> FastAPI:
    """Return the application; its OpenAPI document, at /docs, says what each route takes and
    gives."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.worker.thread.start()
        yield
        await asyncio.to_thread(service.worker.stop)
        service.store.close()
        service.say(f"{service.accepted} requests accepted, {service.requests.total()} answered")

    app = FastAPI(
        title="pal reward model", summary=f"Rewards of run {service.model.facts['run']}", lifespan=life,
        version=str(service.model.facts.get("pal_version", "")),
    )  # fmt: skip

    async def allowed(request: Request) -> None:  # not a thread of the pool for each request
        if service.token is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.encode(), service.token.encode()
        ):
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})

    guarded = [Depends(allowed)]

    @app.post("/get_reward", dependencies=guarded, tags=["OpenRLHF"])
    async def get_reward(body: OpenRlhfRequest) -> OpenRlhfReply:
        """OpenRLHF's remote reward. Empty lists are answered with empty lists."""
        if service.model.is_image:
            raise HTTPException(
                422, "this model rewards images, which OpenRLHF does not send; use /v1/score"
            )
        count = len(body.query)
        for name, values in (("prompts", body.prompts), ("labels", body.labels)):
            if values and len(values) != count:
                raise HTTPException(
                    422, f"{len(values)} {name} for {count} queries; send as many or none"
                )
        prompts = body.prompts or [""] * count
        users = [user_of_label(label) for label in body.labels] or [None] * count
        items = [
            response_of(query, prompt) for query, prompt in zip(body.query, prompts, strict=True)
        ]
        rewards, _ = await service.score([prompt or None for prompt in prompts], items, users)
        known = [
            float(user is None or not isinstance(user, str) or user in service.model.users)
            for user in users
        ]
        scores = torch.tensor(rewards).sigmoid().tolist()
        return OpenRlhfReply(rewards=rewards, scores=scores, extra_logs={"pal_user_known": known})

    @app.post("/v1/score", dependencies=guarded, tags=["rewards"])
    async def score(body: ScoreRequest) -> ScoreReply:
        """One reward per prompt and response, text or chat messages."""
        count = len(body.responses)
        users = body.users if isinstance(body.users, list) else [body.users] * count
        for name, values in (("prompts", body.prompts), ("users", users)):
            if len(values) != count:
                raise HTTPException(
                    422, f"{len(values)} {name} for {count} responses; send as many"
                )
        rewards, strangers = await service.score(body.prompts, body.responses, users)
        return ScoreReply(rewards=rewards, unknown_users=strangers)

    @app.post("/v1/users/{user:path}/adapt", dependencies=guarded, tags=["users"])
    async def adapt(user: str, body: Annotated[AdaptRequest, Body()]) -> AdaptReply:
        """Learn a user from a few answers; kept over restarts."""
        item = service.item
        answers = [
            Answer(a.prompt, item(a.chosen), item(a.rejected), a.label) for a in body.answers
        ]
        code: Tensor = await service.ask(call=lambda: service.model.adapt(answers))
        service.model.users.add(user, code)
        await asyncio.to_thread(service.store.put, user, len(answers), code)
        return AdaptReply(
            user=user, answers=len(answers), weights=[round(float(w), 6) for w in code]
        )

    @app.delete("/v1/users/{user:path}", dependencies=guarded, tags=["users"])
    async def forget(user: str) -> dict[str, Any]:
        """Forget a user who was adapted here, on disk too."""
        service.model.users.forget(user)
        if not await asyncio.to_thread(service.store.remove, user):
            raise HTTPException(404, "this user was not adapted here")
        return {"user": user, "forgotten": True}

    @app.get("/health", tags=["service"])
    async def health() -> dict[str, Any]:
        """Whether rewards can be had; needs no token and tells nothing of users."""
        return {
            "status": "ok" if service.worker.thread.is_alive() else "starting",
            "waiting": service.worker.waiting,
        }

    @app.get("/metrics", dependencies=guarded, tags=["service"], response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counters for Prometheus."""
        return service.metrics()

    @app.exception_handler(RequestValidationError)
    async def refuse(request: Request, error: RequestValidationError) -> JSONResponse:
        # without what was sent, which may be large, or NaN, which is no JSON
        found = [
            {key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()
        ]
        return JSONResponse({"detail": found}, 422)

    app.add_middleware(Guard, service=service)
    return app


class Guard:
    """Counts requests, and ends those whose body is too large before it is read."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.service.accepted += 1
        limit, began = self.service.settings.max_body_bytes, time.perf_counter()
        status, is_answered = 500, False
        length = next(
            (value for name, value in scope["headers"] if name == b"content-length"), b"0"
        )
        seen = 0

        async def limited() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, f"the body has more than {limit} bytes; send fewer rows")
            return message

        async def counted(message: Any) -> None:
            nonlocal status, is_answered
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            is_answered = message["type"] == "http.response.body" and not message.get("more_body")

        if not length.isdigit() or int(length) > limit:
            reply = JSONResponse(
                {"detail": f"the body has more than {limit} bytes; send fewer rows"}, 413
            )
            await reply(scope, receive, counted)
            self._count(scope, status, is_answered, began)
            return
        try:
            await self.app(scope, limited, counted)
        except Exception:  # our mistake: answered with 500 further out
            status, is_answered = 500, True
            raise
        finally:
            self._count(scope, status, is_answered, began)

    def _count(self, scope: Any, status: int, is_answered: bool, began: float) -> None:
        route = scope.get("route")
        path = getattr(
            route, "path_format", "other"
        )  # never the path itself, which may name a user
        self.service.requests[path, status] += is_answered
        self.service.seconds += time.perf_counter() - began


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def run_server(
    model: RewardModel,
    settings: ServeConfig,
    token: str | None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve until SIGTERM or SIGINT; what was accepted is answered first. Raises RewardError
    without an address."""
    token = token or None  # of an empty variable: as if none were given
    if token is None and not is_loopback(settings.host):
        token = secrets.token_urlsafe(24)
        say(f"bearer token, for this run only: {token}")
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)  # whoever reads the address below may connect at once
    except OSError as error:
        raise RewardError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}); choose another "
            "--port or --host"
        ) from error
    service = Service(model, settings, token, say)
    app = build_app(service)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    say(
        f"serving {model.facts['run']} on http://{settings.host}:{listener.getsockname()[1]}, see "
        "/docs"
    )
    uvicorn.Server(config).run(sockets=[listener])
