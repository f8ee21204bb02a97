"""One request at a time: where the time of a read goes, with the floor taking turns."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from loadtests.client import Client
from loadtests.connection import Answer, get
from loadtests.floor import PATH as FLOOR_PATH
from loadtests.samples import parse_server_timing, percentile
from loadtests.servers import Server
from loadtests.stand import HISTORY, Part, Stand

_TURNS: Final = 30
_GETS: Final = 40  # a turn
_POSTS: Final = 150
_WARM_UP: Final = 200
_SETTLE_S: Final = 0.03  # after a POST: the background fold and its commit must not meet the next request


@dataclass(frozen=True, slots=True)
class Timed:
    """One answered question: seconds as the client saw them, and milliseconds per stage as the service booked them."""

    client_s: float
    stages_ms: dict[str, float]

    @classmethod
    def of(cls, answer: Answer) -> Timed:
        return cls(answer.seconds, parse_server_timing(answer.timing))


def measure(stand: Stand, floor: Server, users: Sequence[str]) -> Part:
    """GETs of users whose stored states are current; then POSTs of one event, each with a GET at its heels.

    `users` have HISTORY events each, and afterwards some have more.
    """
    setup, chance = stand.setup, random.Random(0)
    gets: list[Timed] = []
    floors: list[float] = []
    for _ in range(setup.times(_TURNS)):
        # Connections of their own: a server closes those that are idle while the other one has its turn.
        with Client(stand.service) as client, Client(floor) as beside:
            client.ask(users[0], HISTORY)  # accepting a connection is not what is measured
            gets += [Timed.of(client.ask(user, HISTORY)) for user in chance.choices(users, k=_GETS)]
            beside.answer(get(FLOOR_PATH))
            floors += [beside.answer(get(FLOOR_PATH)).seconds for _ in range(_GETS)]
    posts: list[float] = []
    after: list[Timed] = []
    with Client(stand.service) as client:
        traffic = setup.traffic(list(users), seed=2)
        for user in chance.sample(users, min(setup.times(_POSTS, 5), len(users))):
            posts.append(client.tell(traffic.events_of([user])).seconds)
            after.append(Timed.of(client.ask(user, HISTORY + 1)))
            time.sleep(_SETTLE_S)
    return Part(beside=figures(gets, floors, posts, after) | {"state_bytes": _state_bytes(stand)})


def warm_up(stand: Stand, floor: Server, users: Sequence[str]) -> None:
    """Every path once over, before anything is measured."""
    with Client(stand.service) as client, Client(floor) as beside:
        for n in range(stand.setup.times(_WARM_UP, 20)):
            client.ask(users[n % len(users)], HISTORY)
            beside.answer(get(FLOOR_PATH))


def figures(gets: Sequence[Timed], floors: Sequence[float], posts: Sequence[float], after: Sequence[Timed]) -> dict[str, Any]:
    """Every figure by its key; milliseconds."""
    stages = [name for name in gets[0].stages_ms if name != "service"]
    found: dict[str, Any] = {
        "get_service_p50_ms": _stage(gets, "service", 50),
        "get_service_p99_ms": _stage(gets, "service", 99),
        "get_client_p50_ms": percentile([one.client_s for one in gets], 50) * 1e3,
        "get_client_p99_ms": percentile([one.client_s for one in gets], 99) * 1e3,
        "floor_client_p50_ms": percentile(floors, 50) * 1e3,
        **{f"get_{stage}_p50_ms": _stage(gets, stage, 50) for stage in stages},
        "post_client_p50_ms": percentile(posts, 50) * 1e3,
        "get_after_post_p50_ms": _stage(after, "service", 50),
        "get_after_post_client_p50_ms": percentile([one.client_s for one in after], 50) * 1e3,
    }
    if "fold" in stages:
        found["fold_event_p50_ms"] = _stage(after, "fold", 50)
    return found


def _stage(timed: Sequence[Timed], stage: str, q: float) -> float:
    return percentile([one.stages_ms.get(stage, 0.0) for one in timed], q)


def _state_bytes(stand: Stand) -> int:
    """The largest of the stored states, as Redis holds it."""
    return max(stand.redis.strlen(key) for key in stand.redis.scan_iter("lw:*:state:*", count=1_000))
