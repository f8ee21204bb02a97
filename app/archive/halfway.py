"""Merges that were cut off, and that nobody asks for again: finished with the steps that anybody takes who meets one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from app.errors import LongwaveError

Finish = Callable[[Sequence[tuple[str, str]]], int]
"""Finishes the merges of these (tenant, user id), and returns how many it did."""

log = structlog.get_logger()


class Resolver(Protocol):
    """What is needed of the store."""

    async def resolve(self, tenant: str, user_id: str) -> str: ...

    async def close(self) -> None: ...


def finisher(open_store: Callable[[], Resolver]) -> Finish:
    """For callers without an event loop, as those of an archive are. One that cannot be finished is logged, and left as it is."""

    async def finish(users: Sequence[tuple[str, str]]) -> int:
        store, done = open_store(), 0
        try:
            for tenant, user_id in users:
                try:
                    await store.resolve(tenant, user_id)
                    done += 1
                except LongwaveError as error:
                    log.warning("a merge that was cut off cannot be finished", error=error.detail)
        finally:
            await store.close()
        return done

    def run(users: Sequence[tuple[str, str]]) -> int:
        if not users:
            return 0
        with ThreadPoolExecutor(1) as thread:  # the caller's may have a loop all the same
            return thread.submit(asyncio.run, finish(users)).result()

    return run
