"""A whole service on a large catalogue: at which constant rate it answers, how much memory it takes, when a new item can be
recommended by every worker, and what explanations cost."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final
from urllib.parse import quote

from loadtests.client import Client
from loadtests.connection import get, post
from loadtests.errors import BenchError
from loadtests.figures import explain
from loadtests.pace import steadily
from loadtests.samples import percentile
from loadtests.servers import Server, serving
from loadtests.stand import Setup, Stand, give_histories, stand

LIMIT_S: Final = 0.050
"""ETUDE's limit on the 90th percentile."""

_USERS: Final = 500
_EVENTS: Final = 20
_CONNECTIONS: Final = 256
_FILTERS: Final = ("share < 0.5", "share < 0.1", "share < 0.01", "share < 0.0001")
_INDEX_S: Final = 900.0
_AGAINST_USERS: Final = 64  # each with a filter that keeps what they want least
_AGAINST: Final = 0.1  # the share of all kinds that it keeps
_SAMPLED: Final = 1_000  # items that say how much a user wants each kind
_WHOLE: Final = 20  # users whose lists are looked at: each must have all of its items
_K: Final = 20
_SEEN: Final = 20  # items that are added to see when they can be recommended
_SEEN_S: Final = 30.0  # that is waited for at most
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
    storage = folder.parent / f"{folder.name}-storage"
    with stand(setup, storage_dir=storage) as running:
        _await_index(running.service, say)
        give_histories(running, users, _EVENTS)
        found["plain"] = _highest(running.service, dict.fromkeys(users, ""), rates, seconds, say)
        explained = explain.measure(running, users)
        found |= explained.figures | {"explain": explained.made_of}
        say(f"explained: {explained.figures}")
        if filters:
            found["items_told_s"] = _tell_attributes(running, setup.bundle.items, say)
            asked = {text: dict.fromkeys(users, text) for text in _FILTERS}
            asked["the kinds that the user wants least"] = _least_wanted(running, users[:_AGAINST_USERS])
            found["filters"] = {}
            for name, of_users in asked.items():
                say(name)
                found["filters"][name] = _highest(running.service, of_users, [100, 250, 500], seconds, say)
        found["memory_bytes"] = _resident(running.service.pid) + int(running.redis.info("memory")["used_memory_rss"])
        say(f"{found['memory_bytes'] / 2**20:.0f} MiB")
        log = running.folder / "second.log"
        with serving(folder, running.store.url, [setup.cores.service], log, storage_dir=storage) as second:
            _await_index(second, say)
            found["visible_ms"] = _visible_ms([running.service, second], users[0])
            say(f"visible after {found['visible_ms']} ms")
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
    server: Server, filters: Mapping[str, str], rates: Sequence[float], seconds: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """The highest of some rates that can be held, asking for these users in turn, each under a filter ("" for none).

    Raises BenchError if a list is shorter than it must be.
    """
    asked = itertools.cycle([get(_path(user, text)) for user, text in filters.items()])
    with Client(server) as client:
        for user, text in itertools.islice(filters.items(), _WHOLE):
            items = json.loads(client.answer(get(_path(user, text))).body)["items"]
            if len(items) != _K:
                raise BenchError(f"{user} gets {len(items)} items of {_K} under {text!r}")
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


def _path(user: str, text: str) -> str:
    return f"/v1/users/{quote(user)}/recommendations?k={_K}" + (f"&filter={quote(text)}" if text else "")


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


def _least_wanted(running: Stand, users: Sequence[str]) -> dict[str, str]:
    """For each user a filter that keeps the kinds of items that this user wants least, by the service's own scores."""
    chance, kinds = random.Random(0), dict(zip(running.setup.bundle.items, running.setup.bundle.categories, strict=True))
    filters = {}
    with Client(running.service) as client:
        for user in users:
            asked = {"user_id": user, "items": chance.sample(running.setup.bundle.items, _SAMPLED)}
            scores = defaultdict(list)
            for item in json.loads(client.answer(post("/v1/rankings", json.dumps(asked).encode())).body)["items"]:
                for kind in kinds[item["item_id"]]:
                    scores[kind].append(item["score"])
            worst = sorted(scores, key=lambda kind: fmean(scores[kind]))[: max(1, round(_AGAINST * len(scores)))]
            filters[user] = "categories in (" + ", ".join(f"'{kind}'" for kind in worst) + ")"
    return filters


def _visible_ms(servers: Sequence[Server], user: str) -> float | None:
    """The slowest of some items, from the request that adds it until each of these workers recommends it; None if the model knows
    items by their ids alone, so that it cannot recommend new ones."""
    slowest = 0.0
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(server)) for server in servers]
        for number in range(_SEEN):
            name = f"longwave-bench-{number}"
            asked = get(_path(user, f"id = '{name}'"))
            item = {"item_id": name, "title": f"A new thing, number {number}", "attributes": {"share": 0.5}}
            began = time.perf_counter()
            clients[0].answer(post("/v1/items", json.dumps([item]).encode()))
            waiting = list(clients)
            while waiting:
                waiting = [client for client in waiting if not json.loads(client.answer(asked).body)["items"]]
                if time.perf_counter() - began > _SEEN_S:
                    return None
            slowest = max(slowest, time.perf_counter() - began)
    return slowest * 1e3
