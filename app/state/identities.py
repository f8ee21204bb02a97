"""Users who are erased, and users who turn out to be one: what reaches beyond one user's partition, in steps that can be resumed.

A merge leads the source to the target first, so that nothing is stored with the source any more; then the source's events are
sorted into the target's sequence, under a mark that makes a second time do nothing; then they go from the source. Whoever meets a
user in the middle of that finishes it before going on, so no answer lacks what was acknowledged.

An erasure takes every identity that leads to a user, and the one that was asked for last: as long as it is not done, asking again
finds the others. Those are found by marks that merges leave with the target; each merge has a name, and a mark counts only while
its source says that it went by that one: after an erasure that was cut off, it may be somebody new who has the source's id.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from app.errors import ConflictError, DamagedError, StorageError
from app.state import keys
from app.state.events import decode_event
from app.state.ring import ring_ids
from app.state.scripts import Script, script
from app.state.shown import MOST_IDS, MOST_SHOWINGS, SHOWN_TTL_MS, read_shown
from app.state.transport import Command

SOURCE: Final = "m:"
"""Begins the fields of a user's meta that name those who were merged into it; their values name the merges."""

_RESTORED: Final = b"1"  # names a merge that an archive knows of

_DONE: Final = "d:"  # begins the fields that say that a sequence was taken over: the epoch of that sequence follows
IMPORTED: Final = "i:"
"""Begins the fields that say that a history was imported."""

_HANDED_ON: Final = (SOURCE.encode(), _DONE.encode(), IMPORTED.encode())

PENDING: Final = b"p"

_MOST_HOPS: Final = 8
_MOST_ROUNDS: Final = 20  # of what merges come in between
_PAUSE_S: Final = 0.01
_GONE_ON: Final = -2  # answer of erase.lua

Call = tuple[Sequence[str], Sequence[Any]]
"""Keys and arguments of a script."""

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
    """The user to whom another one's events are brought was erased, or merged into a third one, since they were read. Nothing was
    done."""


class Commands(Protocol):
    """What is needed of the store."""

    async def run(self, script: Script, calls: Sequence[Call], *, durable: bool = False) -> list[Any]: ...

    async def all(self, commands: Sequence[Command]) -> list[Any]: ...

    async def rewrite(
        self,
        tenant: str,
        user_id: str,
        new: Sequence[NewEvent],
        *,
        mark: str,
        origin: str,
        merge: bytes,
        ids: Sequence[bytes],
        attributes: bytes,
        erased: bytes | None,
    ) -> int | None: ...

    async def models(self) -> dict[str, str]: ...


