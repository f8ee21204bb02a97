"""Archive -> an empty Redis: what it held of users when the archive was last committed.

States are not restored: they are a cache, and are folded again. Popularity is not either, it needs a
bundle's weights: see `on_event`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import msgspec
from redis.exceptions import RedisError

from app.archive.archive import Archive
from app.archive.columns import from_text
from app.archive.files import verify
from app.archive.histories import ROWS_AT_ONCE, ArchivedUser, users
from app.archive.items import TENANT, read_items, restore_items
from app.archive.keys import gone_key, identity_key, log_key, user_hash
from app.archive.log import Mark
from app.archive.manifest import Manifest
from app.errors import ArchiveError, StorageError
from app.state.codec import new_epoch
from app.state.erasing import SOURCE
from app.state.events import StoredEvent, compact_number, encode_event
from app.state.identities import PENDING
from app.state.keys import LAYOUT, LAYOUT_KEY, partition, user_keys
from app.state.ring import EMPTY_RING, remember_ids
from app.state.text import encode_text

RESTORING: Final = "half of a restore"
"""Value of the layout key meanwhile: a service that looks refuses this Redis, and a second restore knows what it found."""

_CHUNK: Final = 1_000  # events per command
_PIPELINE: Final = 500  # commands per round trip

_encode_attributes = msgspec.msgpack.Encoder(order="sorted").encode


@dataclass(frozen=True, slots=True)
class Restored:
    """How much was written. `events` counts those in Redis, bounded per user. `halfway` are the (tenant, user id) whose merges
    are to be finished, see `halfway.finisher`: they are aliases, too, but their events are still theirs."""

    users: int
    aliases: int
    events: int
    tombstones: int
    items: int = 0
    halfway: Sequence[tuple[str, str]] = ()


def restore(
    archive: Archive,
    client: Any,
    *,
    max_sequence: int,
    dedupe_window: int,
    tombstone_ttl_s: float,
    on_event: Callable[[str, StoredEvent], None] | None = None,
    on_user: Callable[[], None] | None = None,
    rows_at_once: int = ROWS_AT_ONCE,
    now_ms: int | None = None,
) -> Restored:
    """Rebuild what Redis held when the archive was last committed, under new identities of its logs; the archive stays as it is.

    Args:
        client: of redis-py, plain or of a Cluster, that does not decode responses; its Redis must be empty.
        max_sequence, dedupe_window: of the service that will use it.
        tombstone_ttl_s: how long after the erasure a tombstone lives.
        on_event: called with tenant and event for each event of the restored users; the hook for popularity counts, which
            need the weights and half-lives of a bundle.
        on_user: called after each user, for a progress bar.

    Raises:
        ArchiveError: Redis is not empty; there is no archive; a file is missing or damaged (noticed before anything is written).
        StorageError: Redis is away; empty it and run this again.
    """
    manifest = archive.existing()
    items = read_items(archive.folder)
    with _storage_errors():
        _demand_empty(client)
        verify(archive, manifest)
        client.set(LAYOUT_KEY, RESTORING)
        writer = _Writer(client)
        found = events = 0
        aliases: dict[tuple[str, str], ArchivedUser] = {}
        for user in users(archive, manifest, dedupe_window, rows_at_once):
            _check_partition(user)
            has_events = user.moved_to is None or user.on_the_way
            kept = user.events[max(0, len(user.events) - max_sequence) :] if has_events else []
            _write(writer, user, kept, dedupe_window)
            if user.moved_to is not None:
                aliases[user.tenant, user.user_id] = user
            found += user.moved_to is None
            events += len(kept)
            if on_event is not None:
                for event in user.events:
                    on_event(user.tenant, event)
            if on_user is not None:
                on_user()
        _mark_sources(writer, aliases)
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        tombstones = _write_tombstones(writer, manifest, tombstone_ttl_s, now_ms)
        for pp, cursor in manifest.cursors.items():
            # New records must come after the archived ones, whatever this machine's clock says: a stream remembers its last id.
            key = log_key(int(pp, 16))
            writer.add("XADD", key, cursor, "k", "restored")
            writer.add("XTRIM", key, "MAXLEN", "0")
        for pp, origin in manifest.identities.items():
            # New ones: with its first commit this Redis takes the archive over, and the one before is refused, should it live.
            mark = Mark(secrets.token_hex(8), origin, manifest.cursor(int(pp, 16)))
            writer.add("SET", identity_key(int(pp, 16)), str(mark))
        writer.flush()
        restore_items(client, items, TENANT)
        client.set(LAYOUT_KEY, LAYOUT)
    return Restored(
        users=found,
        aliases=len(aliases),
        events=events,
        tombstones=tombstones,
        items=len(items),
        halfway=[who for who, alias in aliases.items() if alias.on_the_way],
    )


def _demand_empty(client: Any) -> None:
    layout = client.get(LAYOUT_KEY)
    if layout == RESTORING.encode():
        raise ArchiveError("a restore into this Redis was broken off: empty it (FLUSHDB) and run this again")
    # A service that has looked at an empty Redis leaves its layout there.
    expected = 0 if layout is None else 1
    size = client.dbsize()
    if size > expected:
        raise ArchiveError(f"this Redis is not empty, it has {size} keys: restore writes into an empty one only")


def _check_partition(user: ArchivedUser) -> None:
    if int(partition(user.tenant, user.user_id), 16) != user.partition:
        raise ArchiveError(
            f"user {user.user_id!r} of tenant {user.tenant!r} was archived from partition {user.partition:02x}, "
            f"where this version does not look for them"
        )


def _write(writer: _Writer, user: ArchivedUser, kept: Sequence[StoredEvent], window: int) -> None:
    key = user_keys(user.tenant, user.user_id)
    if user.moved_to is not None:
        writer.add("HSET", key.meta, "to", encode_text(user.moved_to), "ms", PENDING if user.on_the_way else "d")
        if not user.on_the_way:
            return
    for start in range(0, len(kept), _CHUNK):
        writer.add("RPUSH", key.seq, *(encode_event(_compact(event)) for event in kept[start : start + _CHUNK]))
    # Where the events went of an epoch that was merged there is a mark: what came since would be taken for done.
    meta: dict[str, bytes | int] = {"e": new_epoch() if user.went_on else user.epoch}
    if user.n:
        meta["n"] = user.n
    if user.events:
        times = [event.time_ms for event in user.events]
        meta |= {"f": min(times), "l": max(times)}
    if user.attributes:
        meta["a"] = _encode_attributes(dict(user.attributes))
    done = (part for mark in user.marks for part in (encode_text(mark), 1))
    writer.add("HSET", key.meta, *(part for pair in meta.items() for part in pair), *done)
    if user.ids:
        hashes = [blake2b(encode_text(i), digest_size=8).digest() for i in user.ids]
        writer.add("SET", key.ids, remember_ids(EMPTY_RING, hashes, window))


def _mark_sources(writer: _Writer, aliases: Mapping[tuple[str, str], ArchivedUser]) -> None:
    """Lead each alias to where its way ends, and tell that user who was merged into them, at whatever remove (an erasure takes
    them all), and what was done with those before."""
    for (tenant, source), alias in aliases.items():
        holder, hops = alias.moved_to, 0
        while (tenant, holder) in aliases and hops < len(aliases):
            holder, hops = aliases[tenant, holder or ""].moved_to, hops + 1
        assert holder is not None
        writer.add("HSET", user_keys(tenant, source).meta, "to", encode_text(holder))
        marks = (part for mark in (SOURCE + source, *alias.marks) for part in (encode_text(mark), 1))
        writer.add("HSET", user_keys(tenant, holder).meta, *marks)


def _compact(event: StoredEvent) -> StoredEvent:
    """The event as the service packs it: columns have every number as a float."""
    numbers = {name: compact_number(getattr(event, name)) for name in ("value", "quantity", "price")}
    return msgspec.structs.replace(event, **numbers)


def _write_tombstones(writer: _Writer, manifest: Manifest, ttl_s: float, now_ms: int) -> int:
    gone = [(r.partition, r.tenant, r.user_hash, r.ms, r.gone_ms) for r in manifest.removed]
    gone += [(r.partition, r.tenant, user_hash(from_text(r.user_id)), r.ms, r.gone_ms) for r in manifest.removals]
    latest: dict[str, tuple[int, int]] = {}
    for number, tenant, hashed, arrived_ms, gone_ms in gone:
        key = gone_key(number, from_text(tenant), hashed)
        arrived_before_ms, gone_before_ms = latest.get(key, (0, 0))
        # An earlier erasure may reach further: of a user with an event that was dated in the future.
        latest[key] = max(arrived_before_ms, arrived_ms), max(gone_before_ms, gone_ms)
    written = 0
    for key, (arrived_ms, gone_ms) in latest.items():
        left_ms = int(arrived_ms + ttl_s * 1000 - now_ms)
        if left_ms > 0:
            writer.add("SET", key, gone_ms, "PX", left_ms)
            written += 1
    return written


class _Writer:
    """Commands gathered into pipelines; on a Cluster redis-py sends each to its node."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._commands: list[tuple[Any, ...]] = []

    def add(self, *command: Any) -> None:
        self._commands.append(command)
        if len(self._commands) >= _PIPELINE:
            self.flush()

    def flush(self) -> None:
        if self._commands:
            pipeline = self._client.pipeline(transaction=False)
            for command in self._commands:
                pipeline.execute_command(*command)
            self._commands = []
            pipeline.execute()


@contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except RedisError as error:
        raise StorageError(f"Redis did not do it: {error}; empty it (FLUSHDB) and run this again") from error
