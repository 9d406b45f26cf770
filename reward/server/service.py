"""What the routes share: the model, its thread, the users who were adapted, the counters."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from torch import Tensor

from pal.config import ServeConfig
from pal.errors import PalError
from pal.reward.model import Answer, RewardModel
from pal.reward.server.batching import CallJob, Full, Job, RowsJob, Worker
from pal.reward.server.metrics import Metrics
from pal.reward.server.schemas import AdaptReply, AnswerBody
from pal.reward.server.users import UserStore
from pal.users import user_name


class Service:
    """Answers requests as offline scoring would; errors are HTTPExceptions."""

    def __init__(
        self,
        model: RewardModel,
        settings: ServeConfig,
        token: str | None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.settings, self.token, self.say = model, settings, token, say
        self.metrics = Metrics()
        self.worker = Worker(model, settings, self.metrics)
        self.store = UserStore(settings.store or Path("users.sqlite"), model.metadata.head_id)
        for user, vector in self.store.load(len(model.users.default)).items():
            model.users.add(user, vector)
        gauge = self.metrics.gauge
        gauge("rows_waiting", "Rows that wait.", lambda: self.worker.waiting)
        gauge("users_adapted", "Users adapted here.", lambda: len(model.users.added))

    def start(self) -> None:
        self.worker.thread.start()

    async def stop(self) -> None:
        """Answer what was accepted, then close."""
        await asyncio.to_thread(self.worker.stop)
        self.store.close()
        metrics = self.metrics
        self.say(f"{metrics.accepted} requests accepted, {metrics.answered} answered")

    @property
    def is_running(self) -> bool:
        return self.worker.thread.is_alive()

    async def score(
        self, prompts: Sequence[Any], items: Sequence[Any], users: Sequence[Any]
    ) -> tuple[list[float], int]:
        """Return rewards in order, and how many rows are of strangers."""
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
            vectors = self.model.users.vectors(users)
        except PalError as error:
            raise HTTPException(422, str(error)) from error
        strangers = sum(map(self.model.users.is_stranger, users))
        self.metrics.unknown_users.inc(strangers)
        size = self.settings.max_batch
        parts = [slice(start, start + size) for start in range(0, len(rows), size)]
        jobs = [RowsJob(rows[part], vectors[part]) for part in parts]
        found = await asyncio.gather(*map(self.ask, jobs))
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

    async def adapt(self, user: str, bodies: Sequence[AnswerBody]) -> AdaptReply:
        """Learn a user from answers and keep the vector."""
        name = self.name(user)
        answers = [
            Answer(body.prompt, self.item(body.chosen), self.item(body.rejected), body.label)
            for body in bodies
        ]
        vector: Tensor = await self.ask(CallJob(lambda: self.model.adapt(answers)))
        await self.keep(self.store.put, name, len(answers), vector)
        self.model.users.add(name, vector)
        weights = [round(float(weight), 6) for weight in vector]
        return AdaptReply(user=name, answers=len(answers), weights=weights)

    async def forget(self, user: str) -> str:
        """Forget a user who was adapted here, and return the name."""
        name = self.name(user)
        self.model.users.forget(name)
        if not await self.keep(self.store.remove, name):
            raise HTTPException(404, "this user was not adapted here")
        return name

    def name(self, user: str) -> str:
        """Return the name of the user in a path."""
        name = user_name(user)
        if name is None:
            raise HTTPException(422, "the path names no user")
        return name

    async def keep(self, change: Callable[..., Any], *values: Any) -> Any:
        """Change the store in a thread; its errors are the server's."""
        try:
            return await asyncio.to_thread(change, *values)
        except PalError as error:
            raise HTTPException(503, str(error)) from error

    async def ask(self, job: Job) -> Any:
        """Let the model's thread do something and wait for it."""
        try:
            future = self.worker.submit(job)
        except Full as error:
            raise HTTPException(
                429, "too many rows are waiting; try again", {"Retry-After": "1"}
            ) from error
        try:
            return await asyncio.wrap_future(future)
        except PalError as error:
            raise HTTPException(422, str(error)) from error
