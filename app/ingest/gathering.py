"""Counts on their way to the store, behind the requests' backs: soft state, which no request waits for."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import structlog

from app.errors import StorageError

_MOST_WAITING = 200_000  # while the store is away; beyond it the oldest are given up

log = structlog.get_logger()

Told = TypeVar("Told", bound=tuple[Any, ...])
"""An increment: the item id, then whatever else is counted by."""


class Gathering(ABC, Generic[Told]):
    """Gathers increments for a moment, and has them counted together.

    Args:
        what: is counted, for the log.
        knows: whether an item is in the catalogue. Others are not counted: their ids are any text that a client sent, and what
            the store has of an item stays. None: every item is counted.
    """

    def __init__(self, what: str, delay_s: float, knows: Callable[[str], bool] | None) -> None:
        self._what = what
        self._delay_s = delay_s
        self._knows = knows
        self._waiting: dict[str, list[Told]] = {}
        self._flushing: asyncio.Task[None] | None = None
        self._one_flush = asyncio.Lock()

    @abstractmethod
    async def _count(self, tenant: str, increments: Sequence[Told]) -> None:
        """Count some in the store. Raises StorageError."""

    def add(self, tenant: str, increments: Sequence[Told]) -> None:
        """Have increments counted soon; never blocks, never raises."""
        if self._knows is not None:
            increments = [increment for increment in increments if self._knows(increment[0])]
        if not increments:
            return
        waiting = self._waiting.setdefault(tenant, [])
        waiting.extend(increments)
        del waiting[: max(0, len(waiting) - _MOST_WAITING)]
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_later())

    async def close(self) -> None:
        """Count what is still waiting, then return."""
        flushing, self._flushing = self._flushing, None  # it knows where it is cancelled, which is here: a cycle
        if flushing is not None:
            flushing.cancel()
            await asyncio.gather(flushing, return_exceptions=True)
        await self.flush()

    async def flush(self) -> None:
        """Count what is waiting now."""
        async with self._one_flush:
            while self._waiting:
                tenant, increments = self._waiting.popitem()
                try:
                    await self._count(tenant, increments)
                except StorageError:
                    # The events are stored; a count is not worth refusing them, nor counting some twice.
                    log.warning(f"{self._what} not counted", tenant=tenant, events=len(increments))
                except Exception:
                    log.exception(f"{self._what} not counted", tenant=tenant, events=len(increments))

    async def _flush_later(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._delay_s)
            await asyncio.shield(self.flush())  # what has been taken out is counted, also if the service stops
