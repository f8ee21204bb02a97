"""Requests that are waiting at the same time are answered together: one round trip, one call of the model for all of them."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Final, Generic, TypeVar
from weakref import WeakMethod

from app.errors import LateError, LongwaveError, NotReadyError, OverloadedError, StorageError

PACE_S: Final = 0.002
"""What the requests of a busy service wait for company: two milliseconds that they hardly notice, for a fifth of its core."""

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long questions wait for their turn.

    Attributes:
        wait_s: who has waited longer when the turn comes is refused. Longer than one batch may take, or who comes just after one
            began never has a turn.
        away_s: storage that has failed a batch after so long, and has answered nobody in the last half of that, is away, and
            those who wait need not find out one batch after the other. A connection that was lost, or that alone is dead, fails
            nobody but its batch.
        answered_s: says when storage last answered anybody, on time.monotonic().
    """

    wait_s: float = inf
    away_s: float = inf
    answered_s: Callable[[], float] = lambda: -inf


FOREVER: Final = Patience()


class Batcher(Generic[Question, Answer]):
    """Gathers questions and has `run` answer them, in batches that form by themselves.

    A question that finds nothing running goes at once, together with those of the same turn of the event loop; what comes while
    batches are running makes up the next one. So batches are small when there is little to do, and large, and cheaper for each,
    when there is much. In between `pace_s` has them wait for some company.

    If a batch fails, each of its questions is asked alone, so that one bad one does not fail the others; errors that are nobody's
    fault (storage away) go to all. So does every error where `repeats` is false: what was asked may have been done.

    Args:
        run: questions -> answers in the same order; an answer that is an exception is raised where its question was asked. A
            method is not kept alive: who asks by a batcher of its own is no cycle, and leaves memory when nobody needs it.
        most: questions in one batch.
        running: batches at the same time.
        waiting: beyond so many waiting questions new ones are refused.
        repeats: whether a question may be asked twice.
        pace_s: what came while a batch was running goes no sooner than so long after that one began: a batch costs much the same
            for one question as for a few.
        enough: so many waiting questions are not kept waiting by `pace_s`; a full batch if not said.
        weigh: what a question costs. A batch weighs at most `heaviest`, or is one question.
        patience: how long questions wait.
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
        weigh: Callable[[Question], int] | None = None,
        heaviest: int = 0,
        patience: Patience = FOREVER,
    ) -> None:
        self._run = WeakMethod(run) if inspect.ismethod(run) else lambda: run
        self._most = most
        self._free = running
        self._bound = waiting
        self._repeats = repeats
        self._pace_s = pace_s
        self._enough = enough or most
        self._weigh = weigh
        self._heaviest = heaviest
        self._patience = patience
        # By the clock of the loop. It is read when something happens anyway: a timer for each question would cost more than that.
        self._began_s = 0.0  # when the last batch began
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[tuple[Question, asyncio.Future[Answer], float]] = deque()  # and since when
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, question: Question) -> Answer:
        """The answer to one question.

        Raises:
            OverloadedError: too many are waiting already.
            LateError: this one has waited too long; `run` has not seen it.
            StorageError: storage is away, as those before have found out; `run` has not seen it.
        """
        if len(self._waiting) >= self._bound:
            raise OverloadedError(f"{self._bound} requests are waiting already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, future, loop.time()))
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
            if batch := self._next():
                self._free -= 1
                task = asyncio.create_task(self._answer(batch))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _next(self) -> list[tuple[Question, asyncio.Future[Answer]]]:
        """Those whose turn it is, in the order in which they came."""
        batch: list[tuple[Question, asyncio.Future[Answer]]] = []
        oldest_s = self._began_s - self._patience.wait_s
        weight = 0
        while self._waiting and len(batch) < self._most:
            question, future, since_s = self._waiting[0]
            if future.done():  # whoever asked may have hung up
                self._waiting.popleft()
                continue
            if since_s < oldest_s:
                self._waiting.popleft()
                waited_s = self._began_s - since_s
                future.set_exception(LateError(f"waited {waited_s:.1f} s for a turn, too long; nothing was done"))
                continue
            if self._weigh is not None:
                weight += self._weigh(question)
                if batch and weight > self._heaviest:
                    break
            self._waiting.popleft()
            batch.append((question, future))
        return batch

    async def _answer(self, batch: list[tuple[Question, asyncio.Future[Answer]]]) -> None:
        try:
            await self._ask(batch)
        except BaseException as error:  # cancelled: the service stops
            for _, future in batch:
                if not future.done():
                    stops = NotReadyError("shutting down; what was asked may have been done")
                    future.set_exception(error if isinstance(error, Exception) else stops)
            raise
        finally:
            self._free += 1
            if self._waiting and not self._scheduled:
                self._schedule(asyncio.get_running_loop())

    async def _ask(self, batch: list[tuple[Question, asyncio.Future[Answer]]]) -> StorageError | None:
        """Answer a batch; returns an error that says that storage is away."""
        clock = asyncio.get_running_loop().time
        began_s = clock()
        try:
            run = self._run()
            if run is None:
                raise NotReadyError("who would answer is gone")  # and so is whoever asked
            answers = await run([question for question, _ in batch])
        except Exception as error:
            if len(batch) == 1 or not self._repeats or isinstance(error, LongwaveError):
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                if clock() - began_s < self._patience.away_s or self._is_heard() or not isinstance(error, StorageError):
                    return None
                self._give_up([future for _, future, _ in self._waiting], error)
                self._waiting.clear()
                return error
            for place, one in enumerate(batch):
                if (away := await self._ask([one])) is not None:
                    self._give_up([future for _, future in batch[place + 1 :]], away)
                    return away
            return None
        for (_, future), answer in zip(batch, answers, strict=True):
            if not future.done():
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        return None

    def _is_heard(self) -> bool:
        """Whether storage answers others."""
        return monotonic() - self._patience.answered_s() < self._patience.away_s / 2

    def _give_up(self, futures: list[asyncio.Future[Answer]], away: StorageError) -> None:
        """Tell those who wait what others have found out."""
        for future in futures:
            if not future.done():
                future.set_exception(StorageError(f"{away.detail} to those before; nothing of this was sent to it"))
