"""The test stand: a fresh Redis, the service on its own core, and the floor on the same one if it is asked for."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import redis

from app.state.embedded import EmbeddedRedis
from loadtests.busy import Meter, family
from loadtests.client import Client, settle
from loadtests.machine import Cores
from loadtests.servers import Server, floor, serving
from loadtests.states import await_committed
from loadtests.traffic import Traffic, told
from loadtests.world import Measured

HISTORY: Final = 50
"""Events of each user of a stand before anything is measured."""

_BATCH: Final = 500
_COMMITTED_S: Final = 60.0
_PATIENT: Final[dict[str, object]] = {"redis_timeout_ms": 10_000}
_MONTH_MS: Final = 30 * 86_400_000


@dataclass(frozen=True)
class Setup:
    """What is measured, on which cores, in how much of the full time (1 = all of it)."""

    bundle: Measured
    cores: Cores
    scale: float = 1.0

    def times(self, number: int, least: int = 1) -> int:
        """So many repetitions, or fewer in a shortened run."""
        return max(least, round(number * self.scale))

    def traffic(self, users: list[str], **options: Any) -> Traffic:
        """Events of these users, in the last month if not said otherwise."""
        began_ms = time.time_ns() // 1_000_000 - _MONTH_MS
        return Traffic(self.bundle.items, self.bundle.event_type, users, **{"began_ms": began_ms} | options)


@dataclass
class Part:
    """What one measurement found.

    Attributes:
        figures: by their keys in the issue's table; None where it cannot be measured.
        made_of: what each of them was made of.
        beside: further figures.
        void: why a figure does not count.
    """

    figures: dict[str, float | None] = field(default_factory=dict)
    made_of: dict[str, dict[str, Any]] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)
    void: list[str] = field(default_factory=list)

    def add(self, other: Part) -> None:
        self.figures |= other.figures
        self.made_of |= other.made_of
        self.beside |= other.beside
        self.void += other.void


@dataclass(frozen=True)
class Stand:
    """A service that runs, on a Redis that nobody else uses."""

    setup: Setup
    folder: Path
    store: EmbeddedRedis
    redis: redis.Redis
    service: Server

    def meter(self, server: Server) -> Meter:
        """How busy this server is, and we are."""
        return Meter(family(server.pid), [os.getpid(), self.store.pid], self.setup.cores)


@contextmanager
def stand(setup: Setup, **settings: object) -> Iterator[Stand]:
    """Start everything, stop everything; the append-only file is on, as by default.

    Redis is waited for longer than by default: where others use its core it is slow, which a figure should show, and not end in.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="longwave-bench-")))
        store = stack.enter_context(EmbeddedRedis(folder / "redis"))
        client = stack.enter_context(redis.Redis.from_url(store.url))
        service = stack.enter_context(
            serving(setup.bundle.folder, store.url, [setup.cores.service], folder / "service.log", **_PATIENT | settings)
        )
        yield Stand(setup, folder, store, client, service)


@contextmanager
def floor_beside(stand: Stand) -> Iterator[Server]:
    """The floor on the service's core, with answers as long as the service's own."""
    setup = stand.setup
    with Client(stand.service) as client:
        (event,) = setup.traffic(["longwave-bench-first"]).events(1)
        posted = len(client.answer(told(event)).body)
        got = len(client.ask(event["user_id"], 1).body)
    with floor(stand.store.url, got, posted, [setup.cores.service], stand.folder / "floor.log") as server:
        yield server


def give_histories(stand: Stand, users: list[str], events: int = HISTORY) -> None:
    """So many events to each user, an hour apart; returns when every state is stored."""
    setup = stand.setup
    traffic = setup.traffic(users, step_ms=3_600_000 // len(users), seed=1)
    made = [event for _ in range(events) for event in traffic.events_of(users)]
    with Client(stand.service) as client:
        for start in range(0, len(made), _BATCH):
            client.tell(made[start : start + _BATCH])
    settle(stand.service)
    await_committed(stand.redis, setup.bundle.model_id, users, _COMMITTED_S)
