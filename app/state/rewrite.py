"""A user's sequence, written anew: a bulk import, a merge."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from app.errors import StorageError
from app.state import keys
from app.state.calls import Call
from app.state.codec import new_epoch
from app.state.damage import Damage
from app.state.erasing import RESTORED
from app.state.events import encode_attributes
from app.state.identities import NewEvent, OvertakenError
from app.state.ring import EMPTY_RING, id_hash, remember_ids, ring_ids
from app.state.scripts import Script, script
from app.state.text import encode_text
from app.state.way import Way
from app.state.whole import Whole, reading

_PAUSE_S: Final = 0.01
_CHUNK: Final = 1_000  # events per argument
_NOTHING: Final[Mapping[str, int]] = {}
_MOST_TRIES: Final = 200  # of a rewrite that other rewrites keep overtaking: a handful of merges into one user takes some 20


class Commands(Protocol):
    """What is needed of the store."""

    async def run(self, script: Script, calls: Sequence[Call], *, durable: bool = False) -> list[Any]: ...

    @property
    def damage(self) -> Damage: ...

    def way(self, tenant: str, name: str) -> Way: ...


class Rewrite:
    """Rewrites sequences on one store; arguments as of `RedisStore`."""

    def __init__(self, store: Commands, max_sequence: int, dedupe_window: int, log_max_length: int) -> None:
        self._store = store
        self._max_sequence = max_sequence
        self._dedupe_window = dedupe_window
        self._log_max_length = log_max_length

    async def __call__(
        self,
        tenant: str,
        user_id: str,
        new: Sequence[NewEvent],
        *,
        mark: str,
        whole: str = "",
        remembered: frozenset[str] | None = None,
        told: Mapping[str, int] = _NOTHING,
        origin: str = "",
        origin_n: int = 0,
        merge: bytes = b"",
        ids: Sequence[bytes] = (),
        attributes: bytes = b"",
    ) -> int | None:
        """Sort new events into a user's sequence, under a new epoch; returns how many, None if it had been done before.

        Without an `origin` those are left out that happened before the user was erased, or whose ids the user has had lately.

        Args:
            mark: field of the user's meta that says that this was done.
            whole: field that says that this was done with all that it is a part of.
            remembered: the event ids, of those that come, that are to be known again; None: all.
            told: event ids that came with the parts before this one, and the latest time (unix ms) of each.
            origin: the user that the events come from, if they come from one; `origin_n` is how many it has had.
            merge: the name of that merge.
            ids: hashes of more event ids to be known again.
            attributes: packed; names that the user has keep their values.

        Raises:
            DamagedError: what is stored of the user cannot be read; nothing was done.
            OvertakenError: with an `origin`, the user does not know of that merge: it was erased, or merged into another one.
            StorageError: the user kept changing; nothing was done.
        """
        way = self._store.way(tenant, user_id)
        for _ in range(_MOST_TRIES):
            user_id = way.user_id
            user = keys.user_keys(tenant, user_id)
            (reply,) = await self._store.run(script("whole"), [reading(user)])
            found = Whole.of(reply)
            if found.to is not None:
                if origin:
                    raise OvertakenError(f"{user_id!r} was merged into another user")
                await way.go_on([-1, found.to, found.merged, found.gone or -1, found.merge or RESTORED])
                await asyncio.sleep(_PAUSE_S)
                continue
            damage = self._store.damage
            if found.epoch is not None:
                damage.epoch(user.meta, found.epoch)
            if found.ids:
                damage.ids(user.ids, found.ids)  # else nothing is known of what was told
            # What happened before its user was erased stays away, also under the name of who has its events now; but what comes
            # with another user was that one's.
            refused_to = max(way.refused_to, int(found.gone or -1))
            kept_new = [event for event in new if origin or refused_to < 0 or event[1] > refused_to]
            if told:  # unless it was refused there
                kept_new = [one for one in kept_new if one[2] not in told or 0 <= refused_to >= told[one[2]]]
            if not origin and self._dedupe_window:
                kept_new = _unknown(kept_new, found.ids or EMPTY_RING)
            if found.epoch is None and not kept_new and not origin:
                return 0  # no user, and nothing that would make one
            there = [
                (one, event.time_ms) for one, event in zip(found.sequence, damage.events(user.seq, found.sequence), strict=True)
            ]
            # Stable, and what was there first goes first: the same events in the same order, however often it is tried.
            together = sorted([*there, *((event, time) for event, time, _ in kept_new)], key=lambda pair: pair[1])
            same = _same(found.sequence, together)
            written = together[max(same, len(together) - self._max_sequence) :]
            times = [time for _, time, _ in kept_new] + [
                damage.number(user.meta, time) for time in (found.first, found.last) if time is not None
            ]
            told_now = (one for _, _, one in kept_new if one and (remembered is None or one in remembered))
            joined = attributes  # of this try: what the user had when it was read for one before may be replaced
            if attributes and found.attributes:
                theirs = damage.attributes(user.meta, attributes)
                joined = encode_attributes(theirs | damage.attributes(user.meta, found.attributes))
            result = await self._write(
                tenant,
                user_id,
                found,
                [event for event, _ in written],
                kept_new,
                replaced=len(found.sequence) - same,
                first=min(times, default=""),
                last=max(times, default=""),
                hashes=[*ids, *(id_hash(encode_text(event_id)) for event_id in told_now)],
                attributes=joined,
                mark=mark,
                origin=origin,
                origin_n=origin_n,
                guard=(encode_text(origin), merge) if origin else way.guard,
                whole=whole,
            )
            if result < 0 and origin:
                raise OvertakenError(f"{user_id!r} was erased, or merged into another user")
            if result < 0:
                await way.go_on([-2])
                continue
            if result:
                return len(kept_new) if result == 1 else None
        raise StorageError(f"the events of {user_id!r} kept changing while they were sorted; try again")

    async def keep(self, tenant: str, user_id: str, found: Whole, kept: Sequence[bytes]) -> bool:
        """Leave a user some events of the sequence alone, in a new epoch, which counts on. False if the user has changed since it
        was read, and nothing was done. In the log it is a rewrite that brings nothing new."""
        return bool(
            await self._write(
                tenant, user_id, found, kept, (), replaced=len(found.sequence), first=found.first or b"", last=found.last or b""
            )
        )

    async def _write(
        self,
        tenant: str,
        user_id: str,
        found: Whole,
        written: Sequence[bytes],
        new: Sequence[NewEvent],
        *,
        replaced: int,
        first: bytes | int | str,
        last: bytes | int | str,
        hashes: Sequence[bytes] = (),
        attributes: bytes = b"",
        mark: str = "",
        origin: str = "",
        origin_n: int = 0,
        guard: tuple[bytes | str, bytes | str] = (b"", b""),
        whole: str = "",
    ) -> int:
        """What rewrite.lua says: put `written`, `new` events among them, in the place of the last `replaced` events of the user
        who was found so, under a new epoch.

        Args:
            first, last: times of the first and the last event (unix ms), empty where there is none.
            hashes: of more event ids to be known again. attributes, mark, origin, origin_n, whole: as of `__call__`.
            guard: another user who must be known there, and by which merge.
        """
        user, appended, known = keys.user_keys(tenant, user_id), int(found.appended or 0), found.ids or EMPTY_RING
        if self._dedupe_window:
            known = remember_ids(known, hashes, self._dedupe_window)  # oldest first from now on, also if none is new
        arguments: list[Any] = [
            encode_text(tenant),
            encode_text(user_id),
            found.epoch or b"",
            appended,
            new_epoch(),
            appended + len(new),
            first,
            last,
            attributes,
            encode_text(mark),
            encode_text(origin),
            known if len(known) > len(EMPTY_RING) else b"",
            self._log_max_length,
            1,
            -(-len(written) // _CHUNK),
            len(new),
            found.gone or b"",
            (found.ids or b"")[: len(EMPTY_RING)],
            self._max_sequence,
            *guard,
            encode_text(whole),
            replaced,
            origin_n,
            *_packed(written, _CHUNK),
            *_packed([part for event, _, event_id in new for part in (event, encode_text(event_id))], 2 * _CHUNK),
        ]
        call: Call = ((user.seq, user.meta, user.ids, user.log, user.gone), arguments)
        (result,) = await self._store.run(script("rewrite"), [call], durable=True)
        return int(result)


def _same(before: Sequence[bytes], after: Sequence[tuple[bytes, int]]) -> int:
    """How many events, from the first one on, stay where they are."""
    return next((place for place, (old, (new, _)) in enumerate(zip(before, after, strict=False)) if old != new), len(before))


def _unknown(new: Sequence[NewEvent], ring: bytes) -> list[NewEvent]:
    """The events but for those whose ids are in a ring, or with an event before them."""
    known = set(ring_ids(ring))
    kept = []
    for event in new:
        named = id_hash(encode_text(event[2])) if event[2] else None
        if named is None or named not in known:
            kept.append(event)
        if named is not None:
            known.add(named)
    return kept


def _packed(parts: Sequence[bytes], size: int) -> Iterator[bytes]:
    """Up to `size` parts an argument, each behind its length: Redis takes no command of more than 1,048,576 arguments."""
    for start in range(0, len(parts), size):
        yield b"".join(len(part).to_bytes(4, "little") + part for part in parts[start : start + size])
