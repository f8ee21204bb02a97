"""What tests on a cluster share beside fixtures."""

from __future__ import annotations

from itertools import count

from app.state import keys
from app.state.redis import RedisStore
from app.state.transport import ClusterTransport


def users_of(pp: str, number: int) -> list[str]:
    """So many users of one partition: they share a slot."""
    found: list[str] = []
    for n in count():
        if keys.partition("default", f"user {n}") == pp:
            found.append(f"user {n}")
            if len(found) == number:
                return found
    raise AssertionError


async def close(store: RedisStore) -> None:
    """Close a store with all its connections."""
    await store.close()
    if isinstance(store._transport, ClusterTransport):
        # redis-py's aclose() does nothing for a client that was not initialized as a whole.
        await store._transport._cluster.nodes_manager.aclose()
        await store._transport._cluster.nodes_manager.aclose("startup_nodes")
