"""Commands and scripts on Redis, many in one round trip, and what an error that comes back says: of one call, or of Redis.

Where Redis as a whole cannot do this now, that ends everything (`StorageRefusedError`); the error of a single call (a key of
another type, say) stands in the place of its reply, or is raised for those who want every reply sound.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from redis.exceptions import (
    ClusterDownError,
    MovedError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from app.errors import LayoutError, StorageRefusedError
from app.state import keys
from app.state.damage import Damage, names_of
from app.state.scripts import Script
from app.state.transport import Command, Transport

Call = tuple[Sequence[str], Sequence[Any]]
"""Keys and arguments of a script."""

# A server that is up but cannot do this now. A script passes the server's words on inside its own error message.
_REFUSALS: Final = (ReadOnlyError, OutOfMemoryError, ClusterDownError, TryAgainError, MovedError)
_REFUSAL_WORDS: Final = ("READONLY", "OOM ", "BUSY ", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "NOPERM")


class Calls:
    """Asks a Redis whose layout was checked first: a call that comes before `open` opens.

    Attributes:
        damage: says what is wrong with what is stored.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.damage = Damage(transport)
        self._opened = False

    async def open(self) -> None:
        """Check that this Redis is laid out as this version expects, or lay out an empty one.

        Raises:
            StorageError: Redis does not answer.
            LayoutError: it was laid out by another version.
        """
        # Read first: a Redis that is full or read-only, but laid out, can still answer questions.
        (found,) = _checked(await self._transport.exchange([("GET", keys.LAYOUT_KEY)]))
        if found is None:
            lay_out: list[Command] = [("SET", keys.LAYOUT_KEY, keys.LAYOUT, "NX"), ("GET", keys.LAYOUT_KEY)]
            _, found = _checked(await self._transport.exchange(lay_out))
        _check_layout(found)
        self._opened = True

    async def run(self, script: Script, calls: Sequence[Call], *, durable: bool = False, only: int | None = None) -> list[Any]:
        """One script for each of `calls`, in one round trip; one more after a restart or SCRIPT FLUSH."""
        replies = await self._run(script, calls, durable=durable, only=only)
        return await self._sound(replies, [names for names, _ in calls])

    async def run_each(self, script: Script, calls: Sequence[Call], *, durable: bool = False) -> list[Any]:
        """`run`, but an error that is one call's own stands in the place of its reply."""
        replies = await self._run(script, calls, durable=durable)
        return [
            await self.damage.explained(reply, names) if isinstance(reply, Exception) else reply
            for reply, (names, _) in zip(replies, calls, strict=True)
        ]

    async def _run(self, script: Script, calls: Sequence[Call], *, durable: bool = False, only: int | None = None) -> list[Any]:
        """`run`, but an error reply is returned in its place, unless it says something of Redis as a whole."""
        commands: list[Command] = [("EVALSHA", script.sha, len(names), *names, *arguments) for names, arguments in calls]
        replies = await self._send(commands, durable=durable, only=only)
        # Only what Redis refused with NOSCRIPT did not run; the others must not run twice. EVAL, not SCRIPT LOAD and EVALSHA:
        # on a Cluster each node has its own scripts.
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            again: list[Command] = [("EVAL", script.source, *commands[index][2:]) for index in unknown]
            for index, reply in zip(unknown, await self._send(again, durable=durable, only=only), strict=True):
                replies[index] = reply
        return _unrefused(replies)

    async def all(self, commands: Sequence[Command]) -> list[Any]:
        return await self._sound(_unrefused(await self._send(commands)), [names_of(command) for command in commands])

    async def _sound(self, replies: list[Any], names: Sequence[Sequence[str]]) -> list[Any]:
        """The replies, if none is an error."""
        for reply, of in zip(replies, names, strict=True):
            if isinstance(reply, Exception):
                raise await self.damage.explained(reply, of)
        return replies

    async def _send(self, commands: Sequence[Command], *, durable: bool = False, only: int | None = None) -> list[Any]:
        """The replies to `commands`, in one round trip; an error reply is returned in its place. Opens first if need be."""
        if not commands:
            return []
        if not self._opened:
            await self.open()
        return await self._transport.exchange(commands, durable=durable, only=only)

    async def scan(self, pattern: str) -> AsyncIterator[list[str]]:
        """The names of all keys that match, some at a time; one may come twice."""
        if not self._opened:
            await self.open()
        async for names in self._transport.scan(pattern):
            yield [name.decode() for name in names]

    @property
    def generation(self) -> int:
        """Grows whenever another server answers than before; see `Transport`."""
        return self._transport.generation

    @property
    def answered_s(self) -> float:
        """When Redis last answered anybody, on time.monotonic()."""
        return self._transport.answered_s

    async def ping(self) -> None:
        """Return when Redis answers and holds no other layout; raise StorageError or LayoutError otherwise. Writes nothing."""
        (found,) = _checked(await self._transport.exchange([("GET", keys.LAYOUT_KEY)]))
        if found is not None:
            _check_layout(found)

    async def evicts(self) -> str | None:
        """The policy by which this Redis gives up keys when it is full, and with them what was acknowledged, or an erasure. None
        if it refuses writes instead, or does not say. Raises StorageError."""
        said = await self._info("memory")
        policy = said.get(b"maxmemory_policy", b"noeviction").decode()
        return None if policy == "noeviction" or said.get(b"maxmemory") == b"0" else policy

    async def appends(self) -> bool:
        """Whether this Redis keeps an append-only file: without one it loses what came since its last snapshot if it is killed.
        True if it does not say. Raises StorageError."""
        return (await self._info("persistence")).get(b"aof_enabled") != b"0"

    async def _info(self, section: str) -> dict[bytes, bytes]:
        (found,) = await self._transport.exchange([("INFO", section)])
        return dict(line.split(b":", 1) for line in found.split(b"\r\n") if b":" in line) if isinstance(found, bytes) else {}

    async def close(self) -> None:
        """Close every connection."""
        await self._transport.close()


def _check_layout(found: bytes) -> None:
    if found != keys.LAYOUT.encode():
        raise LayoutError(
            f"Redis key {keys.LAYOUT_KEY} says layout {found.decode(errors='replace')}, this version has {keys.LAYOUT}: "
            "its users would not be found; use another Redis or the version that wrote it"
        )


def _checked(replies: list[Any]) -> list[Any]:
    """The replies, if none is an error; a refusal that may pass (read-only, out of memory, busy) is a StorageError."""
    for reply in _unrefused(replies):
        if isinstance(reply, Exception):
            raise reply
    return replies


def _unrefused(replies: list[Any]) -> list[Any]:
    """The replies, errors among them, if none is a refusal."""
    for reply in replies:
        if isinstance(reply, Exception):
            refused = isinstance(reply, ResponseError) and any(words in str(reply) for words in _REFUSAL_WORDS)
            if refused or isinstance(reply, _REFUSALS):
                words = "Redis cannot do this now: it is read-only, out of memory, busy or failing over"
                raise StorageRefusedError(words) from reply
    return replies
