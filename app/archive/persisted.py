"""What Redis has deleted stays in its append-only file until that is written anew."""

from __future__ import annotations

from typing import Any

import redis
import structlog

log = structlog.get_logger()


def rewrite_persisted(client: Any) -> None:
    """Ask Redis, or every primary of a Cluster that `client` is of, to write its append-only file anew, where it keeps one.

    Failures are logged: there Redis does so when the file has grown enough.
    """
    try:
        nodes: list[dict[str, Any]] = [{}]
        if isinstance(client, redis.RedisCluster):
            nodes = [{"target_nodes": node} for node in client.get_primaries()]  # type: ignore[no-untyped-call]
        for node in nodes:
            if client.info("persistence", **node).get("aof_enabled"):
                client.execute_command("BGREWRITEAOF", **node)
    except redis.RedisError as error:
        log.warning("the append-only file of Redis may still have who was erased", error=str(error))
