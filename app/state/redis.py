"""The store on Redis >= 6.2 or Valkey, one server or a Cluster: one script per user, all users of a call in one round trip."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

from app.errors import DamagedError, LongwaveError, StorageError
from app.state import keys
from app.state.calls import Call, Calls
from app.state.codec import PREFIX, new_epoch, peek
from app.state.damage import OneOfManyError
from app.state.events import StoredEvent, encode_attributes, encode_event
from app.state.history import Histories
from app.state.identities import IMPORTED, Erased, Identities
from app.state.rewrite import Rewrite
from app.state.ring import id_hash
from app.state.scripts import script
from app.state.store import NONE_BEGUN, Append, Appended, CommitResult, Decayed, Held, Loaded, UserMeta
from app.state.text import decode_text, encode_text
from app.state.transport import ClusterTransport, Confirm, SingleTransport
from app.state.way import MOST_HOPS, Way

DEFAULT_MAX_SEQUENCE: Final = 20_000
DEFAULT_DEDUPE_WINDOW: Final = 1_000
DEFAULT_LOG_MAX_LENGTH: Final = 100_000
DEFAULT_STATE_TTL_S: Final = 30 * 86_400
DEFAULT_TOMBSTONE_TTL_S: Final = 90 * 86_400

_PART: Final = 200  # items that are read and taken over in one go: a millisecond or two
_CHUNK: Final = 1_000  # items per command where a call may carry any number: short enough not to stall other clients

_COMMIT_RESULTS: Final[dict[int, CommitResult]] = {1: "stored", 0: "overtaken", -1: "refused", -2: "refused"}


class RedisStore(Calls):
    """`StateStore` on a Redis at `url` (redis://, rediss:// or unix://).

    No call touches a user before `open` has passed; one that comes earlier opens first, so a Redis that was away at the start of
    the service is checked as soon as it is back.

    Attributes:
        damage: says what is wrong with what is stored.

    Args:
        cluster: whether `url` is a node of a Redis Cluster.
        timeout_ms: for each round trip, connecting included.
        max_connections: further calls wait for a free one.
        max_sequence: events kept per user; the oldest go first.
        dedupe_window: an event id is known again while it is among the last so many ids of its user; 0 turns that off.
        log_max_length: about how many events each of the 256 logs keeps; 0: an archiver trims what it has taken.
        state_ttl_s: how long a stored state is kept after it was last committed or, with less than half of that left, loaded.
        tombstone_ttl_s: how long it is remembered that a user was erased, and what happened before refused.
        confirm: what must have happened to a write before it is acknowledged.

    Raises:
        StorageAddressError: `url` is no address of a Redis.
    """

    def __init__(
        self,
        url: str,
        *,
        cluster: bool = False,
        timeout_ms: int = 2_000,
        max_connections: int = 64,
        max_sequence: int = DEFAULT_MAX_SEQUENCE,
        dedupe_window: int = DEFAULT_DEDUPE_WINDOW,
        log_max_length: int = DEFAULT_LOG_MAX_LENGTH,
        state_ttl_s: int = DEFAULT_STATE_TTL_S,
        tombstone_ttl_s: int = DEFAULT_TOMBSTONE_TTL_S,
        confirm: Confirm | None = None,
    ) -> None:
        transport = ClusterTransport if cluster else SingleTransport
        super().__init__(
            transport(url, timeout_ms=timeout_ms, max_connections=max_connections, confirm=confirm or Confirm(0, False, 0))
        )
        self._max_sequence = max_sequence
        self._dedupe_window = dedupe_window
        self._log_max_length = log_max_length
        self._state_ttl_ms = state_ttl_s * 1000
        self.rewrite = Rewrite(self, max_sequence, dedupe_window, log_max_length)
        self.keep = self.rewrite.keep
        self._histories = Histories(self.rewrite, dedupe_window)
        self._identities = Identities(self, log_max_length, tombstone_ttl_s)

    async def append(self, tenant: str, batches: Sequence[Append]) -> list[Appended | Exception]:
        """Append each batch atomically: dedupe, sequence, counters, event log. All in one round trip, in this order.

        Where a batch failed for a reason of its own, the error stands in its place.

        Raises:
            StorageError: no answer, or not for all; each batch is then stored whole or not at all.
        """
        found: list[Appended | Exception | None] = [None] * len(batches)
        waiting = list(range(len(batches)))
        ways = [self.way(tenant, batch.user_id) for batch in batches]
        for _ in range(MOST_HOPS):
            calls = [self._append_call(tenant, ways[place], batches[place]) for place in waiting]
            merged = []
            generation = self.generation  # before: who answers may be replaced before anybody hears of the answer
            replies = await self._run(script("append"), calls, durable=True)
            for place, (names, _), reply in zip(waiting, calls, replies, strict=True):
                if isinstance(reply, Exception):
                    found[place] = await self.damage.explained(reply, names)
                    continue
                try:
                    if reply[0] < 0:
                        await ways[place].go_on(reply)
                        merged.append(place)
                        continue
                except LongwaveError as error:  # says nothing of the others
                    found[place] = error
                    continue
                total, flags, epoch, packed = reply
                attributes: Mapping[str, str] | None = None
                with contextlib.suppress(DamagedError):  # the log has it
                    attributes = self.damage.attributes(names[1], packed)
                found[place] = Appended(ways[place].user_id, flags.decode(), total, epoch, attributes, generation)
            waiting = merged
            if not waiting:
                break
        for place in waiting:
            found[place] = StorageError(f"{ways[place].user_id!r} was merged more than {MOST_HOPS} times in a row")
        return [appended for appended in found if appended is not None]

    async def load(
        self,
        tenant: str,
        model_id: str,
        user_ids: Sequence[str],
        held: Sequence[Held | None] | None = None,
        most: int = 0,
        only: int | None = None,
    ) -> list[Loaded]:
        """States and unfolded tails of these users, in one round trip; of each tail at most the first `most` events (0: all).

        Raises:
            OneOfManyError: one of several users is damaged; ask for each alone.
            DamagedError: this one is.
        """
        try:
            return await self._load(tenant, model_id, user_ids, held, most, only)
        except DamagedError as error:
            if len(user_ids) == 1:
                raise
            raise OneOfManyError(error.detail) from error

    async def _load(
        self, tenant: str, model_id: str, user_ids: Sequence[str], held: Sequence[Held | None] | None, most: int, only: int | None
    ) -> list[Loaded]:
        found: list[Loaded | None] = [None] * len(user_ids)
        waiting = list(range(len(user_ids)))
        users = list(user_ids)
        for _ in range(MOST_HOPS):
            calls: list[Call] = []
            for place in waiting:
                of_user = keys.user_keys(tenant, users[place])
                own = held[place] if held is not None else None
                epoch, applied = (own.epoch, own.applied) if own is not None else (b"", 0)
                arguments = (PREFIX, epoch, applied, most, self._state_ttl_ms)
                calls.append(((of_user.seq, of_user.meta, keys.state_key(tenant, model_id, users[place])), arguments))
            merged = []
            for place, reply in zip(waiting, await self.run(script("load"), calls, only=only), strict=True):
                if reply is not None and reply[0] == -1:
                    _, target, state = reply
                    target = decode_text(target)
                    users[place] = await self._identities.follow(tenant, users[place], target, state)
                    merged.append(place)
                else:
                    found[place] = self._loaded(tenant, users[place], reply)
            waiting = merged
            if not waiting:
                return [loaded for loaded in found if loaded is not None]
        raise StorageError(f"{users[waiting[0]]!r} was merged more than {MOST_HOPS} times in a row")

    async def commit_many(
        self, tenant: str, model_id: str, blobs: Sequence[tuple[str, bytes]], only: int | None = None
    ) -> list[CommitResult]:
        """Store each (user_id, blob) if its epoch matches and it is ahead of what is stored; all in one round trip.

        Raises StateFormatError if a blob has no valid header.
        """
        calls: list[Call] = []
        for user_id, blob in blobs:
            peek(blob)
            user = keys.user_keys(tenant, user_id)
            calls.append(((user.meta, keys.state_key(tenant, model_id, user_id), user.seq), (blob, self._state_ttl_ms)))
        results: list[CommitResult] = []
        for (names, _), reply in zip(calls, await self._run(script("commit"), calls, only=only), strict=True):
            if isinstance(reply, Exception):
                error = await self.damage.explained(reply, names)
                if not isinstance(error, DamagedError):
                    raise error
                reply = -1  # of no use to this user, and the others have theirs
            results.append(_COMMIT_RESULTS[reply])
        return results

    async def discard_states(self, tenant: str, model_id: str, states: Sequence[tuple[str, bytes]]) -> None:
        """Delete each (user_id, state as it was loaded) that is still there: it cannot be continued, but says that it can, and
        would stand in the way of a better one."""
        calls: list[Call] = [((keys.state_key(tenant, model_id, user_id),), (state,)) for user_id, state in states]
        await self.run(script("discard"), calls)

    async def recent(self, tenant: str, user_id: str, limit: int) -> list[StoredEvent]:
        """The last `limit` events of the user in arrival order, oldest first."""
        if limit <= 0:
            return []  # -0 would be the first event, not none
        name = keys.user_keys(tenant, user_id).seq
        (packed,) = await self.all([("LRANGE", name, -limit, -1)])
        return self.damage.events(name, packed)

    async def set_attributes(self, tenant: str, user_id: str, attributes: Mapping[str, str]) -> None:
        """Replace the user's attributes; a change starts a new epoch, so that every state is folded again from them."""
        way = self.way(tenant, user_id)
        for _ in range(MOST_HOPS):
            user = keys.user_keys(tenant, way.user_id)
            arguments = (
                encode_text(tenant),
                encode_text(way.user_id),
                encode_attributes(dict(attributes)),
                new_epoch(),
                self._log_max_length,
                *way.guard,
            )
            (reply,) = await self.run(script("attributes"), [((user.meta, user.log), arguments)], durable=True)
            if not isinstance(reply, list):
                return
            await way.go_on(reply)
        raise StorageError(f"{way.user_id!r} was merged more than {MOST_HOPS} times in a row")

    async def write_history(
        self, tenant: str, user_id: str, events: Sequence[StoredEvent], event_ids: Sequence[str | None], import_id: str
    ) -> int | None:
        """Add a history to the user's sequence, sorted by time, under a new epoch; touches no popularity.

        A long history comes in parts, see `Histories`. Of a sequence longer than the bound the last events are kept, and counted
        from where they stand in the whole. Event ids in the history are known to later retries. Returns how many events were
        taken (those of before an erasure are not, nor those whose ids the user has had lately; those of parts that were written
        before all are); None, and does nothing, if this user has had this import before.
        """
        new = [(encode_event(event), event.time_ms, event_id or "") for event, event_id in zip(events, event_ids, strict=True)]
        # By the name in the import: two of its users may be one here.
        mark = f"{IMPORTED}{import_id}:{blake2b(encode_text(user_id), digest_size=8).hexdigest()}"
        return await self._histories.write(tenant, user_id, new, mark)

    async def resolve(self, tenant: str, user_id: str) -> str:
        """Who has the events of a user; finishes what is halfway, see `Identities.resolve`."""
        return await self._identities.resolve(tenant, user_id)

    async def merge(self, tenant: str, target: str, source: str) -> str:
        """Join `source` into `target`; see `Identities.merge`."""
        return await self._identities.merge(tenant, target, source)

    async def erase(self, tenant: str, user_id: str, now_ms: int) -> Erased:
        """Forget a user; see `Identities.erase`."""
        return await self._identities.erase(tenant, user_id, now_ms)

    async def register_model(self, model_id: str, about: str) -> None:
        """Say that a model may have states: an erasure must find them."""
        await self.all([("HSET", keys.MODELS_KEY, model_id, about)])

    async def models(self) -> dict[str, str]:
        """The models that may have states, and what was said about them."""
        (pairs,) = await self.all([("HGETALL", keys.MODELS_KEY)])
        return {model.decode(): about.decode() for model, about in zip(pairs[::2], pairs[1::2], strict=True)}

    async def count_popularity(
        self,
        tenant: str,
        half_lives_s: Sequence[float],
        increments: Sequence[tuple[str, float, int]],
        beginnings: Mapping[str, Decayed] = NONE_BEGUN,
    ) -> int:
        """Add (item_id, weight, unix ms) to the decayed counts, in one round trip; returns how many events were ever counted.

        An item that has no counts yet begins with those in `beginnings`, or with none.
        """
        key = keys.popularity_key(tenant, half_lives_s)
        head = [len(half_lives_s), *(f"{half_life:.17g}" for half_life in half_lives_s)]
        begin = {item: _decayed(item, counts, len(half_lives_s)) for item, counts in beginnings.items()}
        calls: list[Call] = []
        for start in range(0, len(increments), _CHUNK):
            arguments = list(head)
            for item, weight, time_ms in increments[start : start + _CHUNK]:
                arguments += (encode_text(item), f"{weight:.17g}", time_ms, begin.get(item, ""))
            calls.append(((key,), arguments))
        totals = await self.run(script("popularity"), calls)
        return int(totals[-1]) if totals else await self.popularity_events(tenant, half_lives_s)

    async def popularity(self, tenant: str, half_lives_s: Sequence[float]) -> dict[str, Decayed]:
        """The counts of every item that was ever counted."""
        counts: dict[str, Decayed] = {}
        async for some in self.popularity_parts(tenant, half_lives_s):
            counts |= some
        return counts

    async def popularity_parts(self, tenant: str, half_lives_s: Sequence[float]) -> AsyncIterator[dict[str, Decayed]]:
        """`popularity` part by part, so that neither Redis nor the caller's event loop stands still for a large catalogue."""
        key = keys.popularity_key(tenant, half_lives_s)
        cursor: int | bytes = 0
        while True:
            ((cursor, chunk),) = await self.all([("HSCAN", key, cursor, "COUNT", _PART)])
            counts: dict[str, Decayed] = {}
            for item, value in zip(chunk[::2], chunk[1::2], strict=True):
                if not item:
                    continue  # the number of events counted
                at_ms, *numbers = value.split()
                counts[decode_text(item)] = (int(at_ms), tuple(map(float, numbers)))
            yield counts
            if int(cursor) == 0:
                return

    async def popularity_events(self, tenant: str, half_lives_s: Sequence[float]) -> int:
        """How many events were ever counted, by whomever: while it stands still, so do the counts."""
        (found,) = await self.all([("HGET", keys.popularity_key(tenant, half_lives_s), "")])
        return int(found or 0)

    def _append_call(self, tenant: str, way: Way, batch: Append) -> Call:
        user = keys.user_keys(tenant, way.user_id)
        arguments: list[Any] = [
            encode_text(tenant),
            encode_text(way.user_id),
            self._max_sequence,
            self._dedupe_window,
            self._log_max_length,
            new_epoch(),
            way.refused_to,
            *way.guard,
        ]
        for event, event_id in zip(batch.events, batch.event_ids, strict=True):
            if event_id is None:
                arguments += (encode_event(event), event.time_ms, b"", b"")
            else:
                named = encode_text(event_id)
                arguments += (encode_event(event), event.time_ms, id_hash(named), named)
        return (user.seq, user.meta, user.ids, user.gone, user.log), arguments

    def way(self, tenant: str, name: str) -> Way:
        """The way to who has the events of the user of this name, see `Way`."""
        return Way(self._identities, tenant, name)

    def _loaded(self, tenant: str, user_id: str, reply: list[Any] | None) -> Loaded:
        """What load.lua found of a user. Raises DamagedError."""
        if reply is None:
            return Loaded(user_id=user_id, meta=None, state=None, held=False, tail=[], tail_start=0)
        appended, stored, epoch, first, last, attributes, state, start, tail = reply
        user, damage = keys.user_keys(tenant, user_id), self.damage
        meta = UserMeta(
            appended=appended,
            stored=stored,
            epoch=damage.epoch(user.meta, epoch),
            first_time_ms=damage.number(user.meta, first),
            last_time_ms=damage.number(user.meta, last),
            attributes=damage.attributes(user.meta, attributes),
        )
        held = state == 1
        return Loaded(user_id, meta, None if held else state, held, damage.events(user.seq, tail), start)


def _decayed(item: str, counts: Decayed, half_lives: int) -> str:
    at_ms, numbers = counts
    if len(numbers) != half_lives:
        raise ValueError(f"item {item!r} has {len(numbers)} counts for {half_lives} half-lives")
    return f"{at_ms} {' '.join(f'{number:.17g}' for number in numbers)}"
