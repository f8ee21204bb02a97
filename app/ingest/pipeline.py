"""The way of a written event: validate -> append -> tell the readers -> acknowledge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from typing import Any, Final, Literal, Protocol

import msgspec

from app.errors import OverloadedError, TooLargeError
from app.ingest.append import Appender, Increment, UserEvents, popularity_increments
from app.ingest.validate import FieldError, ValidEvent, validate
from app.runtime.batcher import FOREVER, Patience
from app.runtime.manifest import EventType
from app.state.store import DUPLICATE, ERASED, STORED, StateStore

DEFAULT_MAX_EVENTS: Final = 1_000
DEFAULT_MAX_FUTURE_S: Final = 86_400.0

# Events that wait to be stored, of all requests together: 90 MB, or 400 MB where each request is as long as it may be. About as
# many as are stored in the few seconds that a write waits.
_MOST_WAITING: Final = 100_000

_ERASED_MESSAGE: Final = "the user was erased after this event happened"

_canonical = msgspec.json.Encoder(order="sorted").encode


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

    def __call__(self, tenant: str, users: Sequence[UserEvents], increments: Sequence[Increment]) -> None: ...


class Room(Protocol):
    """Called before a request is stored: returns when there is room for its events, or raises OverloadedError."""

    async def __call__(self) -> None: ...


async def _always() -> None:
    return None


class Ingest:
    """Takes events for one model's event types. A model swap makes another one; it holds no state of its own.

    Args:
        on_stored: gets the users that have fresh events, and what those add to popularity.
        room: holds requests back while the fold is too far behind.
        max_future_s: how far ahead of arrival an event's time may be, for clocks that are wrong.
        max_events: per request.
        patience: how long a request waits for those before it to be stored.
    """

    def __init__(
        self,
        store: StateStore,
        event_types: Sequence[EventType],
        on_stored: StoredListener,
        *,
        room: Room = _always,
        max_future_s: float = DEFAULT_MAX_FUTURE_S,
        max_events: int = DEFAULT_MAX_EVENTS,
        patience: Patience = FOREVER,
    ) -> None:
        self._append = Appender(store, patience)
        self._types = frozenset(t.name for t in event_types)
        self._weights = {t.name: t.weight for t in event_types if t.polarity == "positive"}
        self._on_stored = on_stored
        self._room = room
        self._max_future_s = max_future_s
        self._max_events = max_events
        self._waiting = 0  # events

    def check(self, raw_events: Sequence[object], arrival_ms: int) -> tuple[list[ValidEvent], list[FieldError]]:
        """`validate` for this model and these settings. Raises TooLargeError."""
        if len(raw_events) > self._max_events:
            raise TooLargeError(f"{len(raw_events)} events in one request; at most {self._max_events} are taken")
        return validate(raw_events, self._types, arrival_ms, self._max_future_s)

    async def accept(
        self, tenant: str, raw_events: Sequence[object], arrival_ms: int, idempotency_key: str | None = None
    ) -> IngestResult:
        """Store the good events of a request (parsed JSON values) and report each bad one by its index.

        Args:
            idempotency_key: gives events without an id one that the same request will give them again.

        Raises:
            TooLargeError: more events than `max_events`; nothing is stored.
            StorageError: Redis did not answer; see `Appender`.
            OverloadedError: too much is waiting; nothing is stored.
        """
        if idempotency_key is not None:
            raw_events = [_with_id(raw, idempotency_key, index) for index, raw in enumerate(raw_events)]
        valid, errors = self.check(raw_events, arrival_ms)
        if not valid:
            return IngestResult(_results(len(raw_events), [], [], errors), {})
        if self._waiting and self._waiting + len(valid) > _MOST_WAITING:
            raise OverloadedError(f"{self._waiting} events wait to be stored; send more when there are fewer")
        self._waiting += len(valid)
        try:
            await self._room()
            stored = await self._append(tenant, valid)
        finally:
            self._waiting -= len(valid)
        if stored.users:
            self._on_stored(tenant, stored.users, popularity_increments(stored.users, self._weights))
        return IngestResult(events=_results(len(raw_events), valid, stored.flags, errors), totals=stored.totals)


def _with_id(raw: object, key: str, index: int) -> object:
    """An event of a request with an Idempotency-Key, with an id of its own: made of the key, its place and its content, so that
    another event under the same key is never taken for this one."""
    if not isinstance(raw, dict) or raw.get("event_id") is not None:
        return raw
    try:
        content: Any = _canonical([key, index, raw])
    except (UnicodeEncodeError, TypeError, OverflowError, RecursionError):
        return raw  # nothing that could be stored
    return raw | {"event_id": f"key:{blake2b(content, digest_size=12).hexdigest()}"}


def _results(count: int, valid: Sequence[ValidEvent], flags: Sequence[str], errors: Sequence[FieldError]) -> list[EventResult]:
    """One result per event of the request: each index is either in `valid` or has errors."""
    if not errors and ERASED not in flags:
        return [_PLAIN[flag] for flag in flags]
    results = {}
    for event, flag in zip(valid, flags, strict=True):
        if flag == ERASED:
            results[event.index] = EventResult("rejected", (FieldError(event.index, "timestamp", _ERASED_MESSAGE),))
        else:
            results[event.index] = _PLAIN[flag]
    for index, of_event in groupby(errors, key=lambda error: error.index):
        results[index] = EventResult("rejected", tuple(of_event))
    return [results[index] for index in range(count)]


_PLAIN: Final = {STORED: EventResult("stored"), DUPLICATE: EventResult("duplicate")}
