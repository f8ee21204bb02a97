"""What the records of one user mean: the sequence, counted, and what else Redis knows of the user."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from app.archive.moves import Move, Moves
from app.archive.record import ATTRIBUTES, ERASED, EVENT, EXPIRED, HISTORY, MOVED, SEQUENCE, Record
from app.errors import ArchiveError
from app.state.events import StoredEvent

_NONE: Final[Moves] = {}
_TOLD: Final = frozenset({EVENT, SEQUENCE, ATTRIBUTES, ERASED, MOVED, EXPIRED})


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
        on_the_way: what this user had is not with the other one yet, as far as the archive goes.
    """

    epoch: bytes = b""
    n: int = 0
    events: list[tuple[StoredEvent, str | None]] = field(default_factory=list)
    attributes: Mapping[str, str] = field(default_factory=dict)
    ids: dict[str, None] = field(default_factory=dict)
    marks: list[str] = field(default_factory=list)
    moved_to: str | None = None
    moved_ms: int = 0
    on_the_way: bool = False


class Replay:
    """Folds the records of one user, in the order of the log, into a `Life`.

    Args:
        window: how many event ids to remember.
        moves: what the records of all users say of events that they have from others.
    """

    def __init__(self, tenant: str, user_id: str, window: int = 0, moves: Moves = _NONE) -> None:
        self._window = window
        self._of_all = moves
        self._moves = moves.get((tenant, user_id), ())
        self._seen: set[bytes] = set()  # epochs
        self._over: set[bytes] = set()  # those of them that have ended
        self._last_ms = 0
        self.life = Life()
        self._expired: Life | None = None  # the one before, if it ended because nothing was heard of the user
        self._in_order = True  # the events are in order of time
        self._awaited = 0  # events of a rewritten sequence that are still to come
        self._arrived: list[tuple[StoredEvent, str | None]] = []

    def apply(self, record: Record) -> None:
        """Raises ArchiveError where a record comes between the events of a rewritten sequence."""
        if record.epoch:
            self._seen.add(record.epoch)
        if record.kind == HISTORY:
            self._history(record)
            return
        self._check()
        if record.kind not in _TOLD:
            return
        self._go_on(record)
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
            self._over |= self._seen
            self.life = Life()
        elif record.kind == EXPIRED:
            self._over |= self._seen
            self._expired, self.life = self.life, Life()
        elif record.kind == MOVED:
            self._moved(record)
        self._last_ms = max(self._last_ms, record.ms)

    def finish(self) -> None:
        """The records end here. Raises ArchiveError like `apply`."""
        self._check()
        if self.life.moved_to is not None:
            return
        for move in self._moves:  # more than one, if Redis had lost the first
            # The archive has not come to the user's own record of it, nor perhaps to what made the epoch that has moved.
            if move.epoch not in self._over and (
                self.life.epoch == move.epoch or (move.epoch not in self._seen and move.ms >= self._last_ms)
            ):
                self._leave(move.target, move.ms, self._there(move))

    @property
    def went_on(self) -> bool:
        """Whether the user lives in an epoch that a merge has ended: Redis had lost the end of its log then."""
        return self.life.epoch in self._over

    def _move(self) -> Move | None:
        """What the merge of the present epoch moved; the last of the present life, if the archive has not come to its epoch."""
        left = [move for move in self._moves if move.epoch not in self._over]
        return next((move for move in left if move.epoch == self.life.epoch), left[-1] if left else None)

    def _moved(self, record: Record) -> None:
        life, move = self.life, self._move()
        if not record.other:  # to somebody who was erased: compaction has taken that name
            self.life = Life()
        elif life.moved_to is not None:  # a merge that a restore has found halfway was finished
            life.moved_to, life.moved_ms = record.other, record.ms
        elif move is not None:
            if move.epoch == life.epoch:  # should more come in it, Redis has lost that it went
                self._over.add(move.epoch)
            self._leave(record.other, record.ms, move.moved)
        elif life.events and record.count and not self._passed_on(record):
            life.moved_to, life.moved_ms, life.on_the_way = record.other, record.ms, True
        else:
            self._leave(record.other, record.ms, record.count)

    def _passed_on(self, record: Record) -> bool:
        """Whether whom the user went to had gone on to a third one since, with all they had: that one has the user's events,
        too."""
        return any(move.ms >= record.ms for move in self._of_all.get((record.tenant, record.other), ()))

    def _leave(self, target: str, ms: int, count: int) -> None:
        # What had left the sequence before has not moved with it.
        older = self.life.events[: max(0, len(self.life.events) - count)]
        self.life = Life(events=older, marks=self.life.marks, moved_to=target, moved_ms=ms)

    def _there(self, move: Move) -> int:
        """How many of the last events that are here have moved: some that came later may not be archived yet."""
        if not move.n:
            return move.moved
        return 0 if move.n < self.life.n else max(0, move.moved - (move.n - self.life.n))

    def _go_on(self, record: Record) -> None:
        """Of what has moved nothing stays, although the user was told more: Redis had lost that it was merged, which the
        archive has."""
        epoch = self.life.epoch
        move = next((move for move in self._moves if move.epoch == epoch and epoch not in self._over), None)
        if move is None or self.life.moved_to is not None or record.kind in (ERASED, MOVED):
            return
        counted = record.kind == EVENT and record.epoch == epoch and move.n
        if record.n > move.n if counted else record.ms > move.ms:
            self._leave(move.target, move.ms, self._there(move))
            self._over.add(epoch)

    def _check(self) -> None:
        if self._awaited:
            raise ArchiveError(f"{self._awaited} events of a rewritten sequence are missing")

    def _event(self, record: Record) -> None:
        assert record.event is not None
        if self._expired is not None and record.epoch == self._expired.epoch:
            # Redis was killed and lost the end of its log, which the archive had: it never let the user go.
            self.life, self._expired, self._in_order = self._expired, None, False
            self._over.discard(record.epoch)
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
