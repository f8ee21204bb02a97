"""Valid events -> the users' sequences. Requests that come at the same time share a round trip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from app.errors import DamagedError, OverloadedError, StorageError
from app.ingest.validate import ValidEvent
from app.runtime.batcher import FOREVER, PACE_S, Batcher, Patience
from app.state.events import StoredEvent
from app.state.store import STORED, Append, Appended, StateStore

Increment = tuple[str, float, int]
"""What an event adds to the popularity of its item: (item_id, weight, unix ms)."""

_Request = tuple[str, list[Append], int]
"""Tenant, what to append of each user, and how many events that is."""

_BATCH = 64
# Of a round trip, however many requests it is for: it must end within its timeout on a busy machine, too, or everybody hears that
# nothing is stored when all is. 1,000 users with an event each take 0.12 s, 1,000 events of one user 0.02 s.
_EVENTS = 1_000
# One after the other: what a worker stores of a user it then knows to be in that order, and can fold without asking the store.
_ROUND_TRIPS = 1
_MOST_WAITING = 2_048
_ENOUGH = 4  # what comes in 2 ms at half load; more must not wait, or the core would be idle at full load


class UserEvents(msgspec.Struct, frozen=True):
    """What one request stored of one user: `events` are the fresh ones, the last of the sequence at that moment."""

    appended: Appended
    events: Sequence[StoredEvent]


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of the events of a request.

    Attributes:
        flags: one per event, see `Appended`.
        totals: user id, as the request had it -> events that the user has had so far.
        users: those with fresh events.
    """

    flags: list[str]
    totals: dict[str, int]
    users: list[UserEvents]


class Appender:
    """Appends each user's events in the order of the request.

    Requests that overlap in time have no order among them; those that follow one another's acknowledgement do.
    """

    def __init__(self, store: StateStore, patience: Patience = FOREVER) -> None:
        self._store = store
        self._batcher = Batcher(
            self._append,
            most=_BATCH,
            running=_ROUND_TRIPS,
            waiting=_MOST_WAITING,
            repeats=False,
            pace_s=PACE_S,
            enough=_ENOUGH,
            weigh=_events_of,
            heaviest=_EVENTS,
            patience=patience,
        )

    async def __call__(self, tenant: str, events: Sequence[ValidEvent]) -> Stored:
        """Store the events of one request; one round trip for all users, unless there are more events than one may take.

        Raises:
            StorageError: Redis did not answer, or not for all. Each user's events are then stored together or not at all; with
                event ids the same request can be sent again.
            OverloadedError: too many requests are waiting, or this one has waited too long; nothing was stored.
        """
        places: dict[str, list[int]] = {}
        for place, event in enumerate(events):
            places.setdefault(event.user_id, []).append(place)
        batches = [
            Append(user_id, [events[place].event for place in of_user], [events[place].event_id for place in of_user])
            for user_id, of_user in places.items()
        ]
        if len(events) <= _EVENTS:
            found = await self._batcher((tenant, batches, len(events)))
        else:
            found = await self._in_parts(tenant, batches)
        flags = [STORED] * len(events)
        totals: dict[str, int] = {}
        users = []
        for batch, appended in zip(batches, found, strict=True):
            totals[batch.user_id] = appended.total
            fresh = batch.events
            if appended.flags.count(STORED) < len(fresh):
                for place, flag in zip(places[batch.user_id], appended.flags, strict=True):
                    flags[place] = flag
                fresh = [event for event, flag in zip(fresh, appended.flags, strict=True) if flag == STORED]
            if fresh:
                users.append(UserEvents(appended, fresh))
        return Stored(flags, totals, users)

    async def _in_parts(self, tenant: str, batches: Sequence[Append]) -> list[Appended]:
        """Store more events than one round trip may take, one part after the other: in between it is the turn of others."""
        found: list[Appended] = []
        damaged: DamagedError | None = None
        for part in _parts(batches):
            try:
                found += await self._batcher((tenant, part, sum(len(batch.events) for batch in part)))
            except DamagedError as error:  # says nothing of the other users
                damaged = damaged or error
            except (StorageError, OverloadedError) as error:
                if not found and damaged is None:
                    raise
                raise StorageError(f"a part of this request is stored; of the others: {error.detail}") from error
        if damaged is not None:
            raise damaged
        return found

    async def _append(self, asked: list[_Request]) -> list[list[Appended] | Exception]:
        answers: list[list[Appended] | Exception] = [[] for _ in asked]
        for tenant in dict.fromkeys(tenant for tenant, _, _ in asked):
            places = [place for place, (of, _, _) in enumerate(asked) if of == tenant]
            found = iter(await self._store.append(tenant, [batch for place in places for batch in asked[place][1]]))
            for place in places:
                of_request = [next(found) for _ in asked[place][1]]
                failed = next((one for one in of_request if isinstance(one, Exception)), None)
                answers[place] = failed or [one for one in of_request if isinstance(one, Appended)]
        return answers


def _parts(batches: Sequence[Append]) -> Iterator[list[Append]]:
    """Batches of so many events as a round trip may take, but for one batch that has more by itself."""
    part: list[Append] = []
    events = 0
    for batch in batches:
        events += len(batch.events)
        if part and events > _EVENTS:
            yield part
            part, events = [], len(batch.events)
        part.append(batch)
    yield part


def _events_of(request: _Request) -> int:
    return request[2]


def popularity_increments(users: Sequence[UserEvents], weights: Mapping[str, float]) -> list[Increment]:
    """What fresh events add to popularity. `weights` has the positive event types alone; others count nothing."""
    return [
        (event.item_id, weights[event.type], event.time_ms)
        for user in users
        for event in user.events
        if event.item_id is not None and event.type in weights
    ]
