"""One real cluster per test session, whole and empty at the start of each test that uses it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis_cluster import RedisCluster


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running_cluster: RedisCluster) -> RedisCluster:
    """The cluster, whole and empty. Which node has which slots is left as the tests before made it."""
    running_cluster.heal()
    return running_cluster
