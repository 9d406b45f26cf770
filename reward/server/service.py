"""What the routes share: the model, its thread, the users who were adapted, the counters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastapi import HTTPException
from torch import Tensor

from pal.config import ServeConfig
from pal.errors import PalError, RewardError
from pal.reward.adaptation import ItemPairs
from pal.reward.model import RewardModel
from pal.reward.render import Readable
from pal.reward.server.batching import AnswersJob, RowsJob, cost_of
from pal.reward.server.body import aside
from pal.reward.server.mailbox import Mailbox
from pal.reward.server.metrics import Metrics
from pal.reward.server.reader import Reader
from pal.reward.server.schemas import QuestionBody
from pal.reward.server.users import UserStore
from pal.reward.server.worker import Ending, Full, Worker, threads_for

QUICK_ROWS = 8
"""rendered by the event loop itself"""
LONGEST_REASON = 300
BYTES_OF_TOKEN = 4
AGAIN = {"Retry-After": "1"}
Result = TypeVar("Result")
Asked = TypeVar("Asked", bound=ItemPairs)


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
        self.reader = Reader(model, settings)
        model.users.warns_of_strangers = False  # their ids belong in no log
        self.longest = BYTES_OF_TOKEN * model.encoder.source.config.max_length
        self.metrics = Metrics()
        threads = threads_for(model)
        model.encoder.allow(threads)
        self.worker = Worker(model, settings, self.metrics, threads)
        self.mailbox = Mailbox()
        self.store = UserStore(settings.store or Path("users.sqlite"), model.metadata.head_id)
        size = len(model.users.default)
        newcomers = self.store.newcomers(size)
        for user, vector in self.store.load(size).items():
            model.users.add(user, vector, newcomers.get(user))
        self.changes = ThreadPoolExecutor(1, "users")
        """changes of what is known of users, one after the other"""
        gauge = self.metrics.gauge
        gauge("rows_waiting", "Rows that wait.", lambda: self.worker.turns.waiting)
        gauge("items_waiting", "Items of answers that wait.", lambda: self.worker.items_waiting)
        gauge("items_encoded", "Items that the encoder has read.", lambda: model.encoder.encoded)
        gauge("users_adapted", "Users adapted here.", lambda: len(model.users.added))

    def start(self) -> None:
        self.worker.start()

    async def stop(self) -> None:
        """End after the batch at hand, then close."""
        await asyncio.to_thread(self.worker.stop)
        await asyncio.to_thread(self.changes.shutdown)
        self.store.close()
        metrics = self.metrics
        self.say(f"{metrics.accepted} requests accepted, {metrics.answered} answered")

    @property
    def is_running(self) -> bool:
        return self.worker.is_running

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
                sent.append(self.reader.item_of(item))
            except RewardError as error:
                sent.append(None)
                failures[place] = str(error)
        read = self.model.read(prompts, sent, users)
        failures = {**read.failures, **failures}
        kept = []
        for number, (place, row) in enumerate(zip(read.places, read.rows, strict=True)):
            reason = self.reader.excess_of(row)
            if reason is None:
                kept.append(number)
            else:
                failures[place] = reason
        rows, places = [read.rows[n] for n in kept], [read.places[n] for n in kept]
        return Readable(rows, read.vectors[kept], places, failures)

    async def solve(self, pairs: int, read: Callable[[], Asked]) -> tuple[Asked, Tensor]:
        """Return what ``read`` makes of so many pairs, and what it is solved for.

        They are read beside the event loop, and only while there is place for them: refusing them
        must not cost what answering costs.
        """
        most = self.settings.adapt_queue
        if 2 * pairs > most:
            raise HTTPException(
                413,
                f"{pairs} pairs have {2 * pairs} items, more than the {most} of "
                "serve.adapt_queue; send fewer",
            )

        def job() -> tuple[Asked, AnswersJob]:
            self.worker.require_place(2 * pairs)
            asked = read()
            return asked, AnswersJob(asked, [cost_of(row, self.longest) for row in asked.rows])

        with _refusals():
            asked, answers = await aside(job)
        return asked, await self.ask(lambda: self.worker.submit_answers(answers))

    async def ask(self, submit: Callable[[], Future[Result]]) -> Result:
        """Let the model's thread do something and wait for it."""
        with _refusals():
            return await self.mailbox.result_of(submit())


@contextmanager
def _refusals() -> Iterator[None]:
    """Say with a status why something is not done."""
    try:
        yield
    except Full as error:
        raise HTTPException(429, "too much is waiting; try again", AGAIN) from error
    except Ending as error:
        raise HTTPException(503, "the server is ending; ask again", AGAIN) from error
    except PalError as error:
        raise HTTPException(422, str(error)[:LONGEST_REASON]) from error
