"""Commands to Redis and their replies: one round trip for many, on one server or on a Cluster.

Nothing is sent twice that may have run: a reply that was lost may belong to events that were stored, and only a client that sends
event ids can repeat such a call safely. What Redis has certainly not run (a slot that moved, a script that it does not know) is.
"""

from __future__ import annotations

import asyncio
import math
import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final, Protocol

from redis.asyncio import ConnectionPool, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    MovedError,
    RedisClusterException,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.errors import StorageAddressError, StorageChangedError, StorageError
from app.state.keys import PARTITIONS
from app.state.wire import Wire

Command = tuple[Any, ...]
"""Name and arguments; of `EVALSHA` and `EVAL` the third argument is a key, of everything else the first."""

_ELSEWHERE: Final = (MovedError, AskError, TryAgainError)
_SCAN: Final = 1_000  # keys looked at in one go
_ABOUT: Final = (("server", re.compile(rb"run_id:(\w+)")), ("replication", re.compile(rb"master_replid:(\w+)")))
_TRY_AGAIN_S: Final = 0.02
_LOOK_AGAIN_S: Final = 0.1  # where a server that took no writes is still there, the next look for another one
_AWAY: Final = (RedisConnectionError, RedisTimeoutError, TimeoutError, OSError)
_SYNC_KEY: Final = "lw:{%s}:sync"
_FLEETING_MS: Final = 1_000


class Transport(Protocol):
    """Attributes:
    generation: grows whenever another server answers than before: after a restart, a failover, a slot that moved; also where
        the same one has become a replica of another. What was seen before may be gone, so nothing that was concluded from it
        holds.
    answered_s: when a server last answered anybody, on time.monotonic().
    """

    generation: int
    answered_s: float

    async def exchange(self, commands: Sequence[Command], *, durable: bool = False, only: int | None = None) -> list[Any]:
        """The replies to `commands`, in their order, in one round trip to each node; an error reply is returned in its place, and
        a StorageError for each reply of a node that is away, or has not confirmed, where others have answered.

        Args:
            durable: what was written must be confirmed as the settings demand before this returns.
            only: the generation that the commands were made for; in another one they are not sent.

        Raises:
            StorageError: no answer in time, or not confirmed: what was sent may have been done or not.
            StorageChangedError: it is not `only` any more; nothing was done.
        """

    def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        """The keys of all nodes that match, some at a time; one may come twice. Raises StorageError."""

    async def close(self) -> None: ...


class Confirm:
    """What must have happened to a write before it counts: so many replicas have it, or it is on this node's disk too."""

    def __init__(self, replicas: int, fsync: bool, timeout_ms: int) -> None:
        self.replicas, self.fsync, self.timeout_ms = replicas, fsync, timeout_ms

    @property
    def wanted(self) -> bool:
        return self.replicas > 0 or self.fsync

    def commands(self, tag: str, asking: bool = False) -> list[Command]:
        """What follows the writes, on their connection. The last but one is a write of its own: Redis waits for this
        connection's last write, and a retry that found everything stored already has not written anything.

        Args:
            asking: the slot is on its way to this node. The key is another one then, since one that is on both nodes could not
                move.
        """
        wait: Command = ("WAIT", self.replicas, self.timeout_ms)
        if self.fsync:
            wait = ("WAITAOF", 1, self.replicas, self.timeout_ms)
        key = _SYNC_KEY % tag
        if asking:
            return [("ASKING",), ("SET", f"{key}:{secrets.token_hex(8)}", "", "PX", _FLEETING_MS), wait]
        return [("SET", key, ""), wait]

    def check(self, replies: Sequence[Any], wrote: Any, waited: Any) -> None:
        """Raise StorageError if the replies to the last two of `commands` say no to writes that had these replies."""
        if all(isinstance(one, ResponseError) for one in replies):
            return  # none was done (of a script that is not known, say), and there is nothing to confirm
        for reply in (wrote, waited):
            if isinstance(reply, Exception):
                raise StorageError(f"Redis cannot confirm writes as the settings demand: {reply}") from reply
        on_disk, replicas = (waited[0] >= 1, waited[1]) if self.fsync else (True, waited)
        if not on_disk or replicas < self.replicas:
            where = "" if on_disk else " and not on disk"
            raise StorageError(f"stored, but confirmed by {replicas} of {self.replicas} replicas only{where}")


