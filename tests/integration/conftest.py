"""One real redis-server per test session, emptied for each test that uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis

from app.state.embedded import EmbeddedRedis
from app.state.redis import RedisStore

OpenStore = Callable[..., Awaitable[RedisStore]]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), fsync="no") as server:
        yield server


@pytest.fixture
def redis_url(redis_server: EmbeddedRedis) -> str:
    """The address of an empty Redis."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def raw(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client of the test's Redis, to look behind the store."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def open_store(redis_url: str) -> AsyncIterator[OpenStore]:
    """Opens stores with settings of the test's choice, and closes them."""
    stores = []

    async def open_one(**settings: Any) -> RedisStore:
        store = RedisStore(redis_url, **settings)
        stores.append(store)
        await store.open()
        return store

    yield open_one
    for store in stores:
        await store.close()


@pytest.fixture
async def store(open_store: OpenStore) -> RedisStore:
    return await open_store()
