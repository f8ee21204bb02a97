"""What fresh events say of the contexts they happened in, on its way to the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from typing import Final

from app.ingest.append import UserEvents
from app.ingest.gathering import Gathering
from app.state.contexts import Contexts, Told

LONGEST_VALUE: Final = 64
"""Characters; a longer country or platform is not counted."""

ContextIncrement = tuple[str, float, int, tuple[tuple[str, str], ...]]
"""Item id, weight, unix ms, and the facets' names and values."""


def context_increments(users: Sequence[UserEvents], weights: Mapping[str, float]) -> list[ContextIncrement]:
    """What fresh events add. `weights` has the positive event types alone; an event whose context is not known adds nothing.

    The platform is the event's; the country is what the event's context says, else the user's attribute.
    """
    found: list[ContextIncrement] = []
    for user in users:
        of_user = (user.appended.attributes or {}).get("country")
        for event in user.events:
            if event.item_id is None or event.type not in weights:
                continue
            if event.context is None and event.platform is None and of_user is None:
                continue  # nothing to count it by
            country = event.context.get("country") if event.context else None
            facets = tuple(
                (facet, value)
                for facet, value in (("platform", event.platform), ("country", of_user if country is None else country))
                if isinstance(value, str) and 0 < len(value) <= LONGEST_VALUE
            )
            if facets:
                found.append((event.item_id, weights[event.type], event.time_ms, facets))
    return found


class ContextCounter(Gathering[ContextIncrement]):
    """Adds them to the store's counts, where all workers count. An event from the future counts now."""

    def __init__(self, contexts: Contexts, delay_s: float, knows: Callable[[str], bool]) -> None:
        super().__init__("contexts", delay_s, knows)
        self._contexts = contexts

    async def _count(self, tenant: str, increments: Sequence[ContextIncrement]) -> None:
        now_ms = time_ns() // 1_000_000
        told: dict[tuple[str, str], list[Told]] = {}
        for item, weight, time_ms, facets in increments:
            if weight > 0:
                for facet in facets:
                    told.setdefault(facet, []).append((item, weight, min(time_ms, now_ms)))
        if told:
            await self._contexts.count(tenant, told)