class _Servers:
    """Knows servers by their run ids, which every start of one makes anew, and by the ids of their histories, which become
    others where they are made replicas or are replicas no more."""

    def __init__(self) -> None:
        self.generation = 0
        self.answered_s = -math.inf
        self._known: dict[str, bytes] = {}  # by address

    async def connected(self, connection: AbstractConnection) -> None:
        """What every new connection begins with."""
        await connection.on_connect()
        ids, told = [], True
        asked = connection.pack_commands([("INFO", section) for section, _ in _ABOUT])
        await connection.send_packed_command(asked, check_health=False)
        for _, pattern in _ABOUT:
            try:
                found = pattern.search(await connection.read_response())
                ids.append(found[1] if found is not None else b"")
            except ResponseError:  # forbidden there: then every new connection may be to another server
                ids.append(secrets.token_bytes(8))
                told = False
        address = repr(connection.repr_pieces()[:2])  # type: ignore[no-untyped-call]
        before, self._known[address] = self._known.get(address), b" ".join(ids)
        if before is not None and before != self._known[address]:
            self.generation += 1
            self.changed(told)

    def changed(self, told: bool) -> None:
        """Another server answers than before; `told`: it has said which one it is."""

    def check(self, only: int | None) -> None:
        """Raise StorageChangedError unless `only` is None or the present generation."""
        if only is not None and only != self.generation:
            raise StorageChangedError("Redis was started again, or another server has taken over")


