"""What a worker has of the store, read again and again behind the requests' backs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from app.errors import StorageError

log = structlog.get_logger()


async def keep_fresh(what: str, refresh: Callable[[], Awaitable[object]], period_s: float) -> None:
    """Refresh until cancelled; a store that is away is asked again. `what` it is, the log says where that fails."""
    while True:
        await asyncio.sleep(period_s)
        try:
            await refresh()
        except StorageError as error:
            log.warning(f"{what} not refreshed", error=error.detail)
        except Exception:
            log.exception(f"{what} not refreshed")
