"""The real store's Redis, archived and restored, is the same Redis."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.histories import histories
from app.archive.imports import import_files
from app.archive.restore import restore
from app.errors import ConflictError
from app.state import keys
from app.state.events import StoredEvent, decode_event
from app.state.redis import RedisStore
from app.state.ring import ring_ids
from app.state.store import Append

OpenStore = Callable[..., Awaitable[RedisStore]]
MakeArchiver = Callable[..., Archiver]
NOW_MS = 1_700_000_000_000
TTL_S = 10**6


def event(pick: random.Random) -> StoredEvent:
    return StoredEvent(
        "view", NOW_MS + pick.randrange(100_000), f"item {pick.randrange(30)}", quantity=pick.choice([None, 2, 0.5]), text="ü"
    )


async def live(store: RedisStore, pick: random.Random, steps: int, erase_at_ms: int) -> None:
    """Lives of a few users through every way of the store that writes the log."""
    for step in range(steps):
        user, other = (f"user {pick.randrange(12)}" for _ in range(2))
        events = [event(pick) for _ in range(pick.randrange(1, 4))]
        ids = [pick.choice([None, f"id {step} {n}"]) for n in range(len(events))]
        what = pick.random()
        if what < 0.75:
            await store.append("default", [Append(user, events, ids)])
        elif what < 0.85:
            await store.write_history("default", user, events, ids, f"import {step}")
        elif what < 0.93:
            await store.set_attributes("default", user, {"country": pick.choice(["DE", "FR"])})
        elif what < 0.96:
            try:
                await store.merge("default", user, other)
            except ConflictError:
                continue
        else:
            await store.erase("default", user, erase_at_ms)


def contents(raw: redis.Redis) -> dict[str, Any]:
    """What Redis holds of users; of the ring of event ids what it knows, not where in the ring it stands."""
    found: dict[str, Any] = {}
    for name in raw.scan_iter("lw:{*"):
        kind = name.decode().split(":")[3] if name.count(b":") > 3 else ""
        if kind == "seq":
            found[name.decode()] = raw.lrange(name, 0, -1)
        elif kind == "meta":
            found[name.decode()] = raw.hgetall(name)
        elif kind == "ids":
            found[name.decode()] = ring_ids(raw.get(name) or b"")
        elif kind == "gone":
            found[name.decode()] = raw.get(name)
    return found


def comparable(meta: dict[bytes, bytes], merged: bool) -> dict[bytes, bytes]:
    """A meta without what is nothing (no events: n, f and l are 0 or not there), without what a merge does not log (its
    name is another one after a restore), and without what is for the expiry, or the loss of the last writes, alone."""
    passed = (b"f", b"l", b"d", b"cut", b"ik", b"was")
    left = {field: value for field, value in meta.items() if field not in passed and (field, value) != (b"n", b"0")}
    left = {field: value for field, value in left.items() if value != b"was"}
    left |= {field: b"1" for field in left if field.startswith(b"m:")}
    if merged:
        left.pop(b"a", None)
    return left


@pytest.mark.parametrize("erase_now", [False, True])
@pytest.mark.parametrize("seed", range(4))
async def test_restoring_the_archive_of_the_store_gives_the_same_redis(
    open_store: OpenStore, archive: Archive, make_archiver: MakeArchiver, raw: redis.Redis, seed: int, erase_now: bool
):
    store, pick = await open_store(tombstone_ttl_s=TTL_S), random.Random(seed)
    for _ in range(4):
        await live(store, pick, 60, erase_at_ms=NOW_MS - 1)
        make_archiver(batch_rows=37).once(erase_now)
    before = contents(raw)
    assert not any(raw.xlen(name) for name in raw.scan_iter("*log"))
    raw.flushall()
    restore(archive, raw, max_sequence=20_000, dedupe_window=1_000, tombstone_ttl_s=TTL_S)
    after = contents(raw)
    assert after.keys() <= before.keys()
    for name, value in before.items():
        meta = before.get(name.replace(":ids:", ":meta:"), {})
        merged = isinstance(meta, dict) and any(field.startswith(b"m:") for field in meta)
        if ":ids:" in name:
            # Which ids came with a merge is not in the log: they are in no sequence.
            assert set(after.get(name, [])) <= set(value) if merged else after[name] == value
        elif ":meta:" in name:
            assert comparable(after[name], merged) == comparable(value, merged)
        else:
            assert after[name] == value
    # It goes on as if nothing had happened: the same retries are known, and the archive continues.
    await live(store, pick, 20, erase_at_ms=NOW_MS - 1)
    make_archiver().once()
    sequences = {keys.user_keys(h.tenant, h.user_id).seq: h.events for h in histories(archive) if h.events}
    assert sequences == {name: [decode_event(e) for e in found] for name, found in contents(raw).items() if ":seq:" in name}


async def test_an_import_goes_through_the_store_once(
    tmp_path: Path, open_store: OpenStore, archive: Archive, make_archiver: MakeArchiver
):
    store = await open_store()
    rows = "".join(f"user {n % 7},item {n},view,{NOW_MS + n * 37 % 100},id {n}\n" for n in range(100))
    (tmp_path / "a.csv").write_text("user_id,item_id,type,timestamp,event_id\n" + rows)
    for again in (0, 7):
        done = await import_files(
            [tmp_path / "a.csv"], store, tenant="default", import_id="1", known_types={"view"}, mapping={}, buckets=2
        )
        assert (done.users, done.again) == (7 - again, again)
    (appended,) = await store.append("default", [Append("user 3", [StoredEvent("view", NOW_MS, "item 3")], ["id 3"])])
    assert appended.flags == "0"
    make_archiver().once()
    found = {h.user_id: h.events for h in histories(archive)}
    assert {user: await store.recent("default", user, 1_000) for user in found} == found
    assert sum(map(len, found.values())) == 100
