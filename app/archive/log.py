"""The event log as the archiver needs it, and that on Redis. No command has keys of two partitions: any Redis will do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from app.archive.keys import MAINTENANCE_KEY, identity_key, lease_key, log_key
from app.archive.record import parse_id
from app.errors import ArchiveError, StorageError
from app.state.keys import PARTITIONS
from app.state.scripts import script

Entry = tuple[bytes, Mapping[bytes, bytes]]
"""A stream entry: its id and its fields."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What Redis has of a log's identity, and `cursor`: up to there it was trimmed, after it was archived under the identity
    `origin`. That is another one where the log was restored and nothing has been trimmed since.

    Marks of older versions have the identity alone, unless the log was restored: nobody knows what was trimmed.
    """

    identity: str
    origin: str = ""
    cursor: str = ""

    def __str__(self) -> str:
        return f"{self.identity} {self.origin} {self.cursor}"


class Log(Protocol):
    """Every method raises StorageError when Redis does not answer. `partition` None is the lease on maintenance."""

    def take(self, partition: int | None, token: str, ttl_ms: int) -> bool:
        """Get or prolong a lease; False if another token holds it."""

    def release(self, partition: int | None, token: str) -> None:
        """Give a lease back, if it is still ours."""

    def length(self, partition: int) -> int:
        """Entries in the partition's log. Raises ArchiveError if something else stands there."""

    def marks(self) -> dict[int, Mark]:
        """The marks of all partitions whose logs have one."""

    def mark(self, partition: int, identity: str) -> Mark:
        """Give a log that was never trimmed an identity, unless it has one; returns what it has then."""

    def read(self, partition: int, identity: str, after: str, count: int, upto: str = "+") -> tuple[Sequence[Entry], bool]:
        """The first `count` entries after the stream id `after`, up to and with `upto`, and whether nothing between was trimmed.

        Raises ArchiveError if the log does not have this identity, and then the entries may be another's.
        """

    def oldest_ms(self, partition: int) -> int | None:
        """When the first entry arrived, in unix ms; None where there is none."""

    def trim(self, partition: int, identity: str, first: str, last: str) -> bool:
        """Delete the entries from `first` to `last`, two stream ids; False, and nothing is done, if the log does not have this
        identity, does not begin with `first`, or does not have `last`."""

    def last_id(self, partition: int) -> str:
        """The largest id that the partition's log ever gave, of an entry that may be gone; 0-0 where there is no log."""


class RedisLog:
    """`Log` on a client of redis-py, plain or of a Cluster, that does not decode responses."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def take(self, partition: int | None, token: str, ttl_ms: int) -> bool:
        key = _lease(partition)
        with storage_errors():
            if self._client.set(key, token, nx=True, px=ttl_ms):
                return True
            # Another may get it between these two lines. A lease only saves work: what is committed twice is refused.
            return bool(self._client.get(key) == token.encode() and self._client.pexpire(key, ttl_ms))

    def release(self, partition: int | None, token: str) -> None:
        key = _lease(partition)
        with storage_errors():
            if self._client.get(key) == token.encode():
                self._client.delete(key)

    def length(self, partition: int) -> int:
        with storage_errors():
            try:
                return int(self._client.xlen(log_key(partition)))
            except ResponseError as error:
                if "WRONGTYPE" not in str(error):
                    raise
                raise ArchiveError(
                    f"Redis key {log_key(partition)} is no log, such as after a hand that slipped: as long as it is there, "
                    "nothing of its partition is stored or archived"
                ) from error

    def marks(self) -> dict[int, Mark]:
        with storage_errors():
            pipeline = self._client.pipeline(transaction=False)
            for partition in range(PARTITIONS):
                pipeline.get(identity_key(partition))
            return {partition: _parse_mark(raw) for partition, raw in enumerate(pipeline.execute()) if raw is not None}

    def mark(self, partition: int, identity: str) -> Mark:
        key = identity_key(partition)
        with storage_errors():
            self._client.set(key, str(Mark(identity, identity, "0-0")), nx=True)
            return _parse_mark(self._client.get(key) or b"")

    def read(self, partition: int, identity: str, after: str, count: int, upto: str = "+") -> tuple[Sequence[Entry], bool]:
        with storage_errors():
            # On one connection, so of one Redis; and then its identity: what was read of an earlier log has none, or another.
            pipeline = self._client.pipeline(transaction=False)
            pipeline.xrange(log_key(partition), min=f"({after}", max=upto, count=count)
            pipeline.get(identity_key(partition))
            entries: Sequence[Entry]
            raw: bytes | None
            entries, raw = pipeline.execute()
        mark = _parse_mark(raw or b"")
        if mark.identity != identity:
            raise ArchiveError(f"the log of partition {partition:02x} was exchanged for another while it was read")
        return entries, mark.cursor != "" and parse_id(mark.cursor) <= parse_id(after)

    def oldest_ms(self, partition: int) -> int | None:
        with storage_errors():
            entries: Sequence[Entry] = self._client.xrange(log_key(partition), count=1)
            return parse_id(entries[0][0])[0] if entries else None

    def trim(self, partition: int, identity: str, first: str, last: str) -> bool:
        ms, seq = parse_id(last)
        names = (log_key(partition), identity_key(partition))
        with storage_errors():
            return bool(evaluate(self._client, "trim", names, identity, first, last, f"{ms}-{seq + 1}"))

    def last_id(self, partition: int) -> str:
        with storage_errors():
            if not self._client.exists(log_key(partition)):
                return "0-0"
            found: bytes = self._client.xinfo_stream(log_key(partition))["last-generated-id"]
            return found.decode()


def oldest_ms(log: Log) -> int | None:
    """When the oldest record in the log arrived, in unix ms of Redis' clock; None where there is none. Raises StorageError."""
    return min((ms for partition in range(PARTITIONS) if (ms := log.oldest_ms(partition)) is not None), default=None)


def evaluate(client: Any, name: str, names: Sequence[str], *arguments: object) -> Any:
    """Run a script of ours on keys of one partition."""
    lua = script(name)
    try:
        return client.execute_command("EVALSHA", lua.sha, len(names), *names, *arguments)
    except NoScriptError:
        return client.execute_command("EVAL", lua.source, len(names), *names, *arguments)


def _parse_mark(raw: bytes) -> Mark:
    """The mark that `str` has written."""
    return Mark(*raw.decode("ascii", "replace").split(" ")[:3])


def _lease(partition: int | None) -> str:
    return MAINTENANCE_KEY if partition is None else lease_key(partition)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raises StorageError where redis-py raises its own errors."""
    try:
        yield
    except RedisError as error:
        away = isinstance(error, RedisConnectionError)
        raise StorageError(f"Redis did not answer ({type(error).__name__})" if away else f"Redis refused: {error}") from error
