"""Customers as they were before the replay, brought into the demo's Redis before its service starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from app.api.service import TENANT
from app.demo.rehearsal import History
from app.state.redis import RedisStore

_TOGETHER: Final = 16  # customers imported at once: more make Redis no faster, and Ctrl-C waits for one such batch
_TIMEOUT_MS: Final = 30_000


@dataclass(frozen=True)
class Past:
    """How many events a customer had before the replay, and in how many baskets there was a purchase."""

    events: int
    baskets: int


def import_histories(
    url: str, histories: Iterable[History], positive: Collection[str], max_sequence: int, on_done: Callable[[int], None]
) -> dict[str, Past]:
    """Write the histories into the Redis at `url`, and say per customer what is there now.

    Args:
        positive: the event types that count as a purchase.
        max_sequence: as the service has it.
        on_done: called with the number of customers that have just been written.

    Raises:
        StorageError: Redis did not answer.
        DemoError: a history cannot be read.
    """
    pasts: dict[str, Past] = {}
    waiting = iter(histories)
    with asyncio.Runner() as runner:
        # The demo archives nothing: what it writes need not wait in the log.
        store = RedisStore(url, timeout_ms=_TIMEOUT_MS, max_sequence=max_sequence, log_max_length=1)
        try:
            runner.run(store.open())
            while batch := list(islice(waiting, _TOGETHER)):
                runner.run(_import(store, batch))
                pasts |= {history.user_id: past_of(history, positive) for history in batch}
                on_done(len(batch))
        finally:
            runner.run(store.close())
    return pasts


def past_of(history: History, positive: Collection[str]) -> Past:
    """The figures of one history."""
    return Past(len(history.events), len({event.basket for event in history.events if event.type in positive}))


async def _import(store: RedisStore, batch: Sequence[History]) -> None:
    async with asyncio.TaskGroup() as group:
        for history in batch:
            group.create_task(_import_one(store, history))


async def _import_one(store: RedisStore, history: History) -> None:
    if history.attributes or not history.events:
        await store.set_attributes(TENANT, history.user_id, history.attributes)
    if history.events:
        events = [event.stored() for event in history.events]
        await store.write_history(TENANT, history.user_id, events, [None] * len(events), "demo")
