"""Looks behind the service: which users' stored states hold every event of theirs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

import redis

from app.errors import StateFormatError
from app.state.codec import HEADER_BYTES, peek
from app.state.keys import state_key, user_keys
from loadtests.errors import BenchError

TENANT: Final = "default"
_POLL_S: Final = 0.05
_CHUNK: Final = 2_000


def behind(client: redis.Redis, model_id: str, users: Sequence[str]) -> list[str]:
    """Users whose stored state is missing, damaged, of another epoch, or lacks events that were appended."""
    late = []
    for start in range(0, len(users), _CHUNK):
        chunk = users[start : start + _CHUNK]
        pipeline = client.pipeline(transaction=False)
        for user in chunk:
            pipeline.hmget(user_keys(TENANT, user).meta, "n", "e")
            pipeline.getrange(state_key(TENANT, model_id, user), 0, HEADER_BYTES - 1)
        replies = pipeline.execute()
        for user, (appended, epoch), head in zip(chunk, replies[::2], replies[1::2], strict=True):
            try:
                header = peek(head)
            except StateFormatError:
                late.append(user)
                continue
            if header.epoch != epoch or header.applied != int(appended or 0):
                late.append(user)
    return late


def await_committed(client: redis.Redis, model_id: str, users: Sequence[str], limit_s: float) -> None:
    """Until every user's stored state is current. Raises BenchError where that takes longer."""
    deadline = time.monotonic() + limit_s
    while late := behind(client, model_id, users):
        if time.monotonic() > deadline:
            raise BenchError(f"after {limit_s:g} s the stored states of {len(late)} of {len(users)} users lack events")
        time.sleep(_POLL_S)
