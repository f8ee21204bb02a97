"""Answers that are made while they are sent: one JSON document a line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final

import structlog
from fastapi import Response
from starlette.types import Receive, Scope, Send

NDJSON: Final = "application/x-ndjson"
_SLOWEST_S: Final = 60.0  # for a client to take in what was sent before the next line

log = structlog.get_logger()


class Lines(Response):
    """Sends lines no faster than the client reads them; when it hangs up, or reads no more, nothing more is made.

    Args:
        lines: each with its line feed.
        ended: is called at the end, however that came.
    """

    media_type = NDJSON

    def __init__(self, lines: AsyncGenerator[bytes], ended: Callable[[], None]) -> None:
        super().__init__()
        del self.headers["content-length"]  # of the empty body
        self._lines = lines
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(_hung_up(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            await self._lines.aclose()
            self._ended()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for line in self._lines:
            try:
                async with asyncio.timeout(_SLOWEST_S):
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            except TimeoutError:
                log.warning("the client does not read; its connection is closed", waited_s=_SLOWEST_S)
                return  # without an end, so that nobody takes the part for the whole
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
