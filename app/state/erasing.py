"""The erasure of a person, with all their names, in steps that can be resumed.

First the events go, from the user that has them; from then on nothing of them can be read under any name. That user keeps the
list of who was merged into it until all of those are forgotten: each leaves a tombstone and a record in the log. Only then do the
names part from one another. Until then each of them leads to that list, so whoever comes by one finishes the erasure first; and
where one does not lead there any more, all of them are forgotten.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from app.errors import DamagedError
from app.state import keys
from app.state.calls import Call
from app.state.scripts import Script, script
from app.state.text import decode_text, encode_text
from app.state.transport import Command

SOURCE: Final = "m:"
"""Begins the fields of a user's meta that name those who were merged into it; their values name the merges."""

RESTORED: Final = b"1"
"""Names a merge that an archive knows of."""

ERASING: Final = b"e"
"""State of a user who is being erased; `to` is who had the events."""

MOST_AT_ONCE: Final = 100
"""Users in one round trip."""

_SETTLED_TTL_MS: Final = 60_000


class Commands(Protocol):
    """What is needed of the store."""

    async def run(self, script: Script, calls: Sequence[Call], *, durable: bool = False) -> list[Any]: ...

    async def all(self, commands: Sequence[Command]) -> list[Any]: ...

    async def models(self) -> dict[str, str]: ...


class Forgotten(msgspec.Struct, frozen=True, array_like=True):
    """One identity that an erasure has taken."""

    name: bytes
    merges: bytes
    """By one of which it was known to who had the events; none for that one."""
    events: int
    """How many it has had."""
    refused_to: int
    """Time (unix ms) up to which events are refused under this name."""

    @property
    def user_id(self) -> str:
        return decode_text(self.name)


_RECEIPT: Final = msgspec.msgpack.Decoder(list[Forgotten])


