"""Looks behind the service: which users' states are stored as far as they ever are before the next event."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import redis

from app.errors import StateFormatError
from app.settings import Settings
from app.state.codec import HEADER_BYTES, peek
from app.state.keys import state_key, user_keys
from loadtests.errors import BenchError

TENANT: Final = "default"
_POLL_S: Final = 0.05
_CHUNK: Final = 2_000


COMMIT_EVENTS: Final[int] = Settings.model_fields["commit_events"].default
"""A state is stored when it is so many events ahead of what is there; until then its worker keeps it and others fold the rest."""


def behind(client: redis.Redis, model_id: str, users: Sequence[str]) -> list[str]:
    """Users whose stored state is due: it lacks COMMIT_EVENTS of those appended, or more, or all of them."""
    late = []
    for start in range(0, len(users), _CHUNK):
        chunk = users[start : start + _CHUNK]
        pipeline = client.pipeline(transaction=False)
        for user in chunk:
            pipeline.hmget(user_keys(TENANT, user).meta, "n", "e")
            pipeline.getrange(state_key(TENANT, model_id, user), 0, HEADER_BYTES - 1)
        replies = pipeline.execute()
        for user, (appended, epoch), head in zip(chunk, replies[::2], replies[1::2], strict=True):
            if int(appended or 0) - _applied(head, epoch) >= COMMIT_EVENTS:
                late.append(user)
    return late


def _applied(head: bytes, epoch: bytes) -> int:
    """Events that a stored state holds; 0 where there is none that can be continued."""
    try:
        header = peek(head)
    except StateFormatError:
        return 0
    return header.applied if header.epoch == epoch else 0


def await_committed(client: redis.Redis, model_id: str, users: Sequence[str], limit_s: float) -> None:
    """Until no user's stored state is due. Raises BenchError where that takes longer."""
    deadline = time.monotonic() + limit_s
    while late := behind(client, model_id, users):
        if time.monotonic() > deadline:
            raise BenchError(f"after {limit_s:g} s the stored states of {len(late)} of {len(users)} users are due")
        time.sleep(_POLL_S)
