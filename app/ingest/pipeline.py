"""The way of a written event: validate -> append -> tell the readers -> count popularity -> acknowledge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal, Protocol

import structlog

from app.errors import StorageError, TooLargeError
from app.ingest.append import Increment, append, popularity_increments
from app.ingest.validate import FieldError, ValidEvent, validate
from app.runtime.manifest import EventType
from app.state.store import StateStore

DEFAULT_MAX_EVENTS: Final = 1_000
DEFAULT_MAX_FUTURE_S: Final = 86_400.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EventResult:
    """What became of one event of a request; `errors` says why where it was rejected."""

    status: Literal["stored", "duplicate", "rejected"]
    errors: tuple[FieldError, ...] = ()


@dataclass(frozen=True, slots=True)
class IngestResult:
    """`events` in the order of the request; `totals` says how many events each user of it has had so far."""

    events: list[EventResult]
    totals: dict[str, int]


class StoredListener(Protocol):
    """Called once per request, after its fresh events are stored and before they are acknowledged; must not fail or wait."""

    def __call__(self, tenant: str, user_ids: Sequence[str], increments: Sequence[Increment]) -> None: ...


class Ingest:
    """Takes events for one model's event types. A model swap makes another one; it holds no state of its own.

    Args:
        half_lives_s: the model's popularity half-lives, seconds.
        on_stored: gets the users that have fresh events (each once), and what those add to popularity.
        max_future_s: how far ahead of arrival an event's time may be, for clocks that are wrong.
        max_events: per request.
    """

    def __init__(
        self,
        store: StateStore,
        event_types: Sequence[EventType],
        half_lives_s: Sequence[float],
        on_stored: StoredListener,
        *,
        max_future_s: float = DEFAULT_MAX_FUTURE_S,
        max_events: int = DEFAULT_MAX_EVENTS,
    ) -> None:
        self._store = store
        self._types = frozenset(t.name for t in event_types)
        self._weights = {t.name: t.weight for t in event_types if t.polarity == "positive"}
        self._half_lives_s = tuple(half_lives_s)
        self._on_stored = on_stored
        self._max_future_s = max_future_s
        self._max_events = max_events

    async def accept(self, tenant: str, raw_events: Sequence[object], arrival_ms: int) -> IngestResult:
        """Store the good events of a request (parsed JSON values) and report each bad one by its index.

        Raises:
            TooLargeError: more events than `max_events`; nothing is stored.
            StorageError: Redis did not answer; see `append`.
        """
        if len(raw_events) > self._max_events:
            raise TooLargeError(f"{len(raw_events)} events in one request; at most {self._max_events} are taken")
        valid, errors = validate(raw_events, self._types, arrival_ms, self._max_future_s)
        stored = await append(self._store, tenant, valid)
        increments = popularity_increments(valid, stored.fresh, self._weights)
        users = list(dict.fromkeys(event.user_id for event, is_fresh in zip(valid, stored.fresh, strict=True) if is_fresh))
        if users:
            self._on_stored(tenant, users, increments)
        await self._count(tenant, increments)

        return IngestResult(events=_results(len(raw_events), valid, stored.fresh, errors), totals=stored.totals)

    async def _count(self, tenant: str, increments: Sequence[Increment]) -> None:
        try:
            await self._store.count_popularity(tenant, self._half_lives_s, increments)
        except StorageError:
            # The events are stored. To refuse them now would make clients send them again, for the sake of a count.
            _log.warning("popularity not counted", tenant=tenant, events=len(increments))


def _results(count: int, valid: Sequence[ValidEvent], fresh: Sequence[bool], errors: Sequence[FieldError]) -> list[EventResult]:
    """One result per event of the request: each index is either in `valid` or has errors."""
    results = {v.index: EventResult("stored" if is_fresh else "duplicate") for v, is_fresh in zip(valid, fresh, strict=True)}
    for index, of_event in groupby(errors, key=lambda error: error.index):
        results[index] = EventResult("rejected", tuple(of_event))
    return [results[index] for index in range(count)]
