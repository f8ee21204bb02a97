"""What was used when, for trends: weights per item in buckets of time, which all workers share.

Two rings of buckets, 16 of five minutes and 28 of an hour, each of a fixed number of keys: a bucket takes the slot of one that is
long over, so that what is kept does not grow, whatever times events claim. A bucket has at most 20,000 items (trend.lua says who
stays): in the worst case 880,000 entries of a tenant, about 100 MB of Redis. A worker that reads all of them has 14 MB.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from app.state import keys
from app.state.calls import Call
from app.state.redis import RedisStore
from app.state.scripts import script
from app.state.text import decode_text, encode_text
from app.state.transport import Command

MOST_ITEMS: Final = 20_000
_CHUNK: Final = 1_000  # items per command: short enough not to stall other clients
_PART: Final = 1_000  # items that are read and taken over in one go: a millisecond or two


@dataclass(frozen=True, slots=True)
class Ring:
    """The last `slots` buckets of `width_s` seconds. Bucket n is the time from n * width_s on, since 1970."""

    width_s: int
    slots: int

    @property
    def width_ms(self) -> int:
        return 1000 * self.width_s

    def bucket(self, unix_ms: int) -> int:
        """The bucket of a moment."""
        return unix_ms // self.width_ms


FINE: Final = Ring(300, 16)
COARSE: Final = Ring(3_600, 28)
RINGS: Final = (FINE, COARSE)


class Trends:
    """Counts and reads buckets. Methods raise StorageError."""

    def __init__(self, store: RedisStore, most_items: int = MOST_ITEMS) -> None:
        self._store = store
        self._most_items = most_items

    async def count(self, tenant: str, weights: Mapping[tuple[Ring, int], Mapping[str, float]]) -> None:
        """Add weights to (ring, bucket) -> item id; one round trip. What is older than its ring counts nothing."""
        calls: list[Call] = []
        # Old ones first: of two that share a slot the later one is to stay.
        for ring, bucket in sorted(weights, key=lambda place: place[1]):
            head = [bucket, self._most_items, 1000 * ring.width_s * ring.slots]
            items = list(weights[ring, bucket].items())
            for start in range(0, len(items), _CHUNK):
                arguments: list[object] = [*head]
                for item, weight in items[start : start + _CHUNK]:
                    arguments += (encode_text(item), f"{weight:.17g}")
                calls.append(((keys.trend_key(tenant, ring.width_s, bucket % ring.slots),), arguments))
        await self._store.run(script("trend"), calls)

    async def versions(self, tenant: str, ring: Ring, buckets: Sequence[int]) -> list[bytes | None]:
        """What changes whenever a bucket does; None where nothing was counted, or nothing is left of it."""
        heads = await self._store.all([("HGET", _key(tenant, ring, bucket), "") for bucket in buckets])
        return [head if _is_of(head, bucket) else None for head, bucket in zip(heads, buckets, strict=True)]

    async def read(self, tenant: str, ring: Ring, buckets: Sequence[int]) -> AsyncIterator[tuple[int, list[tuple[str, float]]]]:
        """(bucket, some of its items and their weights), until all have come; an item may come twice."""
        cursors: dict[int, int | bytes] = dict.fromkeys(buckets, 0)
        while cursors:
            part = max(_PART // len(cursors), 1)
            scans: list[Command] = [
                ("HSCAN", _key(tenant, ring, bucket), cursor, "COUNT", part) for bucket, cursor in cursors.items()
            ]
            replies = await self._store.all(scans)
            for bucket, (cursor, found) in zip(list(cursors), replies, strict=True):
                items = zip(found[::2], found[1::2], strict=True)
                yield bucket, [(decode_text(item), float(weight)) for item, weight in items if item]
                cursors[bucket] = cursor
                if int(cursor) == 0:
                    del cursors[bucket]


def _key(tenant: str, ring: Ring, bucket: int) -> str:
    return keys.trend_key(tenant, ring.width_s, bucket % ring.slots)


def _is_of(head: bytes | None, bucket: int) -> bool:
    return head is not None and head.split()[0] == b"%d" % bucket
