"""A whole service on a large catalogue: at which constant rate it answers, how much memory it takes, when a new item is seen."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from loadtests.client import Client
from loadtests.connection import get, post
from loadtests.errors import BenchError
from loadtests.pace import steadily
from loadtests.samples import percentile
from loadtests.servers import Server
from loadtests.stand import Setup, Stand, give_histories, stand

LIMIT_S: Final = 0.050
"""ETUDE's limit on the 90th percentile."""

_USERS: Final = 500
_EVENTS: Final = 20
_CONNECTIONS: Final = 256
_FILTERS: Final = ("share < 0.5", "share < 0.1", "share < 0.01", "share < 0.0001")
_INDEX_S: Final = 900.0
_SEEN: Final = 20  # items that are added to see when they can be recommended
_TRY: Final = 0.2  # of the whole time, to find out which rate can be held


@dataclass(frozen=True)
class Held:
    """A constant rate, and what came of it."""

    rate: float
    p90_s: float
    p99_s: float

    @property
    def holds(self) -> bool:
        return self.p90_s <= LIMIT_S


def measure_service(
    setup: Setup, rates: Sequence[float], filters: bool, seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """The service on one bundle.

    Args:
        rates: requests a second that are tried, ascending; the highest that holds for a short time is then held for `seconds`.
        filters: whether all items get attributes, and lists under filters are asked for, too.
    """
    folder = setup.bundle.folder
    users = [f"user-{number}" for number in range(_USERS)]
    found: dict[str, Any] = {}
    with stand(setup, storage_dir=folder.parent / f"{folder.name}-storage") as running:
        _await_index(running.service, say)
        give_histories(running, users, _EVENTS)
        asked = itertools.cycle([get(f"/v1/users/{quote(user)}/recommendations?k=20") for user in users])
        found["plain"] = _highest(running.service, asked, rates, seconds, say)
        if filters:
            found["items_told_s"] = _tell_attributes(running, setup.bundle.items, say)
            found["filters"] = {}
            for text in _FILTERS:
                asked = itertools.cycle(
                    [get(f"/v1/users/{quote(user)}/recommendations?k=20&filter={quote(text)}") for user in users]
                )
                found["filters"][text] = _highest(running.service, asked, [100, 250, 500], seconds / 3, say)
        found["memory_bytes"] = _resident(running.service.pid) + int(running.redis.info("memory")["used_memory_rss"])
        found["visible_ms"] = _visible_ms(running)
    return found


def _await_index(server: Server, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + _INDEX_S
    with Client(server) as client:
        while True:
            said = json.loads(client.answer(get("/readyz")).body)
            if said["retrieval"] in ("exact", "index"):
                say(f"retrieval is {said['retrieval']}: {said['retrieval_reason']}")
                return
            if time.monotonic() > deadline:
                raise BenchError("the index is not there after 15 minutes")
            time.sleep(1.0)


def _highest(
    server: Server, asked: Iterator[bytes], rates: Sequence[float], seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """The highest of some rates that can be held."""
    best, tried = None, []
    for rate in rates:
        one = _hold(server, asked, rate, max(2.0, seconds * _TRY))
        tried.append(one)
        say(f"{rate:g}/s: p90 {one.p90_s * 1e3:.1f} ms, p99 {one.p99_s * 1e3:.1f} ms")
        if not one.holds:
            break
        best = rate
    while best is not None:
        one = _hold(server, asked, best, seconds)
        say(f"held {best:g}/s for {seconds:g} s: p90 {one.p90_s * 1e3:.1f} ms")
        if one.holds:
            return {"rate": best, "p90_ms": one.p90_s * 1e3, "p99_ms": one.p99_s * 1e3, "seconds": seconds}
        best = max((rate for rate in rates if rate < best), default=None)
    return {"rate": 0.0, "p90_ms": tried[0].p90_s * 1e3, "p99_ms": tried[0].p99_s * 1e3, "seconds": seconds}


def _hold(server: Server, asked: Iterator[bytes], rate: float, seconds: float) -> Held:
    latencies = steadily(server.port, asked, rate, _CONNECTIONS, seconds).latencies
    return Held(rate, percentile(latencies, 90), percentile(latencies, 99))


def _tell_attributes(running: Stand, items: Sequence[str], say: Callable[[str], None]) -> float:
    """Every item gets attributes; how long that takes."""
    began = time.perf_counter()
    with Client(running.service) as client:
        for start in range(0, len(items), 1_000):
            some = [
                {
                    "item_id": item,
                    # Spread over the catalogue, in no order.
                    "attributes": {"share": number * 0.6180339887498949 % 1.0, "brand": f"b{number % 997}"},
                }
                for number, item in enumerate(items[start : start + 1_000], start)
            ]
            client.answer(post("/v1/items", json.dumps(some).encode()))
            if start % 100_000 == 0:
                say(f"told of {start:,} items")
    return time.perf_counter() - began


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"no memory of process {pid}")


def _visible_ms(running: Stand) -> float:
    """The slowest of some items, from the request that adds it until a filter finds it."""
    slowest = 0.0
    with Client(running.service) as client:
        for number in range(_SEEN):
            began = time.perf_counter()
            name = f"longwave-bench-{number}"
            client.answer(post("/v1/items", json.dumps([{"item_id": name, "title": "New"}]).encode()))
            while name not in client.answer(get(f"/v1/items/{name}")).body.decode():
                pass
            slowest = max(slowest, time.perf_counter() - began)
    return slowest * 1e3
