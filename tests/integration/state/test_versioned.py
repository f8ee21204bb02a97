"""What is stored under a name, version by version."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import redis

from app.errors import DamagedError
from app.state import keys
from app.state.redis import RedisStore
from app.state.versioned import MOST, MOST_VERSIONS, Stored, VersionedStore

ODD = ["a", "a:1", "a:", ":", "%", "a%3A1", "ü/ß", " ", "{a}", "\ufffe", "x" * 256]


@pytest.fixture
def named(store: RedisStore) -> VersionedStore:
    return VersionedStore(store, "default", "experiment")


async def test_the_same_again_is_no_new_version_and_another_body_is(named: VersionedStore):
    assert [await named.put("a", body) for body in (b"1", b"1", b"2", b"1")] == [1, 1, 2, 3]
    assert await named.get("a") == Stored("a", 3, b"1")
    assert await named.get("a", 2) == Stored("a", 2, b"2")
    assert await named.get("a", 4) is None


async def test_names_that_look_like_fields_of_others_are_names_of_their_own(named: VersionedStore):
    for number, name in enumerate(ODD):
        for body in (str(number), str(-number - 1)):
            await named.put(name, body.encode())
    found, _ = await named.readable()
    assert found == sorted(
        (Stored(name, 2, str(-number - 1).encode()) for number, name in enumerate(ODD)), key=lambda one: one.name
    )
    assert await named.delete("a")
    assert [name for name in ODD if await named.get(name, 1) is None] == ["a"]
    assert await named.missing([*ODD, "b"]) == {"a", "b"}


async def test_no_version_of_a_name_is_given_twice_also_after_it_was_forgotten(named: VersionedStore):
    versions = [await named.put("a", body) for body in (b"1", b"2")]
    assert [await named.delete("a"), await named.delete("a")] == [True, False]
    assert await named.get("a", 2) is None
    versions.append(await named.put("a", b"2"))
    await named.delete("a")
    await named.put("b", b"1")
    await named.delete("b")
    versions.append(await named.put("a", b"1"))
    assert versions == sorted(set(versions), key=lambda version: version or 0)  # type: ignore[arg-type]


async def test_kinds_and_tenants_are_apart(store: RedisStore, named: VersionedStore):
    others = [VersionedStore(store, "default", "scenario"), VersionedStore(store, "other", "experiment")]
    await named.put("a", b"1")
    assert [await other.readable() for other in others] == [([], []), ([], [])]


async def test_two_workers_that_change_one_name_at_once_each_get_a_version(
    open_store: Callable[..., Awaitable[RedisStore]], named: VersionedStore
):
    other = VersionedStore(await open_store(), "default", "experiment")
    given = await asyncio.gather(*(one.put("a", f"{n}".encode()) for n in range(40) for one in (named, other)))
    by_body = {}
    for version in sorted(set(given)):  # type: ignore[type-var]
        found = await named.get("a", version)
        by_body[version] = found.body if found is not None else None
    last = await named.get("a")
    assert last is not None
    assert last.version == max(by_body)
    kept = [version for version, body in by_body.items() if body is not None]
    assert len(kept) == min(MOST_VERSIONS, max(by_body))


async def test_the_last_versions_are_kept_and_there_is_a_most_of_names(named: VersionedStore, raw: redis.Redis):
    for number in range(MOST_VERSIONS + 1):
        await named.put("a", f"{number}".encode())
    assert await named.get("a", 1) is None
    assert await named.get("a", 2) is not None
    raw.hset(keys.named_key("default", "experiment"), mapping={f"n{n}": "1 {}" for n in range(MOST["experiment"] - 1)})
    assert await named.put("one more", b"{}") is None
    assert await named.put("a", b"{}") == MOST_VERSIONS + 2
    assert await named.delete("n3")
    assert await named.put("one more", b"{}") is not None


async def test_what_is_damaged_is_said_and_can_be_stored_again_or_forgotten(named: VersionedStore, raw: redis.Redis):
    key = keys.named_key("default", "experiment")
    for name in ("a", "b"):
        raw.hset(key, name, "nonsense")
        with pytest.raises(DamagedError, match=name):
            await named.get(name)
    assert await named.put("a", b"1") == 1
    assert await named.delete("b")
    assert await named.readable() == ([Stored("a", 1, b"1")], [])


async def test_what_is_damaged_hides_nothing_else_and_is_named_so_that_it_can_be_forgotten(
    named: VersionedStore, raw: redis.Redis
):
    key = keys.named_key("default", "experiment")
    await named.put("good", b"1")
    raw.hset(key, mapping={"bad": "nonsense", b"\xff/": "1 {}", "not encoded": "1 {}", "%FF": "1 {}"})
    found, damaged = await named.readable()
    assert found == [Stored("good", 1, b"1")]
    assert [one.name for one in damaged] == ["%25FF", "%FF%2F", "bad", "not%20encoded"]
    for one in damaged:
        assert await named.delete(one.name)
        assert not await named.delete(one.name)
    assert await named.readable() == ([Stored("good", 1, b"1")], [])


@pytest.mark.parametrize("damage", ["nonsense", "9" * 16 + " {}"])
async def test_no_version_is_given_twice_also_where_the_latest_was_damaged(named: VersionedStore, raw: redis.Redis, damage: str):
    key = keys.named_key("default", "experiment")
    for name in ("stored again", "forgotten"):
        assert [await named.put(name, body) for body in (b"1", b"2")] == [1, 2]
        raw.hset(key, keys.encode_id(name), damage)
    assert await named.delete("forgotten")
    assert await named.put("stored again", b"3") == 3
    assert await named.put("forgotten", b"3") == 3
