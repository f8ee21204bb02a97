"""The store on Redis >= 6.2 or Valkey, one server: one script per user and call, all users of a call in one round trip."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.errors import LayoutError, StorageAddressError, StorageError
from app.state import keys
from app.state.codec import EPOCH_BYTES, PREFIX, peek
from app.state.events import StoredEvent, decode_event, encode_event
from app.state.scripts import Script, script
from app.state.store import Append, Appended, Loaded, UserMeta

DEFAULT_MAX_SEQUENCE: Final = 20_000
DEFAULT_DEDUPE_WINDOW: Final = 1_000
DEFAULT_LOG_MAX_LENGTH: Final = 100_000

_CHUNK: Final = 1_000  # items per command where a call may carry any number: short enough not to stall other clients

# A server that is up but cannot do this now. A script passes the server's words on inside its own error message.
_REFUSALS: Final = (ReadOnlyError, OutOfMemoryError, ClusterDownError, TryAgainError)
_REFUSAL_WORDS: Final = ("READONLY", "OOM ", "BUSY ", "MISCONF", "NOREPLICAS")

_encode_attributes = msgspec.msgpack.Encoder(order="sorted").encode
_decode_attributes = msgspec.msgpack.Decoder(dict[str, str]).decode

Command = tuple[Any, ...]
Call = tuple[Sequence[str], Sequence[Any]]  # keys, arguments


class RedisStore:
    """`StateStore` on a Redis at `url` (redis://, rediss:// or unix://).

    Nothing is retried here but what Redis has certainly not run: a reply that was lost may belong to events that were stored, and
    only a client that sends event ids can repeat such a call safely.

    No call touches a user before `open` has passed; one that comes earlier opens first, so a Redis that was away at the start of
    the service is checked as soon as it is back.

    Args:
        timeout_ms: for connecting, for a free connection and for each reply.
        max_connections: further calls wait for a free one.
        max_sequence: events kept per user; the oldest go first.
        dedupe_window: an event id is known again while it is among the last so many ids of its user; 0 turns that off.
        log_max_length: about how many events each of the 256 logs keeps.

    Raises:
        StorageAddressError: `url` is no address of a Redis.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_ms: int = 2_000,
        max_connections: int = 64,
        max_sequence: int = DEFAULT_MAX_SEQUENCE,
        dedupe_window: int = DEFAULT_DEDUPE_WINDOW,
        log_max_length: int = DEFAULT_LOG_MAX_LENGTH,
    ) -> None:
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=max_connections,
                timeout=timeout_ms / 1000,
                socket_timeout=timeout_ms / 1000,
                socket_connect_timeout=timeout_ms / 1000,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
            pool.make_connection()  # type: ignore[no-untyped-call]  # connects to nothing yet, but reads the options in the address
        except (ValueError, TypeError) as error:
            raise StorageAddressError(f"not an address of a Redis: {error}") from None
        self._client: Redis = Redis.from_pool(pool)
        self._opened = False
        self._max_sequence = max_sequence
        self._dedupe_window = dedupe_window
        self._log_max_length = log_max_length

    async def open(self) -> None:
        """Check that this Redis is laid out as this version expects, or lay out an empty one.

        Raises:
            StorageError: Redis does not answer.
            LayoutError: its users are spread over another number of partitions.
        """
        # Read first: a Redis that is full or read-only, but laid out, can still answer questions.
        (found,) = _checked(await self._exchange([("GET", keys.PARTITIONS_KEY)]))
        if found is None:
            lay_out = [("SET", keys.PARTITIONS_KEY, keys.PARTITIONS, "NX"), ("GET", keys.PARTITIONS_KEY)]
            _, found = _checked(await self._exchange(lay_out))
        _check_layout(found)
        self._opened = True

    async def append(self, tenant: str, batches: Sequence[Append]) -> list[Appended]:
        """Append atomically per user: dedupe, sequence, counters, event log. All users in one round trip.

        Raises:
            StorageError: no answer, or not for all; each user's events are then stored together or not at all.
            ValueError: a user has two batches.
        """
        if len({batch.user_id for batch in batches}) != len(batches):
            raise ValueError("one batch per user: their order would not be certain")
        calls: list[Call] = []
        for batch in batches:
            user = keys.user_keys(tenant, batch.user_id)
            arguments: list[Any] = [
                _text(tenant),
                _text(batch.user_id),
                self._max_sequence,
                self._dedupe_window,
                self._log_max_length,
                secrets.token_bytes(EPOCH_BYTES),
            ]
            for event in batch.events:
                arguments += (encode_event(event), event.time_ms, _id_hash(event.event_id))
            calls.append(((user.seq, user.meta, user.ids, user.log), arguments))
        replies = await self._run(script("append"), calls)
        return [Appended(fresh=tuple(flag == 0x31 for flag in flags), total=total) for total, flags in replies]

    async def load(self, tenant: str, model_id: str, user_ids: Sequence[str]) -> list[Loaded]:
        """States and unfolded tails of these users, in one round trip."""
        calls: list[Call] = []
        for user_id in user_ids:
            user = keys.user_keys(tenant, user_id)
            calls.append(((user.seq, user.meta, keys.state_key(tenant, model_id, user_id)), (PREFIX,)))
        return [_loaded(reply) for reply in await self._run(script("load"), calls)]

    async def commit(self, tenant: str, model_id: str, user_id: str, blob: bytes) -> bool:
        """Store a state blob if its epoch matches and it is ahead of what is stored; otherwise return False.

        Raises StateFormatError if `blob` has no valid header.
        """
        return (await self.commit_many(tenant, model_id, [(user_id, blob)]))[0]

    async def commit_many(self, tenant: str, model_id: str, blobs: Sequence[tuple[str, bytes]]) -> list[bool]:
        """`commit` for (user_id, blob) pairs, each atomic on its own, all in one round trip."""
        calls: list[Call] = []
        for user_id, blob in blobs:
            peek(blob)
            calls.append(((keys.user_keys(tenant, user_id).meta, keys.state_key(tenant, model_id, user_id)), (blob,)))
        return [stored == 1 for stored in await self._run(script("commit"), calls)]

    async def recent(self, tenant: str, user_id: str, limit: int) -> list[StoredEvent]:
        """The last `limit` events of the user in arrival order, oldest first."""
        if limit <= 0:
            return []  # -0 would be the first event, not none
        (packed,) = await self._all([("LRANGE", keys.user_keys(tenant, user_id).seq, -limit, -1)])
        return [decode_event(event) for event in packed]

    async def set_attributes(self, tenant: str, user_id: str, attributes: Mapping[str, str]) -> None:
        """Replace the user's attributes; a change starts a new epoch, so that every state is folded again from them."""
        meta = keys.user_keys(tenant, user_id).meta
        arguments = (_encode_attributes(dict(attributes)), secrets.token_bytes(EPOCH_BYTES))
        await self._run(script("attributes"), [((meta,), arguments)])

    async def import_history(
        self, tenant: str, user_id: str, events: Sequence[StoredEvent], attributes: Mapping[str, str]
    ) -> None:
        """Replace the user's sequence by a history (oldest first) under a new epoch; touches no counters and no log.

        Of a history longer than the bound the last events are kept, and counted from where they stood in it. Event ids in the
        history are known to later retries; those of the sequence that it replaces are not.
        """
        user = keys.user_keys(tenant, user_id)
        times = [event.time_ms for event in events] or [0]
        ids = [_id_hash(event.event_id) for event in events if event.event_id is not None]
        arguments: list[Any] = [
            len(events),
            secrets.token_bytes(EPOCH_BYTES),
            min(times),
            max(times),
            _encode_attributes(dict(attributes)),
            b"".join(ids[max(0, len(ids) - self._dedupe_window) :]),
            *(encode_event(event) for event in events[max(0, len(events) - self._max_sequence) :]),
        ]
        await self._run(script("import"), [((user.seq, user.meta, user.ids), arguments)])

    async def seed_popularity(
        self, tenant: str, half_lives_s: Sequence[float], items: Sequence[str], counts: Sequence[Sequence[float]], at_ms: int
    ) -> None:
        """Give items that have no popularity yet these decayed counts (one row per item, one column per half-life)."""
        key = keys.popularity_key(tenant, half_lives_s)
        commands: list[Command] = []
        for item, row in zip(items, counts, strict=True):
            if len(row) != len(half_lives_s):
                raise ValueError(f"item {item!r} has {len(row)} counts for {len(half_lives_s)} half-lives")
            commands.append(("HSETNX", key, _text(item), f"{at_ms} {' '.join(f'{count:.17g}' for count in row)}"))
        for start in range(0, len(commands), _CHUNK):
            await self._all(commands[start : start + _CHUNK])

    async def count_popularity(
        self, tenant: str, half_lives_s: Sequence[float], increments: Sequence[tuple[str, float, int]]
    ) -> None:
        """Add (item_id, weight, unix ms) to the decayed counts, in one round trip."""
        key = keys.popularity_key(tenant, half_lives_s)
        head = [len(half_lives_s), *(f"{half_life:.17g}" for half_life in half_lives_s)]
        calls: list[Call] = []
        for start in range(0, len(increments), _CHUNK):
            arguments = list(head)
            for item, weight, time_ms in increments[start : start + _CHUNK]:
                arguments += (_text(item), f"{weight:.17g}", time_ms)
            calls.append(((key,), arguments))
        await self._run(script("popularity"), calls)

    async def popularity(self, tenant: str, half_lives_s: Sequence[float]) -> dict[str, tuple[int, tuple[float, ...]]]:
        """item_id -> (unix ms the counts refer to, decayed counts per half-life).

        Reads in chunks, so that neither Redis nor the caller's event loop stands still for a large catalogue.
        """
        key = keys.popularity_key(tenant, half_lives_s)
        counts: dict[str, tuple[int, tuple[float, ...]]] = {}
        cursor = 0
        while True:
            ((cursor, chunk),) = await self._all([("HSCAN", key, cursor, "COUNT", _CHUNK)])
            for item, value in chunk.items():
                at_ms, *numbers = value.split()
                counts[item.decode("utf-8", "surrogatepass")] = (int(at_ms), tuple(map(float, numbers)))
            if cursor == 0:
                return counts

    async def ping(self) -> None:
        """Return when Redis answers and holds no other layout; raise StorageError or LayoutError otherwise. Writes nothing."""
        _, found = _checked(await self._exchange([("PING",), ("GET", keys.PARTITIONS_KEY)]))
        if found is not None:
            _check_layout(found)

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    async def _run(self, script: Script, calls: Sequence[Call]) -> list[Any]:
        """One script for each of `calls`, in one round trip; one more after a restart or SCRIPT FLUSH."""
        commands = [("EVALSHA", script.sha, len(names), *names, *arguments) for names, arguments in calls]
        replies = await self._send(commands)
        # Only what Redis refused with NOSCRIPT did not run; the others must not run twice.
        unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            _, *again = await self._send([("SCRIPT", "LOAD", script.source), *(commands[index] for index in unknown)])
            for index, reply in zip(unknown, again, strict=True):
                replies[index] = reply
        return _checked(replies)

    async def _all(self, commands: Sequence[Command]) -> list[Any]:
        return _checked(await self._send(commands))

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to `commands`, in one round trip; an error reply is returned in its place. Opens first if need be."""
        if not commands:
            return []
        if not self._opened:
            await self.open()
        return await self._exchange(commands)

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        try:
            if len(commands) == 1:
                try:
                    return [await self._client.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
                except ResponseError as error:
                    return [error]
            pipeline = self._client.pipeline(transaction=False)
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise StorageError(f"Redis did not answer ({type(error).__name__})") from error


def _check_layout(found: bytes) -> None:
    if found != b"%d" % keys.PARTITIONS:
        raise LayoutError(
            f"Redis key {keys.PARTITIONS_KEY} says {found.decode(errors='replace')} partitions, this version has "
            f"{keys.PARTITIONS}: its users would not be found; use another Redis or the version that wrote it"
        )


def _checked(replies: list[Any]) -> list[Any]:
    """The replies, if none is an error; a refusal that may pass (read-only, out of memory, busy) is a StorageError."""
    for reply in replies:
        if isinstance(reply, _REFUSALS) or (isinstance(reply, ResponseError) and any(w in str(reply) for w in _REFUSAL_WORDS)):
            raise StorageError("Redis cannot do this now: it is read-only, out of memory, busy or failing over") from reply
        if isinstance(reply, Exception):
            raise reply
    return replies


def _loaded(reply: list[Any] | None) -> Loaded:
    if reply is None:
        return Loaded(meta=None, state=None, tail=[], tail_start=0)
    appended, stored, epoch, first, last, attributes, state, start, tail = reply
    meta = UserMeta(
        appended=appended,
        stored=stored,
        epoch=epoch,
        first_time_ms=int(first or 0),
        last_time_ms=int(last or 0),
        attributes=_decode_attributes(attributes) if attributes else {},
    )
    return Loaded(meta=meta, state=state, tail=[decode_event(event) for event in tail], tail_start=start)


def _id_hash(event_id: str | None) -> bytes:
    """8 bytes that stand for an event id: among 1,000 known ids a new one is taken for a retry once in 10^16 times."""
    return b"" if event_id is None else blake2b(_text(event_id), digest_size=8).digest()


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
