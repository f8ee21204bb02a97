"""Histories of more events than a command of Redis can have arguments (1,048,576)."""

from __future__ import annotations

import redis

from app.state.events import StoredEvent, decode_event, encode_event
from app.state.keys import user_keys
from app.state.redis import RedisStore

EVENTS = 524_289  # with an id each, one argument too many


async def test_a_rewrite_of_more_events_than_a_command_has_arguments_is_written_whole(redis_url: str, raw: redis.Redis):
    store = RedisStore(redis_url, max_sequence=2_500, log_max_length=0, timeout_ms=60_000)
    await store.open()
    events = [StoredEvent("view", n, "item") for n in range(EVENTS)]
    ids = [f"id {n}" if n % 2 else None for n in range(EVENTS)]
    try:
        new = [(encode_event(event), event.time_ms, event_id or "") for event, event_id in zip(events, ids, strict=True)]
        assert await store.rewrite("default", "a", new, mark="1") == EVENTS
    finally:
        await store.close()
    key = user_keys("default", "a")
    assert [decode_event(packed) for packed in raw.lrange(key.seq, 0, -1)] == events[-2_500:]
    assert raw.xlen(key.log) == 1 + EVENTS
    log = [fields for _, fields in [*raw.xrange(key.log, count=1_502)[1:], *reversed(raw.xrevrange(key.log, count=2))]]
    found = [(decode_event(fields[b"e"]), fields[b"i"].decode() or None) for fields in log]
    places = [*range(1_501), EVENTS - 2, EVENTS - 1]  # across the bound of an argument, and the end
    assert found == [(events[place], ids[place]) for place in places]
