"""Valid events -> the users' sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.ingest.validate import ValidEvent
from app.state.store import Append, StateStore

Increment = tuple[str, float, int]
"""What an event adds to the popularity of its item: (item_id, weight, unix ms)."""


@dataclass(frozen=True, slots=True)
class Stored:
    """`fresh` has a flag per event (False: a retry, known already); `totals` says how many events each user has had."""

    fresh: list[bool]
    totals: dict[str, int]


async def append(store: StateStore, tenant: str, events: Sequence[ValidEvent]) -> Stored:
    """Append each user's events in the order of the request; one round trip for all users.

    Raises:
        StorageError: Redis did not answer. Each user's events are then stored together or not at all; with event ids the same
            request can be sent again.
    """
    places: dict[str, list[int]] = {}
    for place, event in enumerate(events):
        places.setdefault(event.user_id, []).append(place)
    batches = [Append(user_id, [events[place].event for place in of_user]) for user_id, of_user in places.items()]
    fresh = [False] * len(events)
    totals: dict[str, int] = {}
    for batch, appended in zip(batches, await store.append(tenant, batches), strict=True):
        totals[batch.user_id] = appended.total
        for place, is_fresh in zip(places[batch.user_id], appended.fresh, strict=True):
            fresh[place] = is_fresh
    return Stored(fresh=fresh, totals=totals)


def popularity_increments(events: Sequence[ValidEvent], fresh: Sequence[bool], weights: Mapping[str, float]) -> list[Increment]:
    """What the fresh events add to popularity. `weights` has the positive event types alone; others count nothing."""
    return [
        (valid.event.item_id, weights[valid.event.type], valid.event.time_ms)
        for valid, is_fresh in zip(events, fresh, strict=True)
        if is_fresh and valid.event.item_id is not None and valid.event.type in weights
    ]
