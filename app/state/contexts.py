"""What was used where: decayed counts per item of each value of a facet (a country, a platform), which all workers share.

At most 200 values of a facet and 1,000 items of a value (context.lua says who stays): of two facets 400,000 entries of a tenant
in the worst case, about 40 MB of Redis. What is not among the items of a value is still in the value's count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from app.state import keys
from app.state.calls import Call
from app.state.redis import RedisStore
from app.state.scripts import script
from app.state.text import decode_text, encode_text
from app.state.transport import Command

MOST_VALUES: Final = 200
MOST_ITEMS: Final = 1_000
_CHUNK: Final = 1_000  # events per command: short enough not to stall other clients
_KEPT_HALF_LIVES: Final = 8  # after that long without an event next to nothing is left

Told = tuple[str, float, int]
"""An event: item id, weight, unix ms."""


@dataclass(frozen=True, slots=True)
class Faded:
    """A decayed count as it was at `time_ms`."""

    time_ms: int
    count: float


class Contexts:
    """Counts and reads. Methods raise StorageError."""

    def __init__(
        self, store: RedisStore, half_life_s: float, most_values: int = MOST_VALUES, most_items: int = MOST_ITEMS
    ) -> None:
        """`half_life_s` is in the keys: during a swap two models may count with different ones."""
        self._store = store
        self._half_life_s = half_life_s
        self._most_values = most_values
        self._most_items = most_items

    async def count(self, tenant: str, told: Mapping[tuple[str, str], Sequence[Told]]) -> None:
        """Add events to (facet, value); one round trip, and another one where a value had to go for a new one."""
        half_life_ms = self._half_life_s * 1000
        head = [f"{half_life_ms:.17g}", self._most_values, self._most_items, int(_KEPT_HALF_LIVES * half_life_ms)]
        calls: list[Call] = []
        facets: list[str] = []
        for (facet, value), events in told.items():
            names = (self._values_key(tenant, facet), self._items_key(tenant, facet, value))
            for start in range(0, len(events), _CHUNK):
                arguments: list[object] = [encode_text(value), *head]
                for item, weight, time_ms in events[start : start + _CHUNK]:
                    arguments += (encode_text(item), f"{weight:.17g}", time_ms)
                calls.append((names, arguments))
                facets.append(facet)
        replies = await self._store.run(script("context"), calls)
        gone: list[Command] = [
            ("UNLINK", self._items_key(tenant, facet, decode_text(value)))
            for facet, value in zip(facets, replies, strict=True)
            if value
        ]
        if gone:
            await self._store.all(gone)

    async def values(self, tenant: str, facets: Sequence[str]) -> dict[tuple[str, str], Faded]:
        """(facet, value) -> the decayed count of all its events."""
        found = await self._store.all([("HGETALL", self._values_key(tenant, facet)) for facet in facets])
        return {(facet, value): faded for facet, pairs in zip(facets, found, strict=True) for value, faded in _parsed(pairs)}

    async def items(self, tenant: str, facet: str, value: str) -> dict[str, Faded]:
        """Item id -> the decayed count of its events with a value."""
        (pairs,) = await self._store.all([("HGETALL", self._items_key(tenant, facet, value))])
        return dict(_parsed(pairs))

    def _values_key(self, tenant: str, facet: str) -> str:
        return keys.context_key(tenant, self._half_life_s, facet)

    def _items_key(self, tenant: str, facet: str, value: str) -> str:
        return keys.context_items_key(tenant, self._half_life_s, facet, value)


def _parsed(pairs: Sequence[bytes]) -> list[tuple[str, Faded]]:
    found = []
    for name, faded in zip(pairs[::2], pairs[1::2], strict=True):
        time_ms, count = faded.split()
        found.append((decode_text(name), Faded(int(time_ms), float(count))))
    return found
