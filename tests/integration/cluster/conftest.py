"""One real cluster per test session, whole and empty at the start of each test that uses it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from on_cluster import close
from redis_cluster import RedisCluster

from app.state.redis import RedisStore

OpenStore = Callable[..., Awaitable[RedisStore]]


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: RedisCluster) -> RedisCluster:
    """The cluster, whole and empty. Which node has which slots is left as the tests before made it."""
    running_cluster.heal()
    return running_cluster


@pytest.fixture
async def open_on_cluster(cluster: RedisCluster) -> AsyncIterator[OpenStore]:
    """Opens stores on the cluster with settings of the test's choice, and closes them."""
    stores = []

    async def open_one(**settings: Any) -> RedisStore:
        store = RedisStore(cluster.url, cluster=True, **settings)
        stores.append(store)
        await store.open()
        return store

    yield open_one
    for store in stores:
        await close(store)
