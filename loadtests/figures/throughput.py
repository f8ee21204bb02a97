"""How many requests a second one core takes: reads and single writes, service and floor in turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final, Literal

from loadtests.busy import Busy
from loadtests.client import settle
from loadtests.connection import get, post
from loadtests.floor import LIST, PATH
from loadtests.pace import Closed, saturate
from loadtests.samples import median, over_rounds
from loadtests.servers import Server
from loadtests.stand import Part, Stand

Kind = Literal["get", "post"]

_ROUNDS: Final = 10
_LOAD_S: Final = 0.7
_CONNECTIONS: Final[dict[Kind, int]] = {"get": 64, "post": 128}
"""Writes wait for company while others come: 64 clients that ask again at once leave gaps in a core."""


@dataclass(frozen=True)
class Load:
    """A saturated server: what it answered, and whether it was saturated."""

    closed: Closed
    busy: Busy

    @property
    def rps(self) -> float:
        return self.closed.answers / self.closed.seconds


@dataclass(frozen=True)
class Round:
    """Service and floor under the same kind of load, one after the other."""

    service: Load
    floor: Load
    backlog_s: float

    @property
    def counts(self) -> bool:
        return self.service.busy.is_ceiling and self.floor.busy.is_ceiling

    @property
    def ratio(self) -> float:
        return self.service.rps / self.floor.rps


def measure(stand: Stand, floor: Server, users: Sequence[str]) -> tuple[Part, dict[Kind, float]]:
    """Both ratios, and the service's own capacity (requests a second) of each kind."""
    traffic = stand.setup.traffic(list(users), seed=3)
    loads: dict[Kind, tuple[Iterator[bytes], Iterator[bytes]]] = {
        "get": (traffic.questions(), repeat(get(PATH))),
        "post": (traffic.singles(), (_to_floor(request) for request in traffic.singles())),
    }
    rounds: dict[Kind, list[Round]] = {kind: [] for kind in loads}
    wanted = stand.setup.times(_ROUNDS, 2)
    # Where something else ran on one of the cores a round says nothing, and there is another instead; within reason.
    for number in range(2 * wanted):
        for kind, (ours, theirs) in loads.items():
            if sum(one.counts for one in rounds[kind]) < wanted:
                rounds[kind].append(_round(stand, floor, ours, theirs, _CONNECTIONS[kind], floor_first=number % 2 == 0))
    found = Part()
    for kind, of_kind in rounds.items():
        found.add(part(kind, of_kind, wanted))
    return found, {kind: median([one.service.rps for one in _counted(of_kind)]) for kind, of_kind in rounds.items()}


def part(kind: Kind, rounds: Sequence[Round], wanted: int) -> Part:
    """The figure is the median of the counted rounds' ratios; it does not count where those are fewer than half of the wanted."""
    key = f"{kind}_throughput_ratio"
    counted = _counted(rounds)
    ratios = [one.ratio for one in counted]
    made_of: dict[str, Any] = {
        "service": _report([one.service for one in counted]),
        "floor": _report([one.floor for one in counted]),
        "ratio_rounds": over_rounds(ratios),
        "rounds_that_count": sum(one.counts for one in rounds),
        "rounds_measured": len(rounds),
        "connections": _CONNECTIONS[kind],
    }
    if kind == "post":
        made_of["backlog_after_a_round_s"] = over_rounds([one.backlog_s for one in counted])
    void = []
    if 2 * made_of["rounds_that_count"] < wanted:
        busy = " and ".join(
            f"the {name}'s core was {made_of[name]['server_busy']:.0%} busy with it, the generator's "
            f"{made_of[name]['generator_core_busy']:.0%} ({made_of[name]['generator_busy']:.0%} with the load)"
            for name in ("service", "floor")
        )
        void.append(f"{key}: no ceiling in {len(rounds)} rounds: {busy}")
    return Part({key: median(ratios)}, {key: made_of}, void=void)


def _counted(rounds: Sequence[Round]) -> Sequence[Round]:
    """The rounds that count, or all of them if none does: a figure that says it does not count is better than none."""
    return [one for one in rounds if one.counts] or rounds


def _report(loads: Sequence[Load]) -> dict[str, Any]:
    busy = sum((load.busy for load in loads), Busy())
    return {
        "rps": median([load.rps for load in loads]),
        "rps_rounds": over_rounds([load.rps for load in loads]),
        "answers": sum(load.closed.answers for load in loads),
    } | busy.report()


def _round(
    stand: Stand, floor: Server, ours: Iterator[bytes], theirs: Iterator[bytes], connections: int, *, floor_first: bool
) -> Round:
    def beside() -> Load:
        load = _load(stand, floor, theirs, connections)
        stand.redis.delete(LIST)
        return load

    before = beside() if floor_first else None
    service = _load(stand, stand.service, ours, connections)
    backlog_s = settle(stand.service)  # what it still folds must not meet the floor's turn
    return Round(service, before or beside(), backlog_s)


def _load(stand: Stand, server: Server, requests: Iterator[bytes], connections: int) -> Load:
    with stand.meter(server) as busy:
        closed = saturate(server.port, requests, connections, _LOAD_S)
    return Load(closed, busy)


def _to_floor(request: bytes) -> bytes:
    """The same event, posted to the floor."""
    return post(PATH, request.partition(b"\r\n\r\n")[2])
