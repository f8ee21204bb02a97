"""Which items a user had: what a list must leave out where people do not come back to them, or where its rules say so."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from app.catalogue.catalogue import Catalogue
from app.errors import StorageChangedError
from app.fold import UserState
from app.recommend.ruleset import HadRule
from app.state.events import StoredEvent
from app.state.store import Held, StateStore

_MOST_EVENTS: Final = 1_000_000  # of all users that are remembered together, some 120 bytes each, and its id if that is unknown
NO_MODEL: Final = "-"
"""What a user is loaded for where no state is wanted."""

ALL: Final = (HadRule(),)

Had = tuple[int | str | None, str, int]
"""Row of an event's item (its id while that is not in the catalogue, None if it has none), its type, its time (unix ms)."""


@dataclass(slots=True)
class _Seen:
    """The events [end - len(events), end) of a user's sequence, their rows as of a catalogue of so many `items`."""

    epoch: bytes
    generation: int
    items: int
    end: int
    events: deque[Had] = field(default_factory=deque)
    times: Counter[int] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    def add(self, some: Iterable[Had]) -> None:
        for had in some:
            self.events.append(had)
            if isinstance(had[0], int):
                self.times[had[0]] += 1
            elif had[0] is not None:
                self.unknown[had[0]] += 1

    def drop_oldest(self) -> None:
        item, _, _ = self.events.popleft()
        if isinstance(item, int):
            _less(self.times, item)
        elif item is not None:
            _less(self.unknown, item)

    def look_again(self, catalogue: Catalogue) -> None:
        """Items have come: those that the user had are known by their rows from now on."""
        self.items = len(catalogue)
        came = {item_id: row for item_id in self.unknown if (row := catalogue.row(item_id)) is not None}
        if not came:
            return
        for item_id, row in came.items():
            self.times[row] += self.unknown.pop(item_id)
        self.events = deque(
            (came.get(item, item), of_type, time_ms) if isinstance(item, str) else (item, of_type, time_ms)
            for item, of_type, time_ms in self.events
        )


class SeenItems:
    """The rows of the items in users' stored sequences; what has fallen out of a sequence may be recommended again.

    Rules that mean some events only look at each that is stored of the user.

    Remembers them for the users that asked last, so that a read costs what is new since their last one, not the whole history.
    """

    def __init__(self, store: StateStore, catalogue: Catalogue) -> None:
        self._store = store
        self._catalogue = catalogue
        self._users: OrderedDict[tuple[str, str], _Seen] = OrderedDict()
        self._events = 0

    async def rows(self, tenant: str, user: UserState, rules: Sequence[HadRule], as_of_ms: int) -> list[int]:
        """The rows that any of the rules means, of a user as loaded; also those of events that came since, if there are any."""
        key = (tenant, user.user_id)
        seen = self._take(key)
        if seen is not None and seen.generation != self._store.generation:
            seen = None  # another server, which may have lost some of these events
        if seen is None or seen.epoch != user.meta.epoch or seen.end < user.meta.appended:
            seen = await self._go_on(tenant, user, seen)
        if seen.items != len(self._catalogue):
            seen.look_again(self._catalogue)
        while len(seen.events) > user.meta.stored and seen.end == user.meta.appended:
            seen.drop_oldest()
        self._take(key)  # of another read of this user, which was under way at the same time
        self._users[key] = seen
        self._events += len(seen.events)
        while self._events > _MOST_EVENTS:
            _, oldest = self._users.popitem(last=False)
            self._events -= len(oldest.events)
        return list(seen.times) if any(map(_means_all, rules)) else rows_of(seen.events, rules, as_of_ms)

    def of_events(self, events: Sequence[StoredEvent], rules: Sequence[HadRule], as_of_ms: int) -> list[int]:
        """The rows that any of the rules means, of some events."""
        return rows_of(map(self._had, events), rules, as_of_ms)

    def _had(self, event: StoredEvent) -> Had:
        row = self._catalogue.row(event.item_id) if event.item_id is not None else None
        return event.item_id if row is None else row, event.type, event.time_ms

    def _take(self, key: tuple[str, str]) -> _Seen | None:
        seen = self._users.pop(key, None)
        if seen is not None:
            self._events -= len(seen.events)
        return seen

    async def _go_on(self, tenant: str, user: UserState, seen: _Seen | None) -> _Seen:
        held = Held(seen.epoch, seen.end) if seen is not None else None
        generation = self._store.generation
        try:
            (loaded,) = await self._store.load(tenant, NO_MODEL, [user.user_id], [held], 0, generation)
        except StorageChangedError:
            return await self._go_on(tenant, user, None)
        if seen is None or not loaded.held:
            seen = _Seen(loaded.meta.epoch if loaded.meta is not None else b"", generation, len(self._catalogue), 0)
        seen.add(map(self._had, loaded.tail))
        seen.end = loaded.tail_start + len(loaded.tail)
        return seen


def rows_of(events: Iterable[Had], rules: Sequence[HadRule], as_of_ms: int) -> list[int]:
    """The rows of those events that any of the rules means, each once."""
    if any(map(_means_all, rules)):
        return list({row for row, _, _ in events if isinstance(row, int)})
    spans = [(rule.types, -inf if rule.within_s is None else as_of_ms - rule.within_s * 1000) for rule in rules]
    found = set()
    for row, of_type, time_ms in events:
        if isinstance(row, int) and any((types is None or of_type in types) and since_ms <= time_ms for types, since_ms in spans):
            found.add(row)
    return list(found)


def _less(counter: Counter[Any], key: object) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]


def _means_all(rule: HadRule) -> bool:
    return rule.types is None and rule.within_s is None
