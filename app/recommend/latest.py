"""The latest events of users, as they were when a state was made: a list that explains itself names them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.fold import UserState
from app.state.events import StoredEvent
from app.state.store import Held, Loaded, StateStore

_MOST_EVENTS: Final = 50_000  # of all users that are remembered together, some 300 bytes each
_NO_MODEL: Final = "-"  # no state is wanted


@dataclass(frozen=True, slots=True)
class Latest:
    """The events before the one with index `end` of a user's sequence, the latest of them; `before`: whether there are others
    before them."""

    epoch: bytes
    generation: int
    end: int
    events: Sequence[StoredEvent]
    before: bool


class LatestEvents:
    """The last `most` events of a user. Remembers them for the users that asked last: lists of a user come in visits."""

    def __init__(self, store: StateStore, most: int) -> None:
        self._store = store
        self._most = most
        self._users: OrderedDict[tuple[str, str], Latest] = OrderedDict()
        self._events = 0

    async def of(self, tenant: str, user: UserState) -> Latest | Loaded:
        """Those that the user's state is made of; the user anew, with all stored events, if they are not to be had any more.

        Raises StorageError.
        """
        key, header, generation = (tenant, user.user_id), user.header, self._store.generation
        latest = self._take(key)
        if latest is None or (latest.epoch, latest.generation, latest.end) != (header.epoch, generation, header.applied):
            held = Held(header.epoch, max(header.applied - self._most, 0))
            (loaded,) = await self._store.load(tenant, _NO_MODEL, [user.user_id], [held])
            if loaded.meta is None or loaded.meta.epoch != header.epoch:
                return loaded
            events = loaded.tail[: max(header.applied - loaded.tail_start, 0)][-self._most :]
            latest = Latest(header.epoch, generation, header.applied, events, header.applied > len(events))
        self._take(key)  # of another read of this user, which was under way at the same time
        self._users[key] = latest
        self._events += len(latest.events)
        while self._events > _MOST_EVENTS:
            self._take(next(iter(self._users)))
        return latest

    async def all(self, tenant: str, user: UserState) -> Loaded:
        """The user with all stored events, also those that came since. Raises StorageError."""
        (loaded,) = await self._store.load(tenant, _NO_MODEL, [user.user_id])
        return loaded

    def _take(self, key: tuple[str, str]) -> Latest | None:
        latest = self._users.pop(key, None)
        if latest is not None:
            self._events -= len(latest.events)
        return latest
