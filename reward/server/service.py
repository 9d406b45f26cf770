"""What the routes share: the model, its thread, the users who were adapted, the counters."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import HTTPException

from pal.config import ServeConfig
from pal.errors import PalError, RewardError
from pal.reward.adaptation import ItemPairs, Questionnaire
from pal.reward.model import Answer, RewardModel, Row
from pal.reward.render import Readable
from pal.reward.server.batching import AnswersJob, RowsJob, bytes_of, cost_of
from pal.reward.server.body import aside
from pal.reward.server.guard import is_only_here
from pal.reward.server.metrics import Metrics
from pal.reward.server.schemas import AdaptReply, AnswerBody, ModelReply, QuestionBody
from pal.reward.server.users import UserStore
from pal.reward.server.worker import Ending, Full, Worker
from pal.reward.users import prototypes_of
from pal.train.heads.users import ReadyWeights, UserWeights
from pal.users import user_name

QUICK_ROWS = 8
"""rendered by the event loop itself"""
LONGEST_ID, LONGEST_REASON = 1024, 300
NAMES_TOLD = 100
BYTES_OF_TOKEN = 4
AGAIN = {"Retry-After": "1"}
Result = TypeVar("Result")


def require_count(name: str, found: int, wanted: int, what: str, remedy: str) -> None:
    """Raise HTTPException where there are not as many of one thing as of another."""
    if found != wanted:
        raise HTTPException(422, f"{found} {name} for {wanted} {what}; {remedy}")


@dataclass(frozen=True)
class Rewards:
    """What is said of each row."""

    rewards: list[float | None]
    errors: dict[int, str]
    is_known: list[bool]
    """whether the row's user is a known one"""
    strangers: int
    """rows whose user is not known"""


