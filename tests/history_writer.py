"""A plain `write_history`: merges a history into the user's sequence, once per import, in one transaction."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

import redis

from app.archive.imports import Imported, import_files
from app.state.events import StoredEvent, decode_event, encode_event
from app.state.keys import user_keys


class HistoryOnRedis:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    async def write_history(
        self, tenant: str, user_id: str, events: Sequence[StoredEvent], event_ids: Sequence[str | None], import_id: str
    ) -> int | None:
        assert len(events) == len(event_ids)
        key, mark, epoch = user_keys(tenant, user_id), f"import:{import_id}", secrets.token_bytes(8)
        if self._client.hexists(key.meta, mark):
            return None
        there = [decode_event(packed) for packed in self._client.lrange(key.seq, 0, -1)]
        merged = sorted([*there, *events], key=lambda event: event.time_ms)
        script = self._client.pipeline(transaction=True)
        script.delete(key.seq)
        script.rpush(key.seq, *(encode_event(event) for event in merged))
        script.hset(key.meta, mapping={"n": len(merged), "e": epoch, mark: 1})
        names = {"t": tenant.encode(), "u": user_id.encode()}
        script.xadd(key.log, {"k": "s", **names, "p": epoch, "c": len(events), "o": "", "i": mark})
        for event, event_id in zip(events, event_ids, strict=True):
            script.xadd(key.log, {"k": "h", **names, "e": encode_event(event), "i": event_id or "", "n": 0, "p": epoch})
        script.execute()
        return len(events)


def run_import_in(scratch: Path, files: list[Path], url: str) -> None:
    """In a process of its own: import with the files that it needs meanwhile in this folder."""
    tempfile.tempdir = str(scratch)
    run_import(files, url)


def run_import(files: list[Path], url: str, **settings: object) -> Imported:
    """Import with few buckets and the types view and purchase, unless `settings` say otherwise."""
    defaults: dict[str, object] = {
        "tenant": "default",
        "import_id": "1",
        "known_types": {"view", "purchase"},
        "mapping": {},
        "buckets": 3,
    }
    with redis.Redis.from_url(url) as client:
        return asyncio.run(import_files(files, HistoryOnRedis(client), **(defaults | settings)))  # type: ignore[arg-type]
