"""The store as the settings want it."""

from __future__ import annotations

from app.settings import Settings
from app.state.embedded import EmbeddedRedis
from app.state.redis import RedisStore
from app.state.transport import Confirm


def embedded_redis(settings: Settings) -> EmbeddedRedis:
    """The server for those who have none. It syncs each second, or before it answers where acknowledgements wait for the disk."""
    return EmbeddedRedis(settings.storage_dir, fsync="always" if settings.redis_wait_fsync else "everysec")


def open_store(settings: Settings, url: str, *, timeout_ms: int | None = None) -> RedisStore:
    """A store at `url`, which connects to nothing yet; `timeout_ms` in the place of that of the settings, for long calls.

    Raises StorageAddressError if `url` is no address.
    """
    return RedisStore(
        url,
        cluster=settings.redis_cluster,
        timeout_ms=timeout_ms or settings.redis_timeout_ms,
        max_sequence=settings.max_sequence,
        dedupe_window=settings.dedupe_window,
        log_max_length=settings.log_bound,
        state_ttl_s=settings.state_ttl_s,
        tombstone_ttl_s=settings.tombstone_ttl_s,
        confirm=Confirm(settings.redis_wait_replicas, settings.redis_wait_fsync, settings.redis_wait_ms),
    )