class Service:
    """Answers requests as offline scoring would; errors are HTTPExceptions."""

    def __init__(
        self,
        model: RewardModel,
        settings: ServeConfig,
        token: str | None,
        say: Callable[[str], None] = lambda text: None,
        questions: Sequence[QuestionBody] = (),
    ) -> None:
        """``questions``: what the page asks new users. Raises RewardError where users cannot be
        kept."""
        self.model, self.settings, self.token, self.say = model, settings, token, say
        self.questions = list(questions)
        model.users.warns_of_strangers = False  # their ids belong in no log
        self.longest = BYTES_OF_TOKEN * model.encoder.source.config.max_length
        self.metrics = Metrics()
        self.worker = Worker(model, settings, self.metrics)
        self.store = UserStore(settings.store or Path("users.sqlite"), model.metadata.head_id)
        size = len(model.users.default)
        newcomers = self.store.newcomers(size)
        for user, vector in self.store.load(size).items():
            model.users.add(user, vector, newcomers.get(user))
        self._changes = ThreadPoolExecutor(1, "users")
        gauge = self.metrics.gauge
        gauge("rows_waiting", "Rows that wait.", lambda: self.worker.turns.waiting)
        gauge("items_waiting", "Items of answers that wait.", lambda: self.worker.items_waiting)
        gauge("users_adapted", "Users adapted here.", lambda: len(model.users.added))

    def start(self) -> None:
        self.worker.thread.start()

    async def stop(self) -> None:
        """End after the batch at hand, then close."""
        await asyncio.to_thread(self.worker.stop)
        await asyncio.to_thread(self._changes.shutdown)
        self.store.close()
        metrics = self.metrics
        self.say(f"{metrics.accepted} requests accepted, {metrics.answered} answered")

    @property
    def is_running(self) -> bool:
        return self.worker.thread.is_alive()

    def described(self) -> ModelReply:
        """Return what the model is. Names are told where only this machine can ask: whoever asks
        from elsewhere might learn who the people of the training were."""
        metadata, users = self.model.metadata, self.model.users
        names = [*users.added, *users.number] if is_only_here(self.settings) else []
        is_mixture = isinstance(users.head.users, UserWeights | ReadyWeights)
        return ModelReply(
            run=metadata.run,
            dataset=metadata.dataset,
            head=metadata.train.head,
            k=metadata.train.k,
            encoder=metadata.encoder.name,
            revision=metadata.encoder.revision,
            view=metadata.view,
            modality=metadata.modality,
            untrained=metadata.untrained,
            choice=metadata.choice if metadata.user is None else "user",
            users=len(users.number),
            adapted=len(users.added),
            names=names[:NAMES_TOLD],
            mixes=prototypes_of(users.head) if is_mixture and not metadata.fixed else 0,
            adapts=users.default.numel() > 0 and self.model.contents.prior is not None,
            version=metadata.pal_version,
        )

    async def score(
        self, prompts: Sequence[Any], items: Sequence[Any], users: Sequence[Any]
    ) -> Rewards:
        """Return the reward of each row, or why it has none."""
        count = len(items)
        if count > self.settings.queue:
            raise HTTPException(
                413,
                f"{count} rows are more than the {self.settings.queue} that may wait; send fewer",
            )
        if count <= QUICK_ROWS:
            read = self._read(prompts, items, users)
        else:
            read = await aside(self._read, prompts, items, users)
        rewards: list[float | None] = [None] * count
        errors = dict(read.failures)
        if read.rows:
            costs = [cost_of(row, self.longest) for row in read.rows]
            job = RowsJob(read.rows, read.vectors, costs)
            scored = await self.ask(lambda: self.worker.submit_rows(job))
            for number, (place, reward) in enumerate(
                zip(read.places, scored.rewards.tolist(), strict=True)
            ):
                if number in scored.failures:
                    errors[place] = scored.failures[number]
                else:
                    rewards[place] = reward
        is_stranger = [
            place not in read.failures and self.model.users.is_stranger(user)
            for place, user in enumerate(users)
        ]
        self.metrics.unknown_users.inc(sum(is_stranger))
        self.metrics.rows_failed.inc(len(errors))
        return Rewards(
            rewards,
            {place: errors[place][:LONGEST_REASON] for place in sorted(errors)},
            [place not in errors and not is_stranger[place] for place in range(count)],
            sum(is_stranger),
        )

    def _read(self, prompts: Sequence[Any], items: Sequence[Any], users: Sequence[Any]) -> Readable:
        """Render rows; those that are too large are none."""
        sent, failures = [], {}
        for place, item in enumerate(items):
            try:
                sent.append(self.item_of(item))
            except RewardError as error:
                sent.append(None)
                failures[place] = str(error)
        read = self.model.read(prompts, sent, users)
        failures = {**read.failures, **failures}
        kept = []
        for number, (place, row) in enumerate(zip(read.places, read.rows, strict=True)):
            reason = self._excess(row)
            if reason is None:
                kept.append(number)
            else:
                failures[place] = reason
        rows, places = [read.rows[n] for n in kept], [read.places[n] for n in kept]
        return Readable(rows, read.vectors[kept], places, failures)

    def item_of(self, sent: Any) -> Any:
        """Return a response as the model takes it: an image is bytes, never a path, which would be
        read here."""
        if not self.model.is_image:
            return sent
        try:
            return base64.b64decode(sent, validate=True)
        except (TypeError, ValueError) as error:
            raise RewardError(
                "this model rewards images: send their files' bytes in base64"
            ) from error

    def _excess(self, row: Row) -> str | None:
        """Return why a row is too large, None where it is not."""
        size = bytes_of(row)
        most, name = self.settings.max_row_bytes, "serve.max_row_bytes"
        if self.model.is_image:
            most, name = self.settings.max_image_bytes, "serve.max_image_bytes"
        return f"it has {size:,} bytes, more than the {most:,} of {name}" if size > most else None

    async def adapt(self, user: str, bodies: Sequence[AnswerBody]) -> AdaptReply:
        """Learn a user from answers and keep the vector."""
        name = self._name(user)
        try:
            asked = await aside(self._questionnaire, bodies)
        except PalError as error:
            raise HTTPException(422, str(error)[:LONGEST_REASON]) from error
        job = AnswersJob(asked, [cost_of(row, self.longest) for row in asked.rows])
        vector = await self.ask(lambda: self.worker.submit_answers(job))

        def keep() -> None:
            self.store.put(name, len(bodies), vector, asked.newcomer)
            self.model.users.add(name, vector, asked.newcomer)

        await self._change(keep)
        weights = [round(float(weight), 6) for weight in vector]
        return AdaptReply(user=name, answers=len(bodies), weights=weights)

    def require_modest(self, asked: ItemPairs) -> None:
        """Raise RewardError for the first item that is too large."""
        for number, row in enumerate(asked.rows):
            reason = self._excess(row)
            if reason is not None:
                raise RewardError(f"{asked.what} {number // 2} cannot be read: {reason}")

    def _questionnaire(self, bodies: Sequence[AnswerBody]) -> Questionnaire:
        answers = []
        for number, body in enumerate(bodies):
            try:
                chosen, rejected = self.item_of(body.chosen), self.item_of(body.rejected)
            except RewardError as error:
                raise RewardError(f"answer {number} cannot be read: {error}") from error
            answers.append(Answer(body.prompt, chosen, rejected, body.label))
        asked = Questionnaire(self.model, answers)
        self.require_modest(asked)
        return asked

    async def forget(self, user: str) -> str:
        """Forget a user who was adapted here, and return the name."""
        name = self._name(user)

        def remove() -> bool:
            is_gone = self.store.remove(name)
            if is_gone:
                self.model.users.forget(name)
            return is_gone

        if not await self._change(remove):
            raise HTTPException(404, "this user was not adapted here")
        return name

    def _name(self, user: str) -> str:
        """Return the name of the user in a path."""
        name = user_name(user)
        if name is None:
            raise HTTPException(422, "the path names no user")
        if len(name) > LONGEST_ID:
            raise HTTPException(
                422, f"a user's id has {len(name):,} letters; give one of at most {LONGEST_ID:,}"
            )
        return name

    async def _change(self, change: Callable[[], Result]) -> Result:
        """Change what is known of users, in the file first: one change after the other, and each to
        its end, so that file and memory agree."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._changes, change)
        except PalError as error:
            raise HTTPException(503, str(error), AGAIN) from error

    async def ask(self, submit: Callable[[], Future[Result]]) -> Result:
        """Let the model's thread do something and wait for it."""
        try:
            return await asyncio.wrap_future(submit())
        except Full as error:
            raise HTTPException(429, "too much is waiting; try again", AGAIN) from error
        except Ending as error:
            raise HTTPException(503, "the server is ending; ask again", AGAIN) from error
        except PalError as error:
            raise HTTPException(422, str(error)[:LONGEST_REASON]) from error
