"""Requests that are waiting at the same time are answered together: one round trip, one call of the model for all of them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from app.errors import LongwaveError, OverloadedError

PACE_S: Final = 0.002
"""What the requests of a busy service wait for company: two milliseconds that they hardly notice, for a fifth of its core."""

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Batcher(Generic[Question, Answer]):
    """Gathers questions and has `run` answer them, in batches that form by themselves.

    A question that finds nothing running goes at once, together with those of the same turn of the event loop; what comes while
    batches are running makes up the next one. So batches are small when there is little to do, and large, and cheaper for each,
    when there is much. In between `pace_s` has them wait for some company.

    If a batch fails, each of its questions is asked alone, so that one bad one does not fail the others; errors that are nobody's
    fault (storage away) go to all. So does every error where `repeats` is false: what was asked may have been done.

    Args:
        run: questions -> answers in the same order; an answer that is an exception is raised where its question was asked.
        most: questions in one batch.
        running: batches at the same time.
        waiting: beyond so many waiting questions new ones are refused.
        repeats: whether a question may be asked twice.
        pace_s: what came while a batch was running goes no sooner than so long after that one began: a batch costs much the same
            for one question as for a few.
        enough: so many waiting questions are not kept waiting by `pace_s`; a full batch if not said.
    """

    def __init__(
        self,
        run: Callable[[list[Question]], Awaitable[Sequence[Answer | Exception]]],
        *,
        most: int,
        running: int,
        waiting: int,
        repeats: bool = True,
        pace_s: float = 0.0,
        enough: int | None = None,
    ) -> None:
        self._run = run
        self._most = most
        self._free = running
        self._bound = waiting
        self._repeats = repeats
        self._pace_s = pace_s
        self._enough = enough or most
        self._began_s = 0.0  # when the last batch began, by the clock of the loop
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, question: Question) -> Answer:
        """The answer to one question.

        Raises:
            OverloadedError: too many are waiting already.
        """
        if len(self._waiting) >= self._bound:
            raise OverloadedError(f"{self._bound} requests are waiting already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, future))
        if not self._scheduled and self._free:
            self._schedule(loop)
        elif self._timer is not None and len(self._waiting) >= self._enough:
            self._timer.cancel()
            self._timer = None
            loop.call_soon(self._start)
        return await future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = True
        if self._pace_s and self._tasks and len(self._waiting) < self._enough:
            self._timer = loop.call_at(self._began_s + self._pace_s, self._start)
        else:
            loop.call_soon(self._start)

    def _start(self) -> None:
        self._scheduled, self._timer = False, None
        self._began_s = asyncio.get_running_loop().time()
        while self._waiting and self._free:
            batch: list[tuple[Question, asyncio.Future[Answer]]] = []
            while self._waiting and len(batch) < self._most:
                question, future = self._waiting.popleft()
                if not future.done():  # whoever asked may have hung up
                    batch.append((question, future))
            if batch:
                self._free -= 1
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
            self._free += 1
            if self._waiting and not self._scheduled:
                self._schedule(asyncio.get_running_loop())

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
