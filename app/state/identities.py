"""Users who are erased, and users who turn out to be one: what reaches beyond one user's partition, in steps that can be resumed.

A merge is made known to the target first: an erasure of the target takes the source along from then on. Then the source is led
there, so that nothing is stored with it any more; then its events are sorted into the target's sequence, under a mark that makes
a second time do nothing; then they go from the source. Whoever meets a user in the middle of that finishes it before going on, so
no answer lacks what was acknowledged.

Each merge has a name, and one user at most knows of it and has not gone on to another one: the one where its events are to be.
They are written nowhere else, whatever has happened since somebody read the way. An erasure takes that knowledge along with the
events (see erasing.py), so what was read before it is not written after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from app.errors import ConflictError, DamagedError, StorageError
from app.state import erasing, keys
from app.state.codec import EPOCH_BYTES
from app.state.damage import Damage
from app.state.erasing import ERASING, MOST_AT_ONCE, RESTORED, SOURCE, Erasing, Forgotten
from app.state.revived import set_apart
from app.state.scripts import script
from app.state.shown import MOST_IDS, MOST_SHOWINGS, SHOWN_TTL_MS, read_shown
from app.state.text import decode_text, encode_text
from app.state.transport import Command
from app.state.whole import Whole

DONE: Final = "d:"
"""Begins the fields that say that a sequence was taken over: the epoch of that sequence follows, in hex. Their value is `was`
where it had another epoch by then."""

IMPORTED: Final = "i:"
"""Begins the fields that say that a history was imported."""

_HANDED_ON: Final = (SOURCE.encode(), DONE.encode(), IMPORTED.encode())

PENDING: Final = b"p"

_MOST_HOPS: Final = 8
_MOST_ROUNDS: Final = 20  # of what merges and erasures come in between
_PAUSE_S: Final = 0.01

NewEvent = tuple[bytes, int, str]
"""Packed event, unix ms, event id or ''."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure removed: how many events, of which identities, the user's own last. `refused_to` is the time (unix ms) up
    to which events are refused under the name that was asked for."""

    events: int
    identities: Sequence[str]
    refused_to: int


class OvertakenError(StorageError):
    """The user to whom another one's events are brought was erased, or merged into a third one, since the way was read. Nothing
    was done."""


class Commands(erasing.Commands, Protocol):
    """What is needed of the store."""

    @property
    def damage(self) -> Damage: ...

    async def rewrite(
        self,
        tenant: str,
        user_id: str,
        new: Sequence[NewEvent],
        *,
        mark: str,
        origin: str,
        origin_n: int,
        merge: bytes,
        ids: Sequence[bytes],
        attributes: bytes,
    ) -> int | None: ...

    async def keep(self, tenant: str, user_id: str, found: Whole, kept: Sequence[bytes]) -> bool: ...


class Identities:
    """Merges and erasures on one store."""

    def __init__(self, store: Commands, log_max_length: int, tombstone_ttl_s: int) -> None:
        self._store = store
        self._log_max_length = log_max_length
        self._erasing = Erasing(store, tombstone_ttl_s)

    async def resolve(
        self, tenant: str, user_id: str, damaged: bool = False, most: int = _MOST_HOPS, way: dict[str, bytes] | None = None
    ) -> str:
        """Who has the events of this user: itself, or the last of those that it was merged into. Finishes what is halfway.

        Args:
            damaged: go as far as what is damaged allows.
            most: steps from one to the next.
            way: gets who leads there, and by which merge.

        Raises:
            ConflictError: two merges in opposite directions are running.
            DamagedError: one of them is damaged.
        """
        for _ in range(most):
            try:
                ((target, state, merge),) = await self._store.all(
                    [("HMGET", keys.user_keys(tenant, user_id).meta, "to", "ms", "ik")]
                )
            except DamagedError:
                if not damaged:
                    raise
                return user_id
            if target is None:
                return user_id
            try:
                following = await self.follow(tenant, user_id, decode_text(target), state)
            except DamagedError:
                if not damaged or state == ERASING:
                    raise
                following = decode_text(target)
            if way is not None and following != user_id:
                way[user_id] = merge or RESTORED
            user_id = following
        raise ConflictError(f"{user_id!r} was merged more than {most} times in a row, or is being merged both ways")

    async def follow(self, tenant: str, user_id: str, target: str, state: bytes) -> str:
        """Finish the merge, or the erasure, that a user was met in the middle of; returns where to look then."""
        if state == PENDING:
            await self.finish(tenant, user_id, target)
        if state != ERASING:
            return target
        await self._erasing.finish(tenant, target)
        # Such as after a Redis that took over from another one lacks what the erasure did last.
        ((to, state, merge),) = await self._store.all([("HMGET", keys.user_keys(tenant, user_id).meta, "to", "ms", "ik")])
        if to == encode_text(target) != encode_text(user_id) and state == ERASING:
            await self._erasing.part(tenant, target, [Forgotten(encode_text(user_id), merge, 0, 0)])
        return user_id

    async def merge(self, tenant: str, target: str, source: str) -> str:
        """Join `source` into `target`; returns who has the events of both now. The same merge again changes nothing.

        Raises:
            ConflictError: they are one already the other way round, or the source belongs to a third user.
        """
        for _ in range(_MOST_ROUNDS):
            try:
                return await self._merge(tenant, target, source)
            except OvertakenError:
                await asyncio.sleep(_PAUSE_S)
        raise StorageError(f"{target!r} or {source!r} keeps being merged or erased; try again")

    async def _merge(self, tenant: str, target: str, source: str) -> str:
        way: dict[str, bytes] = {}
        holder = await self.resolve(tenant, target, way=way)
        of_source = await self.resolve(tenant, source)
        if of_source == holder:
            if of_source == source:
                raise ConflictError(f"{target!r} is {source!r}, or was merged into it: there is nothing to merge")
            return holder
        if of_source != source:
            raise ConflictError(f"{source!r} was merged into {of_source!r} before; merge that one")
        # Before anything is said: who is led to one who is damaged could never arrive.
        for one in (holder, source):
            await self._check(tenant, one)
        await self._set_apart(tenant, holder, source)
        if target != holder:
            await self.make_known(tenant, target, way[target], holder)
        # Then it is said where the source is about to go, and looked whether another merge goes the other way: of two such, one
        # at least sees the other and gives way; if both do, both can be asked for again.
        token = secrets.token_hex(8)
        about_to = (await self._alias(tenant, source, "intend", holder, token)).leads
        if not about_to:
            raise OvertakenError(f"{source!r} is being erased")
        if about_to != holder:
            raise ConflictError(f"{source!r} is being merged into {about_to!r} at this moment")
        if await self._leads_to(tenant, holder, source):
            await self._alias(tenant, source, "stay", holder, token)
            raise ConflictError(f"{holder!r} is being merged into {source!r} at this moment")
        try:
            # As long as the target is known there, it is still one with the holder.
            await self._hand_on(tenant, holder, target, way.get(target, b""), {encode_text(SOURCE + source): token.encode()})
        except OvertakenError:
            await self._alias(tenant, source, "stay", holder, token)
            raise
        if (await self._alias(tenant, source, "go", holder, token)).to != holder:
            raise StorageError(f"{source!r} could not be led to {holder!r} in time; try again")
        return await self.resolve(tenant, source)

    async def _check(self, tenant: str, user_id: str) -> None:
        """Raise DamagedError if what is stored of a user cannot be merged."""
        user, damage = keys.user_keys(tenant, user_id), self._store.damage
        read: list[Command] = [("LRANGE", user.seq, 0, -1), ("HMGET", user.meta, "e", "a", "f", "l"), ("GET", user.ids)]
        kinds: list[Command] = [("STRLEN", user.shown), ("STRLEN", user.gone), ("XLEN", user.log)]
        packed, (epoch, attributes, *times), ring, *_ = await self._store.all([*read, *kinds])
        damage.events(user.seq, packed)
        damage.attributes(user.meta, attributes)
        if epoch is not None:
            damage.epoch(user.meta, epoch)
        if ring:
            damage.ids(user.ids, ring)
        for time in times:
            damage.number(user.meta, time)

    async def _set_apart(self, tenant: str, one: str, other: str) -> None:
        """If either has taken the other over before, which Redis has lost since, leave that one what came since.

        Raises:
            ConflictError: what came since cannot be told.
            OvertakenError: it has changed meanwhile.
        """
        users, metas = (one, other), [keys.user_keys(tenant, user).meta for user in (one, other)]
        # Since then it may have got another one: by attributes, an import, or who was merged into it.
        found = await self._store.all([("HMGET", meta, "e", "was") for meta in metas])
        epochs = [[now or b"", *_each(was)] for now, was in found]
        asked: list[Command] = [
            ("HMGET", meta, *(DONE + epoch.hex() for epoch in of_other))
            for meta, of_other in zip(metas, reversed(epochs), strict=True)
        ]
        for taker, taken, marks in zip(users, reversed(users), await self._store.all(asked), strict=True):
            if any(marks) and not await set_apart(self._store, tenant, taken, taker):
                raise OvertakenError(f"{taken!r} has changed")

    async def finish(self, tenant: str, source: str, target: str) -> None:
        """Do what is left of a merge: sort the source's events into the target, then remove them from the source.

        Raises StorageError if the source was erased meanwhile, and leads nowhere any more.
        """
        for _ in range(_MOST_ROUNDS):
            try:
                return await self._finish(tenant, source, target)
            except OvertakenError:  # look anew: the source may have been erased with the target, or with whom that one went to
                await asyncio.sleep(_PAUSE_S)
        raise StorageError(f"{target!r} keeps being merged or erased; try again")

    async def _finish(self, tenant: str, source: str, target: str) -> None:
        user = keys.user_keys(tenant, source)
        ((to, state, merge),) = await self._store.all([("HMGET", user.meta, "to", "ms", "ik")])
        if to is None or state == ERASING:
            raise StorageError(f"{source!r} was erased while it was merged into {target!r}; try again")
        if to != encode_text(target) or state != PENDING:
            return  # somebody else has done it
        merge = merge or RESTORED
        holder = await self.resolve(tenant, target, most=_MOST_ROUNDS)
        await self.make_known(tenant, source, merge, holder)
        read: list[Command] = [("HGETALL", user.meta), ("LRANGE", user.seq, 0, -1), ("GET", user.ids), ("GET", user.shown)]
        pairs, packed, ring, shown = await self._store.all(read)
        meta = dict(zip(pairs[::2], pairs[1::2], strict=True))
        if (meta.get(b"to"), meta.get(b"ms"), meta.get(b"ik", RESTORED)) != (to, PENDING, merge):
            raise OvertakenError(f"{source!r} has come to {target!r}, or was erased")
        if b"e" in meta:
            new = [
                (one, event.time_ms, "") for one, event in zip(packed, self._store.damage.events(user.seq, packed), strict=True)
            ]
            ids = self._store.damage.ids(user.ids, ring) if ring else []
            # Marked by its epoch, not by its name: a user who was erased and came back is another one.
            mark = DONE + self._store.damage.epoch(user.meta, meta[b"e"]).hex()
            attributes = meta.get(b"a", b"")
            self._store.damage.attributes(user.meta, attributes)  # else the holder would get them as they are
            await self._store.rewrite(
                tenant,
                holder,
                new,
                mark=mark,
                origin=source,
                origin_n=self._store.damage.number(user.meta, meta.get(b"n", b"0")),
                merge=merge,
                ids=ids,
                attributes=attributes,
            )
        # What was done with the source was done with the holder now, and those who came to the source have come there.
        marks = {name: value for name, value in meta.items() if name.startswith(_HANDED_ON)}
        # Should Redis lose the last writes, the source may live again in an epoch that it had before.
        marks |= dict.fromkeys((encode_text(DONE + epoch.hex()) for epoch in _each(meta.get(b"was"))), b"was")
        if marks:
            await self._hand_on(tenant, holder, source, merge, marks)
        if shown:
            await self._hand_on_shown(tenant, holder, source, merge, shown)
        came = [(decode_text(name[len(SOURCE) :]), merges) for name, merges in marks.items() if name.startswith(SOURCE.encode())]
        for start in range(0, len(came), MOST_AT_ONCE):
            calls = [
                ((keys.user_keys(tenant, one).meta,), ("shorten", encode_text(holder), encode_text(source), merges))
                for one, merges in came[start : start + MOST_AT_ONCE]
            ]
            await self._store.run(script("alias"), calls, durable=True)
        states = [keys.state_key(tenant, model, source) for model in await self._store.models()]
        names = (user.meta, user.log, user.seq, user.ids, user.shown, *states)
        arguments = (encode_text(tenant), encode_text(source), encode_text(target), self._log_max_length, merge)
        await self._store.run(script("moved"), [(names, arguments)], durable=True)

    async def make_known(self, tenant: str, source: str, merge: bytes, holder: str) -> None:
        """Raise OvertakenError unless who has the events of `source` knows of the merge that leads there.

        If no one does, as after the loss of a Redis that was not replicated, the merge gets another name and is made known.
        """
        ((merges, to),) = await self._store.all(
            [("HMGET", keys.user_keys(tenant, holder).meta, encode_text(SOURCE + source), "to")]
        )
        if to is None:
            if merge in (merges or b"").split():
                return
            # Who has the events knows of it, and the way leads here, if it is still the same.
            token = secrets.token_hex(8)
            if (await self._alias(tenant, source, "again", merge, token)).merge == token:
                await self._hand_on(tenant, holder, "", b"", {encode_text(SOURCE + source): token.encode()})
        raise OvertakenError(f"{holder!r} was erased, or merged into another user")

    async def erase(self, tenant: str, user_id: str, now_ms: int) -> Erased:
        """Remove everything that is known of a user and of every identity merged with it, and refuse what happened before.

        Raises StorageError if others keep being merged into it.
        """
        events: dict[str, int] = {}
        for _ in range(_MOST_ROUNDS):
            way: dict[str, bytes] = {}
            holder = await self.resolve(tenant, user_id, damaged=True, way=way)
            if holder != user_id:
                with contextlib.suppress(DamagedError, OvertakenError):
                    await self.make_known(tenant, user_id, way[user_id], holder)
            upto = max(now_ms, await self._ahead_ms(tenant, holder, now_ms))
            forgotten = await self._erasing(tenant, holder, user_id, upto, way) or ()
            for one in forgotten:
                events[one.user_id] = events.get(one.user_id, 0) + one.events
            refused_to = [one.refused_to for one in forgotten if one.user_id == user_id]
            if refused_to:  # else it is one with somebody else by now, or with nobody
                return Erased(sum(events.values()), [one for one in events if one != user_id] + [user_id], max(refused_to))
            await asyncio.sleep(_PAUSE_S)
        raise StorageError(f"others keep being merged with {user_id!r}; try again")

    async def _ahead_ms(self, tenant: str, holder: str, now_ms: int) -> int:
        """Up to when showings of a user reach, as far as that is in the future."""
        shown = await self._sound(("GET", keys.user_keys(tenant, holder).shown))
        # Of a showing the second is known: one of this second is not in the future.
        return max((1000 * one.at_s + 999 for one in read_shown(shown or b"") if 1000 * one.at_s > now_ms), default=0)

    async def _sound(self, command: Command) -> Any:
        """The reply; None where the key is of another type than ours."""
        try:
            (reply,) = await self._store.all([command])
        except DamagedError:
            return None
        return reply

    async def _alias(self, tenant: str, user_id: str, what: str, *arguments: str | bytes) -> _Leads:
        """Take a step of alias.lua."""
        encoded = (encode_text(one) if isinstance(one, str) else one for one in arguments)
        call = ((keys.user_keys(tenant, user_id).meta,), (what, *encoded))
        ((to, _, leads, merge),) = await self._store.run(script("alias"), [call], durable=what != "look")
        return _Leads(decode_text(to), decode_text(leads), decode_text(merge))

    async def _leads_to(self, tenant: str, user_id: str, other: str) -> bool:
        for _ in range(_MOST_HOPS):
            if user_id == other:
                return True
            user_id = (await self._alias(tenant, user_id, "look")).leads
            if not user_id:
                return False
        return True

    async def _hand_on(self, tenant: str, user_id: str, source: str, merge: bytes, marks: Mapping[bytes, bytes]) -> None:
        """Give marks to who has the events of a user, if that merge of `source` is known there. Raises OvertakenError."""
        guard = (encode_text(source), merge) if merge else (b"", b"")
        arguments = (*guard, *(part for pair in marks.items() for part in pair))
        (done,) = await self._store.run(script("marks"), [((keys.user_keys(tenant, user_id).meta,), arguments)], durable=True)
        if not done:
            raise OvertakenError(f"{user_id!r} was erased, or merged into another user")

    async def _hand_on_shown(self, tenant: str, user_id: str, source: str, merge: bytes, shown: bytes) -> None:
        """Give what was shown to a merged user to who has its events. Raises OvertakenError."""
        user = keys.user_keys(tenant, user_id)
        arguments = (shown, encode_text(source), merge, MOST_IDS, MOST_SHOWINGS, SHOWN_TTL_MS)
        (done,) = await self._store.run(script("shown"), [((user.shown, user.meta), arguments)], durable=True)
        if not done:
            raise OvertakenError(f"{user_id!r} was erased, or merged into another user")


def _each(epochs: bytes | None) -> list[bytes]:
    """Epochs that stand side by side."""
    return [(epochs or b"")[at : at + EPOCH_BYTES] for at in range(0, len(epochs or b""), EPOCH_BYTES)]


@dataclass(frozen=True, slots=True)
class _Leads:
    """Where a user leads: to whom it was merged, to whom it was or is about to be, and by which merge; '' if nowhere."""

    to: str
    leads: str
    merge: str
