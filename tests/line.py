"""A line to a server that may break, lead elsewhere, or lose what is on it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

Place = str | int
"""A server: the path of its socket, or its port on this machine."""


class Line:
    """A line to a Redis, with a socket of its own, that carries so many bytes at a time.

    Attributes:
        to: where those end who connect from now on.
        loses_the_next_reply: the line breaks when there is one, whose ever it is.
        loses_the_reply_to: the line breaks at the reply to a request that has these bytes in it, once.
        stops: requests that have these bytes in them do not arrive: the line breaks.
        halts_before: what happens after what comes before these bytes has arrived, and before they do, once.
        is_down: from the moment on at which a reply was lost, or from now on, nobody gets through.
    """

    def __init__(self, to: Place, piece: int = 2**16) -> None:
        self.to = to
        self.loses_the_next_reply = False
        self.loses_the_reply_to: bytes | None = None
        self.goes_down_with_it = False
        self.stops: bytes | None = None
        self.halts_before: tuple[bytes, Callable[[], Awaitable[None]]] | None = None
        self.is_down = False
        self._piece = piece
        self._writers: list[asyncio.StreamWriter] = []

    def says(self, what: bytes) -> None:
        """To everybody at its end, as if Redis did."""
        for writer in self._writers:
            writer.write(what)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """For `asyncio.start_server` and `start_unix_server`."""
        self._writers.append(writer)
        if self.is_down:
            writer.close()
            return
        if isinstance(self.to, str):
            replies, requests = await asyncio.open_unix_connection(self.to)
        else:
            replies, requests = await asyncio.open_connection("127.0.0.1", self.to)
        lossy = asyncio.Event()
        await asyncio.gather(self._carry_requests(reader, requests, lossy), self._carry_replies(replies, writer, lossy))

    async def _carry_requests(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, lossy: asyncio.Event) -> None:
        while data := await source.read(self._piece):
            if self.is_down or (self.stops is not None and self.stops in data):
                break
            if self.loses_the_reply_to is not None and self.loses_the_reply_to in data:
                self.loses_the_reply_to = None
                lossy.set()
            await asyncio.sleep(0)
            if self.halts_before is not None and self.halts_before[0] in data:
                (mark, happens), self.halts_before = self.halts_before, None
                sink.write(data[: data.index(mark)])
                await happens()
                data = data[data.index(mark) :]
            sink.write(data)
        sink.close()

    async def _carry_replies(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, lossy: asyncio.Event) -> None:
        while data := await source.read(self._piece):
            await asyncio.sleep(0)
            if self.loses_the_next_reply or lossy.is_set() or self.is_down:
                self.loses_the_next_reply = False
                self.is_down = self.is_down or (lossy.is_set() and self.goes_down_with_it)
                break
            sink.write(data)
        sink.close()