class Identities:
    """Merges and erasures on one store."""

    def __init__(self, store: Commands, log_max_length: int, tombstone_ttl_s: int) -> None:
        self._store = store
        self._log_max_length = log_max_length
        self._tombstone_ttl_ms = tombstone_ttl_s * 1000

    async def resolve(self, tenant: str, user_id: str, damaged: bool = False, most: int = _MOST_HOPS) -> str:
        """Who has the events of this user: itself, or the last of those that it was merged into. Finishes what is halfway.

        Args:
            damaged: go as far as what is damaged allows.
            most: steps from one to the next.

        Raises:
            ConflictError: two merges in opposite directions are running.
            DamagedError: one of them is damaged.
        """
        for _ in range(most):
            try:
                ((target, state),) = await self._store.all([("HMGET", keys.user_keys(tenant, user_id).meta, "to", "ms")])
            except DamagedError:
                if not damaged:
                    raise
                return user_id
            if target is None:
                return user_id
            if state == PENDING:
                try:
                    await self.finish(tenant, user_id, _decode(target))
                except DamagedError:
                    if not damaged:
                        raise
            user_id = _decode(target)
        raise ConflictError(f"{user_id!r} was merged more than {most} times in a row, or is being merged both ways")

    async def merge(self, tenant: str, target: str, source: str) -> str:
        """Join `source` into `target`; returns who has the events of both now. The same merge again changes nothing.

        Raises:
            ConflictError: they are one already the other way round, or the source belongs to a third user.
        """
        holder = await self.resolve(tenant, target)
        of_source = await self.resolve(tenant, source)
        if of_source == holder:
            if of_source == source:
                raise ConflictError(f"{target!r} is {source!r}, or was merged into it: there is nothing to merge")
            return holder
        if of_source != source:
            raise ConflictError(f"{source!r} was merged into {of_source!r} before; merge that one")
        # Before anything is said: who is led to one who is damaged could never arrive.
        both = (keys.user_keys(tenant, one) for one in (holder, source))
        kinds = [
            command
            for user in both
            for command in (
                ("LLEN", user.seq),
                ("STRLEN", user.ids),
                ("STRLEN", user.shown),
                ("STRLEN", user.gone),
                ("XLEN", user.log),
            )
        ]
        await self._store.all(kinds)
        # Then it is said where the source is about to go, and looked whether another merge goes the other way: of two such, one
        # at least sees the other and gives way; if both do, both can be asked for again.
        token = secrets.token_hex(8)
        *_, about_to = await self._alias(tenant, source, "intend", holder, token)
        if about_to != holder:
            raise ConflictError(f"{source!r} is being merged into {about_to!r} at this moment")
        if await self._leads_to(tenant, holder, source):
            await self._alias(tenant, source, "stay", holder, token)
            raise ConflictError(f"{holder!r} is being merged into {source!r} at this moment")
        to, *_ = await self._alias(tenant, source, "go", holder, token)
        if to != holder:
            raise StorageError(f"{source!r} could not be led to {holder!r} in time; try again")
        return await self.resolve(tenant, source)

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
        holder = await self.resolve(tenant, target, most=_MOST_ROUNDS)
        # The tombstone first: if the holder is erased after that, nothing that is read here may be written any more.
        (erased,) = await self._store.all([("GET", keys.user_keys(tenant, holder).gone)])
        read: list[Command] = [("HGETALL", user.meta), ("LRANGE", user.seq, 0, -1), ("GET", user.ids), ("GET", user.shown)]
        pairs, packed, ring, shown = await self._store.all(read)
        meta = dict(zip(pairs[::2], pairs[1::2], strict=True))
        if meta.get(b"to") is None:
            raise StorageError(f"{source!r} was erased while it was merged into {target!r}; try again")
        if meta[b"to"] != _encode(target) or meta.get(b"ms") != PENDING:
            return  # somebody else has done it
        merge = meta.get(b"ik", _RESTORED)
        if b"e" in meta:
            new = [(event, decode_event(event).time_ms, "") for event in packed]
            ids = ring_ids(ring) if ring else []
            # Marked by its epoch, not by its name: a user who was erased and came back is another one.
            mark = _DONE + meta[b"e"].hex()
            attributes = meta.get(b"a", b"")
            await self._store.rewrite(
                tenant, holder, new, mark=mark, origin=source, merge=merge, ids=ids, attributes=attributes, erased=erased
            )
        # What was done with the source was done with the holder now, and those who came to the source have come there.
        marks = {field: value for field, value in meta.items() if field.startswith(_HANDED_ON)}
        await self._hand_on(tenant, holder, {_encode(SOURCE + source): merge} | marks, erased)
        if shown:
            await self._hand_on_shown(tenant, holder, shown, erased)
        for mark in marks:
            if mark.startswith(SOURCE.encode()):
                await self._alias(tenant, _decode(mark[len(SOURCE) :]), "shorten", holder, source)
        states = [keys.state_key(tenant, model, source) for model in await self._store.models()]
        names = (user.meta, user.log, user.seq, user.ids, user.shown, *states)
        arguments = (_encode(tenant), _encode(source), _encode(target), self._log_max_length)
        await self._store.run(script("moved"), [(names, arguments)], durable=True)

    async def erase(self, tenant: str, user_id: str, now_ms: int) -> Erased:
        """Remove everything that is known of a user and of every identity merged with it, and refuse what happened before.

        Raises StorageError if others keep being merged into it.
        """
        models = await self._store.models()
        events: dict[str, int] = {}
        for _ in range(_MOST_ROUNDS):
            refused_to = await self._erase(tenant, user_id, now_ms, models, events)
            if refused_to is not None:
                return Erased(sum(events.values()), list(events), refused_to)
            await asyncio.sleep(_PAUSE_S)
        raise StorageError(f"others keep being merged with {user_id!r}; try again")

    async def _erase(
        self, tenant: str, user_id: str, now_ms: int, models: Mapping[str, str], events: dict[str, int]
    ) -> int | None:
        """Erase who has the events of a user, and all who lead there; up to which time the user's are refused then, or None if
        that was not all. `events` gets what each has had."""
        holder = await self.resolve(tenant, user_id, damaged=True)
        pairs = await self._sound(("HGETALL", keys.user_keys(tenant, holder).meta)) or []
        fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
        merges = {_decode(field[len(SOURCE) :]): merge for field, merge in fields.items() if field.startswith(SOURCE.encode())}
        # Under whichever name something was told: only who has it all knows the latest.
        upto = max(now_ms, await self._latest_ms(tenant, holder, fields.get(b"l"), now_ms))
        order = [one for one in dict.fromkeys([*merges, holder]) if one != user_id] + [user_id]
        for _ in range(_MOST_ROUNDS):
            for one in order:
                user = keys.user_keys(tenant, one)
                states = (keys.state_key(tenant, model, one) for model in models)
                names = (user.gone, user.log, user.meta, user.seq, user.ids, user.shown, *states)
                by = b"" if one in (holder, user_id) else merges[one]
                known = (part for source, merge in merges.items() for part in (_encode(source), merge))
                arguments = (_encode(tenant), _encode(one), upto, self._tombstone_ttl_ms, by, _encode(holder), *known)
                ((appended, come, refused_to),) = await self._store.run(script("erase"), [(names, arguments)], durable=True)
                if appended == _GONE_ON:
                    return None
                if come:  # merged into this one since: first those
                    others = dict(zip(map(_decode, come[::2]), come[1::2], strict=True))
                    merges |= others
                    upto = max(upto, refused_to)
                    order = [*others, *order]
                    break
                if appended >= 0:
                    events[one] = events.get(one, 0) + appended
                    await self._drop_states(tenant, one, models)
                order = order[1:]
            if not order:
                return int(refused_to)
        return None

    async def _latest_ms(self, tenant: str, holder: str, last: bytes | None, now_ms: int) -> int:
        """Up to when events of a user, of whom the last is dated `last`, and showings reach, as far as that is in the future; or
        their tombstone, after an erasure that was cut off."""
        user = keys.user_keys(tenant, holder)
        gone, shown = await self._sound(("GET", user.gone)), await self._sound(("GET", user.shown))
        # Of a showing the second is known: one of this second is not in the future.
        ahead_ms = [1000 * one.at_s + 999 for one in read_shown(shown or b"") if 1000 * one.at_s > now_ms]
        return max([0, *ahead_ms, *(int(time) for time in (gone, last) if time and time.isdigit())])

    async def _drop_states(self, tenant: str, user_id: str, models: Container[str]) -> None:
        """Delete the states of a user who is erased under models that were registered after `models` were read. With the user's
        epoch gone, no more of them come."""
        late = [keys.state_key(tenant, model, user_id) for model in await self._store.models() if model not in models]
        if late:
            await self._store.run(script("delete"), [(late, ())], durable=True)

    async def _sound(self, command: Command) -> Any:
        """The reply; None where the key is of another type than ours."""
        try:
            (reply,) = await self._store.all([command])
        except DamagedError:
            return None
        return reply

    async def _alias(self, tenant: str, user_id: str, what: str, *arguments: str) -> tuple[str, str, str]:
        """Take a step of alias.lua; returns where the user leads, how far that is done, and where it leads or is about to."""
        call = ((keys.user_keys(tenant, user_id).meta,), (what, *map(_encode, arguments)))
        ((to, state, about_to),) = await self._store.run(script("alias"), [call], durable=what != "look")
        return _decode(to), _decode(state), _decode(about_to)

    async def _leads_to(self, tenant: str, user_id: str, other: str) -> bool:
        for _ in range(_MOST_HOPS):
            if user_id == other:
                return True
            *_, user_id = await self._alias(tenant, user_id, "look")
            if not user_id:
                return False
        return True

    async def _hand_on(self, tenant: str, user_id: str, marks: Mapping[bytes, bytes], erased: bytes | None) -> None:
        """Give marks to who has the events of a user. Raises OvertakenError."""
        user = keys.user_keys(tenant, user_id)
        arguments = (erased or b"", *(part for pair in marks.items() for part in pair))
        (done,) = await self._store.run(script("marks"), [((user.meta, user.gone), arguments)], durable=True)
        if not done:
            raise OvertakenError(f"{user_id!r} was erased, or merged into another user")

    async def _hand_on_shown(self, tenant: str, user_id: str, shown: bytes, erased: bytes | None) -> None:
        """Give what was shown to a merged user to who has its events. Raises OvertakenError."""
        user = keys.user_keys(tenant, user_id)
        arguments = (shown, erased or b"", MOST_IDS, MOST_SHOWINGS, SHOWN_TTL_MS)
        (done,) = await self._store.run(script("shown"), [((user.shown, user.meta, user.gone), arguments)], durable=True)
        if not done:
            raise OvertakenError(f"{user_id!r} was erased, or merged into another user")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")
