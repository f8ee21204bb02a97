"""The event log as the archiver needs it, and that on Redis. One partition at a time, one key a command: any Redis will do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from app.archive.keys import MAINTENANCE_KEY, lease_key, log_key
from app.archive.record import parse_id
from app.errors import StorageError
from app.state.keys import PARTITIONS

Entry = tuple[bytes, Mapping[bytes, bytes]]
"""A stream entry: its id and its fields."""


class Log(Protocol):
    """Every method raises StorageError when Redis does not answer. `partition` None is the lease on maintenance."""

    def take(self, partition: int | None, token: str, ttl_ms: int) -> bool:
        """Get or prolong a lease; False if another token holds it."""

    def release(self, partition: int | None, token: str) -> None:
        """Give a lease back, if it is still ours."""

    def length(self, partition: int) -> int:
        """Entries in the partition's log."""

    def read(self, partition: int, after: str, count: int) -> Sequence[Entry]:
        """The first `count` entries after the stream id `after`."""

    def trim(self, partition: int, upto: str) -> None:
        """Delete the entries up to and with the stream id `upto`."""

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
            return int(self._client.xlen(log_key(partition)))

    def read(self, partition: int, after: str, count: int) -> Sequence[Entry]:
        with storage_errors():
            entries: Sequence[Entry] = self._client.xrange(log_key(partition), min=f"({after}", max="+", count=count)
            return entries

    def trim(self, partition: int, upto: str) -> None:
        ms, seq = parse_id(upto)
        with storage_errors():
            self._client.xtrim(log_key(partition), minid=f"{ms}-{seq + 1}", approximate=False)

    def last_id(self, partition: int) -> str:
        with storage_errors():
            if not self._client.exists(log_key(partition)):
                return "0-0"
            found: bytes = self._client.xinfo_stream(log_key(partition))["last-generated-id"]
            return found.decode()


def oldest_ms(log: Log) -> int | None:
    """When the oldest record in the log arrived, in unix ms of Redis' clock; None where there is none. Raises StorageError."""
    first = [parse_id(entry_id)[0] for partition in range(PARTITIONS) for entry_id, _ in log.read(partition, "0-0", 1)]
    return min(first, default=None)


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
