"""What the model's threads have done on its way to the event loop: one wake-up for many results."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


class Mailbox:
    """Lets coroutines of one event loop wait for futures of other threads.

    asyncio itself wakes the loop for each future: a system call and a turn at the interpreter for
    each row of a batch.
    """

    def __init__(self) -> None:
        self._arrived: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._is_told = False
        """whether the loop knows that something has arrived"""
        self._lock = threading.Lock()

    async def result_of(self, future: Future[Result]) -> Result:
        """Wait for a future; whoever gives up waiting cancels it."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[Result] = loop.create_future()
        future.add_done_callback(lambda done: self._put(loop, waiting, done))
        try:
            return await waiting
        except asyncio.CancelledError:
            future.cancel()
            raise

    def _put(
        self, loop: asyncio.AbstractEventLoop, waiting: asyncio.Future[Any], done: Future[Any]
    ) -> None:
        with self._lock:
            self._arrived.append((waiting, done))
            is_told, self._is_told = self._is_told, True
        if not is_told:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(self._open)

    def _open(self) -> None:
        with self._lock:
            arrived, self._arrived = self._arrived, deque()
            self._is_told = False
        for waiting, done in arrived:
            if waiting.done():  # given up
                continue
            if done.cancelled():
                waiting.cancel()
            elif (error := done.exception()) is not None:
                waiting.set_exception(error)
            else:
                waiting.set_result(done.result())
