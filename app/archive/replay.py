"""What the records of one user mean: the sequence, counted, and what else Redis knows of the user."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.archive.record import ATTRIBUTES, ERASED, EVENT, EXPIRED, HISTORY, MOVED, SEQUENCE, Record
from app.errors import ArchiveError
from app.state.events import StoredEvent


@dataclass(slots=True)
class Life:
    """A user as Redis has them: since the last erasure, and since they came back if they were idle.

    Attributes:
        epoch: empty for a user with neither events nor attributes.
        n: how many events Redis has counted in this epoch; more than there are here where the archive began later.
        events: the effective sequence, unbounded, in the order in which it is folded; each with its id.
        ids: the last event ids in order of arrival; the values mean nothing.
        marks: of the imports and merges that were done.
        moved_to: the user that this one is an alias of, else None; `moved_ms` is since when.
    """

    epoch: bytes = b""
    n: int = 0
    events: list[tuple[StoredEvent, str | None]] = field(default_factory=list)
    attributes: Mapping[str, str] = field(default_factory=dict)
    ids: dict[str, None] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    moved_to: str | None = None
    moved_ms: int = 0


class Replay:
    """Folds the records of one user, in the order of the log, into a `Life`.

    Args:
        window: how many event ids to remember.
    """

    def __init__(self, window: int = 0) -> None:
        self._window = window
        self.life = Life()
        self._expired: Life | None = None  # the one before, if it ended because nothing was heard of the user
        self._in_order = True  # the events are in order of time
        self._awaited = 0  # events of a rewritten sequence that are still to come
        self._arrived: list[tuple[StoredEvent, str | None]] = []

    def apply(self, record: Record) -> None:
        """Raises ArchiveError where a record comes between the events of a rewritten sequence."""
        if record.kind == HISTORY:
            self._history(record)
            return
        self.finish()
        if record.kind == EVENT:
            self._event(record)
        elif record.kind == SEQUENCE:
            self.life.moved_to = None
            self.life.epoch = record.epoch
            if record.event_id is not None:
                self.life.marks.append(record.event_id)
            if record.attributes is not None:
                self.life.attributes = record.attributes
            self._awaited = record.count
            self._settle()
        elif record.kind == ATTRIBUTES:
            self.life.moved_to = None
            self.life.epoch = record.epoch
            self.life.attributes = record.attributes or {}
        elif record.kind == ERASED:
            self.life = Life()
        elif record.kind == EXPIRED:
            self._expired, self.life = self.life, Life()
        elif record.kind == MOVED:
            # What had left the sequence before has not moved with it.
            older = self.life.events[: max(0, len(self.life.events) - record.count)]
            moved = Life(events=older, marks=self.life.marks, moved_to=record.other, moved_ms=record.ms)
            self.life = moved if record.other else Life()  # else to somebody who was erased: compaction has taken that name

    def finish(self) -> None:
        """The records end here. Raises ArchiveError like `apply`."""
        if self._awaited:
            raise ArchiveError(f"{self._awaited} events of a rewritten sequence are missing")

    def _event(self, record: Record) -> None:
        assert record.event is not None
        if self._expired is not None and record.epoch == self._expired.epoch:
            # Redis was killed and lost the end of its log, which the archive had: it never let the user go.
            self.life, self._expired, self._in_order = self._expired, None, False
        life = self.life
        life.moved_to = None
        if record.epoch == life.epoch and record.n <= life.n:
            # Redis was killed, lost the end of its log, which the archive had, and has counted on from there: so do we.
            self._forget(life.n - record.n + 1)
        self._in_order = self._in_order and (not life.events or _time_of(life.events[-1]) <= record.event.time_ms)
        life.events.append((record.event, record.event_id))
        self._remember(record.event_id)
        life.epoch, life.n = record.epoch, record.n

    def _history(self, record: Record) -> None:
        assert record.event is not None
        self._remember(record.event_id)
        if not self._awaited:
            # What announced it was cut off a log that nobody archived then. How many came with it is not known: these at least.
            life = self.life
            if record.epoch != life.epoch:
                life.moved_to, life.epoch = None, record.epoch
                life.events.sort(key=_time_of)
            insort(life.events, (record.event, record.event_id), key=_time_of)
            life.n += 1
            return
        self._arrived.append((record.event, record.event_id))
        self._awaited -= 1
        self._settle()

    def _settle(self) -> None:
        if not self._awaited:
            # Stable: of the same time, what was there comes first, and each part keeps its order.
            # From where they come in alone: a long import has many parts, each of which is later than all of those before.
            events, first = self.life.events, min(map(_time_of, self._arrived), default=None)
            begin = 0 if not self._in_order else len(events) if first is None else bisect_right(events, first, key=_time_of)
            events[begin:] = sorted([*events[begin:], *self._arrived], key=_time_of)
            self._in_order = True
            self.life.n += len(self._arrived)
            self._arrived = []

    def _remember(self, event_id: str | None) -> None:
        ids = self.life.ids
        if event_id is not None and self._window:
            ids.pop(event_id, None)
            ids[event_id] = None
            if len(ids) > self._window:
                del ids[next(iter(ids))]

    def _forget(self, count: int) -> None:
        for _, event_id in self.life.events[-count:]:
            if event_id is not None:
                self.life.ids.pop(event_id, None)
        del self.life.events[-count:]


def _time_of(pair: tuple[StoredEvent, str | None]) -> int:
    return pair[0].time_ms
