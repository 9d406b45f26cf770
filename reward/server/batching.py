"""What waits for the model, and which of it makes the next batch: all requests take turns."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from pal.items import Image, Item, Text
from pal.reward.adaptation import ItemPairs
from pal.reward.model import Row

ROWS_A_TURN = 8
"""of one request, before the next one has its turn"""
FEWEST_SHARED = 8
"""rows that a batch has before another thread takes part of them: fewer take hardly less time"""
ROW_COST, IMAGE_COST = 32, 1024
"""what a row costs beside its text, and an image, in bytes of text that the model reads"""
TOKENISED = 64
"""bytes beyond the longest text that the model reads cost so many times less: they are only
tokenised"""


@dataclass(frozen=True)
class Scored:
    """Rewards (n,), and why some rows have none."""

    rewards: Tensor
    failures: dict[int, str]


@dataclass(eq=False)
class RowsJob:
    """Rows that one request waits for."""

    rows: Sequence[Row]
    vectors: Tensor
    """(n, R) of the rows' users"""
    costs: list[int]
    future: Future[Scored] = field(default_factory=Future)
    arrived: float = 0.0
    """on the monotonic clock"""
    taken: int = 0
    """rows that have been given to the model"""
    scored: dict[int, Scored] = field(default_factory=dict)
    """parts by their first row, in the order in which they were ready"""

    @property
    def left(self) -> int:
        return len(self.rows) - self.taken

    @property
    def is_scored(self) -> bool:
        """Whether all rows are scored; a batch may hold several parts of one request."""
        return sum(len(part.rewards) for part in self.scored.values()) == len(self.rows)

    def result(self) -> Scored:
        """Return the rewards of all rows, once all are scored."""
        parts = sorted(self.scored.items())
        return Scored(
            torch.cat([part.rewards for _, part in parts]),
            {start + row: reason for start, part in parts for row, reason in part.failures.items()},
        )


@dataclass(eq=False)
class AnswersJob:
    """Answers of a new user on the way to a vector (R,), or comparisons on the way to
    probabilities."""

    asked: ItemPairs
    costs: list[int]
    """of each item, two for each pair"""
    future: Future[Tensor] = field(default_factory=Future)

    @property
    def left(self) -> int:
        """Items that are not encoded yet."""
        return len(self.costs) - self.asked.encoded

    def fitting(self, cost: float) -> int:
        """Return how many of the next items cost at most so much, one at least."""
        sums = accumulate(self.costs[self.asked.encoded :])
        return max(1, sum(1 for total in sums if total <= cost))


@dataclass(frozen=True)
class Part:
    """Some rows of a job, in a batch with others'."""

    job: RowsJob
    rows: slice


class Turns:
    """Requests in turn: a long one does not keep the others waiting, and itself comes to an end."""

    def __init__(self, max_rows: int, max_cost: int) -> None:
        self.max_rows, self.max_cost = max_rows, max_cost
        self.jobs: deque[RowsJob] = deque()
        self.waiting = 0
        """rows that are not answered yet"""
        self.due = 0
        """rows that have waited for others as long as they may, or with enough of them"""

    @property
    def left(self) -> int:
        """Rows that are not with the model yet."""
        return sum(job.left for job in self.jobs)

    def put(self, job: RowsJob) -> None:
        job.arrived = time.monotonic()
        self.jobs.append(job)
        self.waiting += len(job.rows)

    def next_batch(self, threads: int = 1) -> list[Part]:
        """Take rows of at most so many and such a cost, the share of one of the threads that have
        nothing else to do; a single row may cost more.

        A request whose rows no longer fit stays the first, so that it is not passed over for ever.
        """
        parts: list[Part] = []
        rows, cost = self.max_rows, self.max_cost
        if threads > 1:
            rows = min(rows, max(FEWEST_SHARED, -(-self.left // threads)))
        while self.jobs and rows:
            job = self.jobs.popleft()
            if job.future.done():  # given up by who asked, or failed in an earlier batch
                self.waiting -= job.left
                continue
            start = job.taken
            for own in job.costs[start : start + min(ROWS_A_TURN, rows)]:
                if own > cost and (parts or job.taken > start):
                    break
                job.taken, cost = job.taken + 1, cost - own
            if job.taken == start:
                self.jobs.appendleft(job)
                break
            parts.append(Part(job, slice(start, job.taken)))
            rows -= job.taken - start
            if job.left:
                self.jobs.append(job)
            if cost <= 0:
                break
        taken = sum(part.rows.stop - part.rows.start for part in parts)
        self.due = min(max(0, self.due - taken), self.left)
        return parts


def bytes_of(row: Row) -> int:
    """Return how many bytes of text or of an image's file a row brings."""
    prompt = 0 if row.prompt is None else _bytes_of(row.prompt)
    return prompt + _bytes_of(row.item)


def cost_of(row: Row, longest: int) -> int:
    """Return what scoring a row costs, in bytes of text, of an encoder that reads so many."""
    items = [row.item] if row.prompt is None else [row.item, row.prompt]
    return ROW_COST + sum(_cost_of(item, longest) for item in items)


def _cost_of(item: Item, longest: int) -> int:
    size = _bytes_of(item)
    if isinstance(item, Image):
        return IMAGE_COST + size // TOKENISED
    return min(size, longest) + size // TOKENISED


def _bytes_of(item: Item) -> int:
    if isinstance(item, Text):
        return sum(_length(turn.content) for turn in item.turns)
    return len((item.place.raw if isinstance(item, Image) else item.raw) or b"")


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
