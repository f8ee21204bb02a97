"""Lists that were shown: in the event log, once each, and of each user what was shown of late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from app.errors import LongwaveError, StorageError, TooLargeError
from app.state import keys
from app.state.calls import Call
from app.state.erasing import ERASING
from app.state.redis import RedisStore
from app.state.ring import id_hash
from app.state.scripts import script
from app.state.shown import MOST_IDS, MOST_SHOWINGS, SHOWN_TTL_MS, Showing, pack_showings, read_shown
from app.state.text import decode_text, encode_text
from app.state.way import MOST_HOPS, Way

_NOBODYS_IDS: Final = 256  # of each partition: the last lists of nobody that are known again


class Impression(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """What was seen of a list: these items at these positions, 1 being the top; no positions are 1, 2, 3 and so on.

    `propensities`, if any, are how likely each of the items was to be shown, None where that is not known.

    Append fields only at the end: old bytes must stay readable.
    """

    recommendation_id: str
    time_ms: int
    item_ids: tuple[str, ...]
    positions: tuple[int, ...] = ()
    propensities: tuple[float | None, ...] = ()


encode_impression = msgspec.msgpack.Encoder().encode
decode_impression = msgspec.msgpack.Decoder(Impression).decode


@dataclass(frozen=True, slots=True)
class Seen:
    """An impression to be stored: whose ("" for nobody's), and the keys of its items."""

    user_id: str
    impression: Impression
    item_keys: Sequence[int]


class ImpressionStore:
    """The impressions of one tenant."""

    def __init__(self, store: RedisStore, tenant: str, log_max_length: int) -> None:
        self._store = store
        self._tenant = tenant
        self._log_max_length = log_max_length

    async def add(self, seen: Sequence[Seen]) -> list[str | Exception]:
        """Store each atomically, in this order, all in one round trip: '1' if it was stored, '0' if that list is known to have
        been shown to this user, 'g' if it was before the user's erasure; an error of one user's own stands in its place, such as
        TooLargeError where there are more than 64 under several names of one.

        Raises:
            StorageError: no answer, or not for all; each is then stored or not.
        """
        found: list[str | Exception | None] = [None] * len(seen)
        waiting = list(range(len(seen)))
        ways = [self._store.way(self._tenant, one.user_id) for one in seen]
        for _ in range(MOST_HOPS):
            calls = [self._call(seen[place], ways[place]) for place in waiting]
            merged = []
            for place, reply in zip(waiting, await self._store.run_each(script("impression"), calls, durable=True), strict=True):
                if isinstance(reply, list):
                    try:
                        await ways[place].go_on(reply)
                        merged.append(place)
                    except LongwaveError as error:
                        found[place] = error
                else:
                    found[place] = reply if isinstance(reply, Exception) else reply.decode()
            if not merged:
                return [one for one in found if one is not None]
            of_user = Counter(way.user_id for way, flag in zip(ways, found, strict=True) if flag in ("0", "1", None))
            waiting = []
            for place in merged:
                user_id = ways[place].user_id
                if of_user[user_id] > MOST_IDS:  # under all their names; sent again, the first would not be known any more
                    message = f"more than {MOST_IDS} impressions of user {user_id!r}, who has several names, in one request"
                    found[place] = TooLargeError(message)
                else:
                    waiting.append(place)
        for place in waiting:
            found[place] = StorageError(f"{ways[place].user_id!r} was merged more than {MOST_HOPS} times in a row")
        return [one for one in found if one is not None]

    async def shown(self, user_id: str) -> list[Showing]:
        """What a user was shown of late, the latest last. Raises StorageError."""
        for _ in range(MOST_HOPS):
            user = keys.user_keys(self._tenant, user_id)
            (to, state), raw = await self._store.all([("HMGET", user.meta, "to", "ms"), ("GET", user.shown)])
            if to is None:
                return read_shown(raw or b"")
            if state == ERASING:
                return []
            user_id = decode_text(to)
        return []

    def _call(self, seen: Seen, way: Way) -> Call:
        impression = seen.impression
        user_id = way.user_id
        named = user_id != ""
        user = keys.user_keys(self._tenant, user_id) if named else keys.nobodys_keys(self._tenant, impression.recommendation_id)
        at_s = min(max(impression.time_ms // 1000, 0), 2**32 - 1)
        arguments: list[Any] = [
            encode_text(self._tenant),
            encode_text(user_id),
            encode_impression(impression),
            impression.time_ms,
            id_hash(encode_text(impression.recommendation_id)),
            pack_showings(seen.item_keys, at_s) if named else b"",
            MOST_IDS if named else _NOBODYS_IDS,
            MOST_SHOWINGS if named else 0,
            SHOWN_TTL_MS,
            self._log_max_length,
            way.refused_to,
            *way.guard,
        ]
        return (user.shown, user.meta, user.gone, user.log), arguments
