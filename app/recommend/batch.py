"""Lists for many users in one request: a few at a time, in order, so that whoever waits for one list hardly notices."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Final, TypeVar

from app.errors import OverloadedError

MOST: Final = 8
"""Such requests at one time, in a worker."""
AT_ONCE: Final = 4
"""Users that are asked for at one time, by all of them together: an eighth of what one call of the model answers."""

_AHEAD: Final = 8  # lists of one request that may wait for their turn to be sent
_TRY_AGAIN_S: Final = 0.1
_TRIES: Final = 100

One = TypeVar("One")
Made = TypeVar("Made")


class Batches:
    """What the requests for many lists share. One per worker, for its one event loop."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(AT_ONCE)  # first come, first served: a long request does not hold up a short one
        self._open = 0

    def begin(self) -> None:
        """Count one more; whoever has begun says `end`. Raises OverloadedError if there are too many."""
        if self._open >= MOST:
            raise OverloadedError(f"{MOST} batches are being made already")
        self._open += 1

    def end(self) -> None:
        self._open -= 1

    async def each(self, asked: Iterable[One], make: Callable[[One], Awaitable[Made]]) -> AsyncGenerator[Made | Exception]:
        """What `make` makes of each, in their order, or its error. Whoever stops asking ends the work by closing this."""
        waiting: deque[asyncio.Task[Made | Exception]] = deque()
        try:
            for one in asked:
                waiting.append(asyncio.create_task(self._one(make, one)))
                if len(waiting) == _AHEAD:
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _one(self, make: Callable[[One], Awaitable[Made]], one: One) -> Made | Exception:
        tries = _TRIES
        while True:
            async with self._turn:
                try:
                    return await make(one)
                except OverloadedError as error:
                    tries -= 1
                    if not tries:
                        return error
                except Exception as error:
                    return error
            await asyncio.sleep(_TRY_AGAIN_S)  # this can wait; those who fill the queue cannot
