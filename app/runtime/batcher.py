"""Requests that are waiting at the same time are answered together: one round trip, one call of the model for all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from app.errors import LongwaveError, OverloadedError

_TURNS: Final = 4
"""Turns of the event loop between two batches: answers are written, and what has arrived meanwhile is read and asked.

A batch costs much the same for one question as for a few, and keeps the loop from reading: without the turns whoever came during
one would miss the next one too.
"""

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Batcher(Generic[Question, Answer]):
    """Gathers questions and has `run` answer them, in batches that form by themselves.

    A question that finds nothing running goes at once, together with those of the same turn of the event loop; what comes while
    a batch is running makes up the next one. So batches are small when there is little to do, and large, and cheaper for each,
    when there is much. Only full ones run beside another.

    If a batch fails, each of its questions is asked alone, so that one bad one does not fail the others; errors that are nobody's
    fault (storage away) go to all. So does every error where `repeats` is false: what was asked may have been done.

    Args:
        run: questions -> answers in the same order; an answer that is an exception is raised where its question was asked.
        most: questions in one batch.
        running: batches at the same time.
        waiting: beyond so many waiting questions new ones are refused.
        repeats: whether a question may be asked twice.
    """

    def __init__(
        self,
        run: Callable[[list[Question]], Awaitable[Sequence[Answer | Exception]]],
        *,
        most: int,
        running: int,
        waiting: int,
        repeats: bool = True,
    ) -> None:
        self._run = run
        self._most = most
        self._running = running
        self._bound = waiting
        self._repeats = repeats
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._scheduled = False
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, question: Question) -> Answer:
        """The answer to one question.

        Raises:
            OverloadedError: too many are waiting already.
        """
        if len(self._waiting) >= self._bound:
            raise OverloadedError(f"{self._bound} requests are waiting already")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._may_start():
            self._start_in(1)
        return await future

    def _may_start(self) -> bool:
        if self._under_way:
            return self._under_way < self._running and len(self._waiting) >= self._most
        return bool(self._waiting)

    def _start_in(self, turns: int) -> None:
        """Start what may be started after so many turns of the event loop, or when that is going to happen already."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn, turns - 1)

    def _turn(self, left: int) -> None:
        if left:
            asyncio.get_running_loop().call_soon(self._turn, left - 1)
            return
        self._scheduled = False
        while self._may_start():
            batch: list[tuple[Question, asyncio.Future[Answer]]] = []
            while self._waiting and len(batch) < self._most:
                question, future = self._waiting.popleft()
                if not future.done():  # whoever asked may have hung up
                    batch.append((question, future))
            if batch:
                self._under_way += 1
                task = asyncio.create_task(self._answer(batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _answer(self, batch: list[tuple[Question, asyncio.Future[Answer]]]) -> None:
        try:
            await self._ask(batch)
        except BaseException as error:  # cancelled: the service stops
            for _, future in batch:
                if not future.done():
                    future.set_exception(error if isinstance(error, Exception) else OverloadedError("shutting down"))
            raise
        finally:
            self._under_way -= 1
            self._start_in(_TURNS)

    async def _ask(self, batch: list[tuple[Question, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._run([question for question, _ in batch])
        except Exception as error:
            if len(batch) == 1 or not self._repeats or isinstance(error, LongwaveError):
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for one in batch:
                    await self._ask([one])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
