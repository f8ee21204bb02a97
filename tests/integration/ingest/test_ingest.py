from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import structlog

from app.errors import StorageError, TooLargeError
from app.ingest.pipeline import Ingest
from app.runtime.manifest import EventType
from app.state.redis import RedisStore

NOW = 1_700_000_000_000
HALF_LIVES = [86_400.0]
TYPES = [
    EventType(name="purchase", polarity="positive", weight=2.0),
    EventType(name="view", polarity="neutral"),
    EventType(name="cancel", polarity="negative"),
]


class Heard:
    """What the readers were told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str], list[tuple[str, float, int]]]] = []

    def __call__(self, tenant: str, user_ids: Sequence[str], increments: Sequence[tuple[str, float, int]]) -> None:
        self.calls.append((tenant, list(user_ids), list(increments)))


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def ingest(store: RedisStore, heard: Heard) -> Ingest:
    return Ingest(store, TYPES, HALF_LIVES, heard, max_events=10)


def event(user: str = "alice", item: str | None = "a", kind: str = "purchase", **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "type": kind, **more}


async def items(store: RedisStore, user: str) -> list[str | None]:
    return [stored.item_id for stored in await store.recent("default", user, 100)]


async def test_good_events_of_a_batch_are_stored_and_bad_ones_reported(ingest: Ingest, store: RedisStore):
    result = await ingest.accept("default", [event(item="a"), event(kind="buy"), "x", event(item="b")], NOW)
    assert [r.status for r in result.events] == ["stored", "rejected", "rejected", "stored"]
    assert [[(e.index, e.field) for e in r.errors] for r in result.events] == [[], [(1, "type")], [(2, "")], []]
    assert result.totals == {"alice": 2}
    assert await items(store, "alice") == ["a", "b"]


async def test_each_users_events_keep_the_order_of_the_request(ingest: Ingest, store: RedisStore):
    batch = [event("alice", "1"), event("bob", "2"), event("alice", "3"), event("bob", "4"), event("alice", "5")]
    result = await ingest.accept("default", batch, NOW)
    assert result.totals == {"alice": 3, "bob": 2}
    assert await items(store, "alice") == ["1", "3", "5"]
    assert await items(store, "bob") == ["2", "4"]


async def test_a_repeated_request_is_all_duplicates_and_moves_nothing(ingest: Ingest, store: RedisStore, heard: Heard):
    batch = [event("alice", "1", event_id="x"), event("bob", "2", event_id="y")]
    await ingest.accept("default", batch, NOW)
    popularity = await store.popularity("default", HALF_LIVES)
    again = await ingest.accept("default", batch, NOW + 5)
    assert [r.status for r in again.events] == ["duplicate", "duplicate"]
    assert again.totals == {"alice": 1, "bob": 1}
    assert await store.popularity("default", HALF_LIVES) == popularity
    assert len(heard.calls) == 1


async def test_only_fresh_positive_events_with_an_item_count_towards_popularity(ingest: Ingest, store: RedisStore, heard: Heard):
    batch = [
        event("alice", "a", event_id="x"),
        event("alice", "a", event_id="x"),
        event("bob", "b", "view"),
        event("bob", "c", "cancel"),
        event("bob", None, text="words"),
        event("carol", "d", timestamp=NOW - 1_000),
    ]
    await ingest.accept("default", batch, NOW)
    expected = [("a", 2.0, NOW), ("d", 2.0, NOW - 1_000)]
    assert heard.calls == [("default", ["alice", "bob", "carol"], expected)]
    assert await store.popularity("default", HALF_LIVES) == {item: (time_ms, (weight,)) for item, weight, time_ms in expected}


async def test_a_huge_batch_changes_nothing(ingest: Ingest, store: RedisStore):
    assert len((await ingest.accept("default", [event()] * 10, NOW)).events) == 10
    with pytest.raises(TooLargeError, match="11 events"):
        await ingest.accept("default", [event()] * 11, NOW)
    assert len(await items(store, "alice")) == 10


async def test_nothing_to_do_is_done(ingest: Ingest, heard: Heard):
    assert (await ingest.accept("default", [], NOW)).events == []
    result = await ingest.accept("default", [{}], NOW)
    assert (result.events[0].status, result.totals) == ("rejected", {})
    assert heard.calls == []


async def test_without_redis_nothing_is_acknowledged_and_nobody_told(tmp_path, heard: Heard):
    store = RedisStore(f"unix://{tmp_path}/nowhere.sock")
    with pytest.raises(StorageError):
        await Ingest(store, TYPES, HALF_LIVES, heard).accept("default", [event()], NOW)
    assert heard.calls == []
    await store.close()


class CountsFail(RedisStore):
    async def count_popularity(self, *_: Any) -> None:
        raise StorageError("gone in between")


async def test_stored_events_are_acknowledged_even_if_their_popularity_is_not_counted(redis_url: str, heard: Heard):
    # A 503 now would have the client send again what is stored, and double it where it has no event id.
    store = CountsFail(redis_url)
    with structlog.testing.capture_logs() as logs:
        result = await Ingest(store, TYPES, HALF_LIVES, heard).accept("default", [event()], NOW)
    assert result.events[0].status == "stored"
    assert heard.calls == [("default", ["alice"], [("a", 2.0, NOW)])]
    assert [log["event"] for log in logs] == ["popularity not counted"]
    await store.close()