class SingleTransport(_Servers):
    """One server at `url` (redis://, rediss:// or unix://).

    Args:
        timeout_ms: for a free connection, and for one exchange, connecting included.
        max_connections: further exchanges wait for a free one.

    Raises:
        StorageAddressError: `url` is no address of a Redis.
    """

    def __init__(self, url: str, *, timeout_ms: int, max_connections: int, confirm: Confirm) -> None:
        super().__init__()
        try:
            # Its options and connections are redis-py's; who has which is kept here: its pool takes longer than a small call.
            self._pool = ConnectionPool.from_url(
                url,
                socket_connect_timeout=timeout_ms / 1000,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
                redis_connect_func=self.connected,
            )
            self._pool.make_connection()  # type: ignore[no-untyped-call]  # connects to nothing yet, but reads the options in the address
        except (ValueError, TypeError) as error:
            raise StorageAddressError(f"not an address of a Redis: {error}") from None
        self._timeout_s = timeout_ms / 1000
        self._confirm = confirm
        self._bound = asyncio.Semaphore(max_connections)
        self._free: list[Wire] = []
        self._all: set[Wire] = set()
        self._era = 0  # wires of another one are not asked any more: they may end at a server that has been replaced
        self._era_s = -math.inf  # since when, on time.monotonic()
        self._replaced: dict[str, bytes] = {}  # what `_known` was when a server said that it takes no writes

    async def exchange(self, commands: Sequence[Command], *, durable: bool = False, only: int | None = None) -> list[Any]:
        extra = self._confirm.commands("00") if durable and self._confirm.wanted else []
        timeout_s = self._timeout_s + (self._confirm.timeout_ms / 1000 if extra else 0)
        try:
            if self._free and (last := self._free[-1]).is_open and last.era == self._era and not self._bound.locked():
                await self._bound.acquire()  # at once: nearly every call comes this way
                wire = self._free.pop()
            else:
                began_s = monotonic()
                async with asyncio.timeout(timeout_s):
                    wire = await self._taken()
                timeout_s -= monotonic() - began_s
            try:
                self.check(only)
                replies = await wire.ask([*commands, *extra] if extra else commands, timeout_s)
                self.answered_s = monotonic()
                if wire.takes_no_writes:
                    self._demoted(wire)
            finally:
                self._free.append(wire)
                self._bound.release()
        except _AWAY as error:
            raise StorageError(f"Redis did not answer ({type(error).__name__})") from error
        if extra:
            self._confirm.check(replies[: len(commands)], *replies[-2:])
            del replies[-len(extra) :]
        return replies

    def changed(self, told: bool) -> None:
        if told:  # else every new connection would have all others closed
            self._next_era()

    def _next_era(self) -> None:
        self._era += 1
        self._era_s = monotonic()

    def _demoted(self, wire: Wire) -> None:
        """A server has said that it takes no writes: if it has a successor, that is who answers new connections.

        While none has come, it is asked on, with new connections now and then. What was seen of it when it was a master says
        nothing of it as a replica, but no more than that: where nobody can write, nothing goes wrong for good.
        """
        if wire.era != self._era:
            return
        if self._replaced != self._known:
            self._replaced = dict(self._known)
            self.generation += 1
            self._next_era()
        elif monotonic() > self._era_s + _LOOK_AGAIN_S:
            self._next_era()

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        cursor: bytes | int = 0
        while True:
            (reply,) = await self.exchange([("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN)])
            if isinstance(reply, Exception):
                raise reply
            cursor, names = reply
            yield names
            if int(cursor) == 0:
                return

    async def _taken(self) -> Wire:
        """An open connection that nobody else has, when there may be one more; it counts as taken until `_bound` is released."""
        await self._bound.acquire()
        try:
            while True:
                while self._free:
                    wire = self._free.pop()
                    if wire.is_open and wire.era == self._era:
                        return wire
                    self._all.discard(wire)
                    await wire.close()
                # Its era begins before it does: of two that are opened while a server is replaced, one may end at the old one.
                wire = await Wire.open(self._pool.make_connection(), self._era)  # type: ignore[no-untyped-call]
                self._all.add(wire)
                if wire.era == self._era:
                    return wire
                self._free.append(wire)
        except BaseException:
            self._bound.release()
            raise

    async def close(self) -> None:
        for wire in [*self._all]:  # calls that are under way may open another one
            await wire.close(wait=True)


class ClusterTransport(_Servers):
    """A Redis Cluster, one of whose nodes is at `url`. Arguments and errors as for one server.

    The replies of different nodes are independent: if one node is away, the commands to the others have been done, and a
    StorageError stands in the place of each reply that it owes.
    """

    def __init__(self, url: str, *, timeout_ms: int, max_connections: int, confirm: Confirm) -> None:
        super().__init__()
        try:
            self._cluster: RedisCluster = RedisCluster.from_url(
                url,
                max_connections=max_connections,
                # For the questions about the topology, which a node that hangs must not hold up for good.
                socket_timeout=timeout_ms / 4000,
                socket_connect_timeout=timeout_ms / 4000,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except (ValueError, TypeError, RedisClusterException) as error:
            raise StorageAddressError(f"not an address of a Redis Cluster: {error}") from None
        self._nodes = self._cluster.nodes_manager
        # RedisCluster has no argument for what a connection begins with, but its nodes have.
        for kwargs in (self._nodes.connection_kwargs, *(node.connection_kwargs for node in self._nodes.startup_nodes.values())):
            kwargs["redis_connect_func"] = self.connected
        self._timeout_s = timeout_ms / 1000
        self._confirm = confirm
        self._refreshing = asyncio.Lock()
        self._stale = True  # the topology, unknown at first
        self._connections = asyncio.Semaphore(max_connections)  # of each node: beyond it redis-py would refuse, not wait

    async def exchange(self, commands: Sequence[Command], *, durable: bool = False, only: int | None = None) -> list[Any]:
        confirm = durable and self._confirm.wanted
        end_s = asyncio.get_running_loop().time() + self._timeout_s + (self._confirm.timeout_ms / 1000 if confirm else 0)
        async with self._answering(end_s):
            await self._connections.acquire()
        try:
            async with self._answering(end_s):
                if self._stale:
                    await self._refresh()
                by_node: dict[str, tuple[ClusterNode, list[int]]] = {}
                for place, command in enumerate(commands):
                    node = self._node(command)
                    by_node.setdefault(node.name, (node, []))[1].append(place)
            return await self._of_all(list(by_node.values()), commands, confirm, only, end_s)
        finally:
            self._connections.release()

    @asynccontextmanager
    async def _answering(self, end_s: float) -> AsyncIterator[None]:
        """What has to be done by then, on the loop's clock; a StorageError where it is not, or a node is away."""
        try:
            async with asyncio.timeout_at(end_s):
                yield
        except (*_AWAY, RedisClusterException, SlotNotCoveredError) as error:
            self._stale = True  # a master that is gone has a successor soon
            raise StorageError(f"Redis did not answer ({type(error).__name__})") from error

    async def scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        if self._stale:
            await self._refresh()
        for node in self._cluster.get_primaries():
            cursor: bytes | int = 0
            while True:
                try:
                    async with asyncio.timeout(self._timeout_s), self._connections:
                        (reply,) = await self._on(node, [("SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN)], False)
                except _AWAY as error:
                    self._stale = True
                    raise StorageError(f"Redis did not answer ({type(error).__name__})") from error
                if isinstance(reply, Exception):
                    raise reply
                cursor, names = reply
                yield names
                if int(cursor) == 0:
                    break

    async def close(self) -> None:
        await self._cluster.aclose()

    async def _of_all(
        self,
        asked: Sequence[tuple[ClusterNode, list[int]]],
        commands: Sequence[Command],
        confirm: bool,
        only: int | None,
        end_s: float,
    ) -> list[Any]:
        """The replies of all nodes. Raises StorageError if none has answered, and what else is an error of all of them."""
        replies: list[Any] = [None] * len(commands)

        async def ask(node: ClusterNode, places: list[int]) -> None:
            async with self._answering(end_s):
                await self._ask(node, commands, places, replies, confirm, only)

        if len(asked) == 1:
            await ask(*asked[0])
            return replies
        # All of them, also if one fails: what another node has done must not be cut off halfway through its replies.
        results = await asyncio.gather(*(ask(*one) for one in asked), return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        for error in failed:
            if len(failed) == len(asked) or not isinstance(error, StorageError) or isinstance(error, StorageChangedError):
                raise error
        for (_, places), result in zip(asked, results, strict=True):
            if isinstance(result, StorageError):
                for place in places:
                    if replies[place] is None or isinstance(replies[place], _ELSEWHERE):
                        replies[place] = result
        return replies

    async def _ask(
        self,
        node: ClusterNode,
        commands: Sequence[Command],
        places: list[int],
        replies: list[Any],
        confirm: bool,
        only: int | None,
    ) -> None:
        """Have a node do the commands at `places`, and follow those that it sends elsewhere."""
        asked = [commands[place] for place in places]
        for place, reply in zip(places, await self._on(node, asked, confirm, only), strict=True):
            replies[place] = reply
        # Until the deadline: while a slot moves, a user is whole on neither node until all keys have gone over.
        while elsewhere := [place for place in places if isinstance(replies[place], _ELSEWHERE)]:
            if any(isinstance(replies[place], MovedError) for place in elsewhere):
                self._stale = True
                await self._refresh()
            if any(isinstance(replies[place], TryAgainError) for place in elsewhere):
                await asyncio.sleep(_TRY_AGAIN_S)
            # Who is sent on goes on alone and in order, so that the events of a user stay in theirs.
            for place in elsewhere:
                reply, command = replies[place], commands[place]
                target = self._cluster.get_node(host=reply.host, port=reply.port) if isinstance(reply, AskError) else None
                if target is not None:
                    (replies[place],) = await self._on(target, [command], confirm, only, asking=True)
                else:
                    (replies[place],) = await self._on(self._node(command), [command], confirm, only)

    async def _on(
        self, node: ClusterNode, commands: list[Command], confirm: bool, only: int | None = None, asking: bool = False
    ) -> list[Any]:
        """The node's replies; `asking`: to one command, whose slot is on its way there."""
        ask: list[Command] = [("ASKING",)] if asking else []
        extra = self._confirm.commands(_tag(commands[-1]), asking) if confirm else []
        connection = node.acquire_connection()
        try:
            if not connection.is_connected:
                await connection.connect()  # type: ignore[no-untyped-call]
            self.check(only)
            replies = (await _pipeline(connection, [*ask, *commands, *extra]))[len(ask) :]
            self.answered_s = monotonic()
            if not extra:
                return replies
            replies, (*_, wrote, waited) = replies[: len(commands)], replies[len(commands) :]
            if isinstance(wrote, ResponseError) and (other := self._another_tag(node, _tag(commands[-1]))) is not None:
                # The last command's slot has gone, or is going; any write on this node will do.
                wrote, waited = await _pipeline(connection, self._confirm.commands(other))
        finally:
            node.release(connection)
        self._confirm.check(replies, wrote, waited)
        return replies

    def _another_tag(self, node: ClusterNode, but: str) -> str | None:
        """A partition that is on this node, as far as is known; None if it has no other."""
        tags = (f"{partition:02x}" for partition in range(PARTITIONS))
        return next((tag for tag in tags if tag != but and self._node(("SET", _SYNC_KEY % tag)).name == node.name), None)

    def _node(self, command: Command) -> ClusterNode:
        return self._nodes.get_node_from_slot(key_slot(_key(command).encode()))

    async def _refresh(self) -> None:
        """Learn anew which node has which slot; once, whoever asks meanwhile."""
        async with self._refreshing:
            if self._stale:
                before = self._masters()
                await self._nodes.initialize()
                self._stale = False
                if before and self._masters() != before:
                    self.generation += 1

    def _masters(self) -> dict[int, str]:
        """Slot -> its master."""
        return {slot: nodes[0].name for slot, nodes in self._nodes.slots_cache.items() if nodes}


async def _pipeline(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    """One round trip on one connection; a connection that fails, or is left halfway, is closed and connects again."""
    try:
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response(timeout=math.inf))
            except ResponseError as error:
                replies.append(error)
        return replies
    except BaseException:
        await connection.disconnect(nowait=True)
        raise


def _key(command: Command) -> str:
    key: str = command[3] if command[0] in ("EVALSHA", "EVAL") else command[1]
    return key


def _tag(command: Command) -> str:
    key = _key(command)
    return key[key.find("{") + 1 : key.find("}")] if "{" in key else key
