"""How many events a second one core takes in batches; the clock stops when every one of them is folded."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter, sleep
from typing import Any, Final

import redis

from app.state.keys import user_keys
from loadtests.client import Client, settle
from loadtests.errors import BenchError
from loadtests.loop import Loop, Reply, Wire
from loadtests.metrics import FOLDED, UNCOMMITTED_STATES, UNFOLDED_USERS
from loadtests.pace import saturate
from loadtests.samples import latencies_ms
from loadtests.stand import Part, Setup, Stand, stand
from loadtests.states import TENANT, behind

_EVENTS: Final = 120_000
_EVENTS_COMMITTED_AT_ONCE: Final = 10_000
_BATCH: Final = 500
_USERS: Final = 20_000
_EXPONENT: Final = 1.05
_CONNECTIONS: Final = 4
_POLL_S: Final = 0.01
_FOLD_LIMIT_S: Final = 120.0
_COMMIT_LIMIT_S: Final = 20.0
_READ_S: Final = 1.0
_READERS: Final = 32


@dataclass
class Upload:
    """Batches on several connections, each sending its next as soon as its last is acknowledged."""

    loop: Loop
    port: int
    batches: deque[bytes]
    stored: int = 0
    seconds: list[float] = field(default_factory=list)

    def run(self, limit_s: float) -> None:
        self._out = 0
        for _ in range(min(_CONNECTIONS, len(self.batches))):
            self._out += 1
            self._send(self.loop.wire(self.port))
        self.loop.run(limit_s)

    def _send(self, wire: Wire) -> None:
        wire.send(self.batches.popleft(), partial(self._acknowledged, wire, perf_counter()))

    def _acknowledged(self, wire: Wire, sent_s: float, reply: Reply) -> None:
        if reply.status != 200:
            raise BenchError(f"a batch was refused: {reply.raw[:300]!r}")
        self.seconds.append(reply.received_s - sent_s)
        self.stored += json.loads(reply.body)["stored"]
        if self.batches:
            self._send(wire)
            return
        self._out -= 1
        if not self._out:
            self.loop.stop()


def measure(setup: Setup) -> Part:
    """A service and a Redis of their own: nobody has events yet, and nothing else runs."""
    users = [f"shopper-{number}" for number in range(_USERS)]
    traffic = setup.traffic(users, exponent=_EXPONENT, seed=7)
    with stand(setup) as running:
        batches = setup.times(_EVENTS, 4 * _BATCH) // _BATCH
        _upload(running, deque(traffic.batches(1, _BATCH)))  # every path once over
        settle(running.service)
        requests = deque(traffic.batches(batches, _BATCH))
        with Client(running.service) as client:
            before = client.metrics()
        written = _append_only_bytes(running.redis)
        began = perf_counter()
        with running.meter(running.service) as busy:
            upload = _upload(running, requests)
            acknowledged_s = perf_counter() - began
            with Client(running.service) as client:
                after = _await_folded(client, before.get(FOLDED, 0.0) + upload.stored)
            folded_s = perf_counter() - began
        with Client(running.service) as client:
            committed_s = _await_committed(client, running.redis, setup.bundle.model_id, users, began, after)
        written = _append_only_bytes(running.redis) - written
        met = _with_events(running.redis, users)
        late = behind(running.redis, setup.bundle.model_id, met)
        questions = setup.traffic(met, exponent=_EXPONENT, seed=8).questions()
        reads = saturate(running.service.port, questions, _READERS, _READ_S)
    if upload.stored != batches * _BATCH:
        raise BenchError(f"of {batches * _BATCH} events {upload.stored} were stored")
    rate = upload.stored / folded_s
    made_of: dict[str, Any] = {
        "events": upload.stored,
        "acknowledged_s": acknowledged_s,
        "folded_s": folded_s,
        "committed_s": committed_s,
        "append_only_bytes_per_event": written / upload.stored,
        "append_only_bytes_per_event_if_every_fold_were_committed": _bytes_if_every_fold_were_committed(setup),
        "states_behind_at_the_end": len(late),
        "folds_counted": after.get(FOLDED, 0.0) - before.get(FOLDED, 0.0),
        "unfolded_users_known": UNFOLDED_USERS in after,
        "acknowledged_per_second": upload.stored / acknowledged_s,
        "batch_latency": latencies_ms(upload.seconds),
        "batch_events": _BATCH,
        "connections": _CONNECTIONS,
        "users": len(met),
        "users_drawn_from": _USERS,
        "zipf_exponent": _EXPONENT,
        **busy.report(),
    }
    beside = {"get_rps_over_many_users": reads.answers / reads.seconds}
    return Part({"batch_events_per_second": rate}, {"batch_events_per_second": made_of}, beside)


def _bytes_if_every_fold_were_committed(setup: Setup) -> float:
    """What an event adds to the append-only file without waiting for more events of its user: a state each time."""
    users = [f"shopper-{number}" for number in range(_USERS)]
    traffic = setup.traffic(users, exponent=_EXPONENT, seed=7)
    with stand(setup, commit_events=1) as running:
        _upload(running, deque(traffic.batches(1, _BATCH)))
        settle(running.service)
        written = _append_only_bytes(running.redis)
        upload = _upload(running, deque(traffic.batches(setup.times(_EVENTS_COMMITTED_AT_ONCE, 2 * _BATCH) // _BATCH, _BATCH)))
        settle(running.service)
        return (_append_only_bytes(running.redis) - written) / upload.stored


def _upload(running: Stand, requests: deque[bytes]) -> Upload:
    with Loop() as loop:
        upload = Upload(loop, running.service.port, requests)
        upload.run(_FOLD_LIMIT_S)
    return upload


def _append_only_bytes(store: redis.Redis) -> int:
    """Size of the append-only file; it is not rewritten while it is this short."""
    return int(store.info("persistence")["aof_current_size"])


def _await_folded(client: Client, target: float) -> dict[str, float]:
    """Until the service has counted so many folded events, and knows of no user with others; returns its metrics then.

    Both, where it tells: an event that two folds met is counted twice.
    """
    deadline = perf_counter() + _FOLD_LIMIT_S
    while (found := client.metrics()).get(FOLDED, 0.0) < target or found.get(UNFOLDED_USERS, 0.0) > 0:
        if perf_counter() > deadline:
            raise BenchError(f"not every event was folded within {_FOLD_LIMIT_S:g} s")
        sleep(_POLL_S)
    return found


def _await_committed(
    client: Client, store: redis.Redis, model_id: str, users: list[str], began: float, metrics: dict[str, float]
) -> float | None:
    """Seconds from the beginning until every state was stored; None where some were left to their next read."""
    deadline = perf_counter() + _COMMIT_LIMIT_S
    while perf_counter() < deadline:
        if UNCOMMITTED_STATES in metrics:
            if not client.metrics().get(UNCOMMITTED_STATES):
                return perf_counter() - began
        elif not behind(store, model_id, _with_events(store, users)):
            return perf_counter() - began
        sleep(_POLL_S)
    return None


def _with_events(store: redis.Redis, users: list[str]) -> list[str]:
    """Those of the users whom the draw has met."""
    pipeline = store.pipeline(transaction=False)
    for user in users:
        pipeline.exists(user_keys(TENANT, user).meta)
    return [user for user, there in zip(users, pipeline.execute(), strict=True) if there]
