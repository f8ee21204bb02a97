"""Which items a user had: what a model must leave out whose data says that people do not come back to what they had."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field

from app.catalogue.catalogue import Catalogue
from app.errors import StorageChangedError
from app.fold import UserState
from app.state.store import Held, StateStore

_MOST_EVENTS = 2_000_000  # of all users that are remembered together, some 60 bytes each
_NO_MODEL = "-"  # no state is wanted


@dataclass(slots=True)
class _Seen:
    """The rows of the events [end - len(rows), end) of a user's sequence, None for an item that is not in the catalogue of so
    many `items`."""

    epoch: bytes
    generation: int
    items: int
    end: int
    rows: deque[int | None] = field(default_factory=deque)
    times: Counter[int] = field(default_factory=Counter)


class SeenItems:
    """The rows of the items in users' stored sequences; what has fallen out of a sequence may be recommended again.

    Remembers them for the users that asked last, so that a read costs what is new since their last one, not the whole history.
    """

    def __init__(self, store: StateStore, catalogue: Catalogue) -> None:
        self._store = store
        self._catalogue = catalogue
        self._users: OrderedDict[tuple[str, str], _Seen] = OrderedDict()
        self._events = 0

    async def rows(self, tenant: str, user: UserState) -> list[int]:
        """The rows of a user as loaded; also those of events that came since, if there are any."""
        key = (tenant, user.user_id)
        seen = self._take(key)
        if seen is not None and seen.generation != self._store.generation:
            seen = None  # another server, which may have lost some of these events
        if seen is not None and seen.items != len(self._catalogue) and None in seen.rows:
            seen = None  # an item of theirs may have come
        if seen is None or seen.epoch != user.meta.epoch or seen.end < user.meta.appended:
            seen = await self._go_on(tenant, user, seen)
        while len(seen.rows) > user.meta.stored and seen.end == user.meta.appended:
            row = seen.rows.popleft()
            if row is not None:
                seen.times[row] -= 1
                if not seen.times[row]:
                    del seen.times[row]
        self._take(key)  # of another read of this user, which was under way at the same time
        self._users[key] = seen
        self._events += len(seen.rows)
        while self._events > _MOST_EVENTS:
            _, oldest = self._users.popitem(last=False)
            self._events -= len(oldest.rows)
        return list(seen.times)

    def _take(self, key: tuple[str, str]) -> _Seen | None:
        seen = self._users.pop(key, None)
        if seen is not None:
            self._events -= len(seen.rows)
        return seen

    async def _go_on(self, tenant: str, user: UserState, seen: _Seen | None) -> _Seen:
        held = Held(seen.epoch, seen.end) if seen is not None else None
        generation = self._store.generation
        try:
            (loaded,) = await self._store.load(tenant, _NO_MODEL, [user.user_id], [held], 0, generation)
        except StorageChangedError:
            return await self._go_on(tenant, user, None)
        if seen is None or not loaded.held:
            seen = _Seen(loaded.meta.epoch if loaded.meta is not None else b"", generation, len(self._catalogue), 0)
        for event in loaded.tail:
            row = self._catalogue.row(event.item_id) if event.item_id is not None else None
            seen.rows.append(row)
            if row is not None:
                seen.times[row] += 1
        seen.end = loaded.tail_start + len(loaded.tail)
        return seen