class Erasing:
    """Erasures on one store."""

    def __init__(self, store: Commands, tombstone_ttl_s: int) -> None:
        self._store = store
        self._tombstone_ttl_ms = tombstone_ttl_s * 1000

    async def __call__(
        self, tenant: str, holder: str, named: str, upto: int, known: Mapping[str, bytes]
    ) -> Sequence[Forgotten] | None:
        """Forget the user who has a person's events, and all who were merged into it. None, and nothing is done, if it leads to
        somebody else, or is being erased, or is not one with who was asked for any more.

        Args:
            named: whose erasure was asked for.
            upto: time (unix ms) up to which events are refused at least.
            known: who is known to lead there, and by which merge, first the one who was asked for.
        """
        models = await self._store.models()
        name = secrets.token_hex(8)
        pairs = (part for source, merge in known.items() for part in (encode_text(source), merge))
        head = (encode_text(tenant), encode_text(holder), upto, self._tombstone_ttl_ms, name)
        ((appended, refused_to, others),) = await self._store.run(
            script("erase"), [(_names(tenant, holder, models), (*head, *pairs))], durable=True
        )
        if appended < 0:
            return None
        own = Forgotten(encode_text(holder), b"", appended, refused_to)
        if not others:
            await self._drop_states(tenant, holder, (model for model in await self._store.models() if model not in models))
            return [own]
        await self.finish(tenant, holder, named)
        receipt = keys.receipt_key(tenant, holder, name)
        found, _ = await self._store.all([("GET", receipt), ("DEL", receipt)])
        return [*(_RECEIPT.decode(found) if found else ()), own]

    async def finish(self, tenant: str, holder: str, named: str = "") -> None:
        """Do what is left of an erasure: forget all who were merged into the user who had the events, then part them.

        Who does that first leaves a receipt for a while, for who has asked for the erasure. It lacks nobody: none are parted
        before it is there.
        """
        try:
            (pairs,) = await self._store.all([("HGETALL", keys.user_keys(tenant, holder).meta)])
        except DamagedError:
            return
        meta = dict(zip(pairs[::2], pairs[1::2], strict=True))
        if meta.get(b"to") != encode_text(holder) or meta.get(b"ms") != ERASING:
            return  # somebody else has done it
        models = await self._store.models()
        # A model that was registered meanwhile may have got a state after the models were read.
        await self._drop_states(tenant, holder, models)
        found = await self._forget(tenant, holder, _marks(pairs), int(meta[b"up"]), models)
        # From here on nothing is left to be done, and if this is cut off, names alone are left: they go soon, whoever comes.
        # Who was found by the marks of another one goes first: as long as any is left, all of them can be found again.
        await self._tell(tenant, holder, found[::-1], "settle", _SETTLED_TTL_MS)
        user, name = keys.user_keys(tenant, holder), meta[b"ik"]
        receipt = (user.meta, keys.receipt_key(tenant, holder, name.decode()))
        arguments = (encode_text(holder), name, msgspec.msgpack.encode(found), _SETTLED_TTL_MS)
        await self._store.run(script("settle"), [(receipt, arguments)], durable=True)
        # In that order, too. And last who is going to be named again, should this be cut off.
        await self.part(tenant, holder, [one for one in found[::-1] if one.user_id != named])
        await self.part(tenant, holder, [Forgotten(encode_text(holder), name, 0, 0)])
        await self.part(tenant, holder, [one for one in found if one.user_id == named])

    async def part(self, tenant: str, holder: str, users: Sequence[Forgotten]) -> None:
        """Let users be strangers who were forgotten with the holder."""
        await self._tell(tenant, holder, users, "part")

    async def _tell(self, tenant: str, holder: str, users: Sequence[Forgotten], what: str, *more: int) -> None:
        for start in range(0, len(users), MOST_AT_ONCE):
            calls = [
                ((keys.user_keys(tenant, one.user_id).meta,), (what, encode_text(holder), one.merges, *more))
                for one in users[start : start + MOST_AT_ONCE]
            ]
            await self._store.run(script("alias"), calls, durable=True)

    async def _forget(
        self, tenant: str, holder: str, waiting: list[tuple[bytes, bytes]], upto: int, models: Iterable[str]
    ) -> list[Forgotten]:
        """Forget users, each known by some merges, and who was merged into them; returns those who were, as they were found."""
        forgotten = []
        known = set(waiting)
        while waiting:
            now, waiting = waiting[:MOST_AT_ONCE], waiting[MOST_AT_ONCE:]
            calls = [
                (
                    _names(tenant, decode_text(name), models),
                    (encode_text(tenant), name, upto, self._tombstone_ttl_ms, encode_text(holder), merges),
                )
                for name, merges in now
            ]
            replies = await self._store.run(script("forget"), calls, durable=True)
            for (name, merges), (appended, refused_to, others) in zip(now, replies, strict=True):
                if appended < 0:
                    continue
                forgotten.append(Forgotten(name, merges, appended, refused_to))
                # Under whichever name something was told: only who has had it knows the latest.
                upto = max(upto, refused_to)
                come = [pair for pair in _marks(others) if pair not in known]
                known.update(come)
                waiting += come
        return forgotten

    async def _drop_states(self, tenant: str, user_id: str, models: Iterable[str]) -> None:
        """Delete the states of a user who is gone. With the epoch gone, no more of them come."""
        late = [keys.state_key(tenant, model, user_id) for model in models]
        if late:
            await self._store.run(script("delete"), [(late, ())], durable=True)


def _names(tenant: str, user_id: str, models: Iterable[str]) -> list[str]:
    """Keys of erase.lua and forget.lua."""
    user = keys.user_keys(tenant, user_id)
    states = (keys.state_key(tenant, model, user_id) for model in models)
    return [user.gone, user.log, user.meta, user.seq, user.ids, user.shown, *states]


def _marks(pairs: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    """Who was merged into a user, and the names of those merges: what fields and values of its meta say."""
    mark = SOURCE.encode()
    fields = zip(pairs[::2], pairs[1::2], strict=True)
    return [(name.removeprefix(mark), merges) for name, merges in fields if name.startswith(mark)]
