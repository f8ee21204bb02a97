"""One connection to a Redis, from when redis-py has opened it: commands out, their replies in, and nothing between.

redis-py's own way goes through a stream and several coroutines for each reply, and packs commands in Python: 38 microseconds of a
core for a small call instead of 13. Nothing of it is needed where one call at a time has a connection to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse

_MORE: Final = object()
"""What the parser gives while a reply is not whole."""


class Wire(asyncio.Protocol):
    """Takes a connection over from redis-py, which has connected it, and which closes it.

    Attributes:
        is_open: whether it can be asked: it has not ended, and nothing came that nobody asked for.
        era: of the transport when it was opened.
    """

    def __init__(self, connection: AbstractConnection, era: int = 0) -> None:
        self.is_open = True
        self.era = era
        self._connection = connection
        self._errors = _Errors(connection._parser.parse_error)
        self._parser = hiredis.Reader(
            protocolError=InvalidResponse,
            replyError=self._errors,
            notEnoughData=_MORE,
        )
        self._replies: list[Any] = []
        self._wanted = 0
        self._asked: asyncio.Future[list[Any]] | None = None
        writer = connection._writer
        assert writer is not None
        self._transport = writer.transport
        self._before = self._transport.get_protocol()
        self._transport.set_protocol(self)

    @classmethod
    async def open(cls, connection: AbstractConnection, era: int = 0) -> Self:
        """Connect and take over. Raises what redis-py raises."""
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
            return cls(connection, era)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise

    @property
    def takes_no_writes(self) -> bool:
        """Whether the server has said so, of one write at least."""
        return self._errors.read_only

    async def ask(self, commands: Sequence[tuple[Any, ...]], timeout_s: float) -> list[Any]:
        """The replies to some commands, in their order; an error reply is returned in its place.

        Raises:
            RedisConnectionError: the connection ended, or this Redis cannot be asked yet.
            TimeoutError: not all of them came in time.

        Whatever it raises, the connection is closed then: it may be halfway through a reply.
        """
        loop = asyncio.get_running_loop()
        asked: asyncio.Future[list[Any]] = loop.create_future()
        self._asked = asked
        self._replies, self._wanted = [], len(commands)
        pack = hiredis.pack_command
        self._transport.write(b"".join([pack(command) for command in commands]))
        timer = loop.call_later(timeout_s, self._late)
        try:
            return await asked
        except BaseException:
            await self.close()
            raise
        finally:
            self._asked = None
            timer.cancel()

    async def close(self, wait: bool = False) -> None:
        """End the connection, and `wait` until it has ended."""
        self.is_open = False
        await self._connection.disconnect(nowait=not wait)

    def data_received(self, data: bytes) -> None:
        if self._asked is None or self._asked.done():
            self.is_open = False  # nobody asked: it cannot have been meant for whoever asks next
            return
        try:
            self._parser.feed(data)
            while len(self._replies) < self._wanted:
                reply = self._parser.gets()
                if reply is _MORE:
                    return
                self._replies.append(_sound(reply))
        except Exception as error:  # what came is no reply, or says that this Redis cannot be asked
            self._failed(error)
            return
        self.is_open = not self._parser.has_data()
        self._asked.set_result(self._replies)

    def connection_lost(self, error: Exception | None) -> None:
        self._failed(RedisConnectionError(f"Connection closed by server ({error})"))
        self._before.connection_lost(error)  # redis-py waits for it where it closes the connection

    def _late(self) -> None:
        if self._asked is not None and not self._asked.done():  # else who stood still was this process
            self._failed(TimeoutError())

    def _failed(self, error: Exception) -> None:
        self.is_open = False
        if self._asked is not None and not self._asked.done():
            self._asked.set_exception(error)


class _Errors:
    """Makes an error of the words of each error reply: redis-py's own, so that whoever asks cannot tell the difference.

    Attributes:
        read_only: whether one said that the server takes no writes.
    """

    def __init__(self, make: Callable[[str], Exception]) -> None:
        self.read_only = False
        self._make = make

    def __call__(self, words: str) -> Exception:
        if "READONLY" in words:  # at the beginning, or where a script passes the server's words on inside its own
            self.read_only = True
        return self._make(words)


def _sound(reply: Any) -> Any:
    """A reply. Raises it, like redis-py, if it says that this Redis is loading or has too many clients."""
    if isinstance(reply, RedisConnectionError):
        raise reply
    if isinstance(reply, list) and reply and isinstance(reply[0], RedisConnectionError):
        raise reply[0]
    return reply
