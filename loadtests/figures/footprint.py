"""What a user takes in Redis: everything of 60 users with 1,000 events each, with two models live."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import redis

from app.state.keys import PARTITIONS
from loadtests.client import Client, settle
from loadtests.errors import BenchError
from loadtests.stand import Part, Setup, Stand, stand
from loadtests.states import TENANT, await_committed
from loadtests.twin import Twins, twins

EVENTS: Final = 1_000

_USERS: Final = 60
_BATCH: Final = 500
_COMMITTED_S: Final = 120.0
_REWRITE_S: Final = 60.0
_KINDS: Final = ("seq", "meta", "ids", "state")


def measure(setup: Setup) -> Part:
    """The difference of Redis' used_memory per user, with the event log archived and the service changed to a second model.

    What belongs to no user is left out: the counts of popularity and trends, whose numbers grow longer while the users come in,
    and the partitions' empty logs.
    """
    users = [f"{number:05d}-keeper" for number in range(setup.times(_USERS, 4))]
    with TemporaryDirectory(prefix="longwave-bench-") as folder:
        return _measure(setup, users, twins(setup.bundle.folder, Path(folder)))


def _measure(setup: Setup, users: list[str], both: Twins) -> Part:
    with stand(replace(setup, bundle=replace(setup.bundle, folder=both.first)), bundles_dir=both.folder) as running:
        _touch_everything(running)
        before = _used(running.redis)
        popularity_before = _popularity_bytes(running.redis)
        _give(running, users)
        await_committed(running.redis, setup.bundle.model_id, users, _COMMITTED_S)
        both.activate(running.service)
        settle(running.service)
        models = {state.decode().split(":")[4] for state in _keys(running.redis, "state")}
        if models != {setup.bundle.model_id, both.other} or len(_keys(running.redis, "state")) != 2 * len(users):
            raise BenchError(f"expected states of two models for each of {len(users)} users, found {len(models)} models")
        with_log = _used(running.redis)
        _archive(running.redis)
        after = _used(running.redis)
        popularity = _popularity_bytes(running.redis) - popularity_before
        kinds = {f"{kind}_key_bytes": _key_bytes(running.redis, kind) / len(users) for kind in _KINDS}
    user_bytes = (after - before - popularity) / len(users)
    made_of: dict[str, Any] = {
        "users": len(users),
        "events_each": EVENTS,
        "models_live": 2,
        **kinds,
        "log_bytes_before_trimming": (with_log - after) / len(users),
        "popularity_bytes_left_out": popularity,
    }
    return Part({"user_bytes": user_bytes}, {"user_bytes": made_of})


def _touch_everything(running: Stand) -> None:
    """One user comes and goes, so that scripts, connections and shared keys are there before anything is weighed."""
    _give(running, ["first"], 1_000)
    await_committed(running.redis, running.setup.bundle.model_id, ["first"], _COMMITTED_S)
    _archive(running.redis)
    for kind in _KINDS:
        for key in _keys(running.redis, kind):
            running.redis.delete(key)


def _give(running: Stand, users: list[str], events: int = EVENTS) -> None:
    """Events of all users in turns, as they would come in."""
    traffic = running.setup.traffic(users, step_ms=1_000_000 // len(users), seed=9)
    made = [event for _ in range(events) for event in traffic.events_of(users)]
    with Client(running.service) as client:
        for start in range(0, len(made), _BATCH):
            client.tell(made[start : start + _BATCH])
    settle(running.service)


def _archive(client: redis.Redis) -> None:
    """Drop the event log, as after an archiver that has kept everything."""
    client.delete(*(f"lw:{{{partition:02x}}}:log" for partition in range(PARTITIONS)))


def _used(client: redis.Redis) -> int:
    """used_memory without what Redis takes to talk and to write: its connections and the buffer of the append-only file.

    Connections are weighed at the same moment (`mem_clients_normal` is a few seconds old, and one buffer is 32 KB). Waits for the
    end of a rewrite of that file, which has buffers of its own.
    """
    deadline = time.monotonic() + _REWRITE_S
    while client.info("persistence")["aof_rewrite_in_progress"]:
        if time.monotonic() > deadline:
            raise BenchError(f"Redis still rewrites its append-only file after {_REWRITE_S:g} s")
        time.sleep(0.1)
    with client.pipeline(transaction=True) as together:
        memory, connections = together.info("memory").client_list().execute()
    used: int = memory["used_memory"] - sum(int(one["tot-mem"]) for one in connections) - memory["mem_aof_buffer"]
    return used


def _keys(client: redis.Redis, kind: str) -> list[bytes]:
    return list(client.scan_iter(f"lw:*:{TENANT}:{kind}:*", count=1_000))


def _weigh(client: redis.Redis, keys: Iterator[bytes] | list[bytes]) -> int:
    return sum(client.memory_usage(key, samples=0) or 0 for key in keys)


def _key_bytes(client: redis.Redis, kind: str) -> int:
    return _weigh(client, _keys(client, kind))


def _popularity_bytes(client: redis.Redis) -> int:
    patterns = (f"lw:{TENANT}:popularity*", f"lw:{{trend-{TENANT}}}:*")
    return sum(_weigh(client, client.scan_iter(pattern, count=1_000)) for pattern in patterns)
