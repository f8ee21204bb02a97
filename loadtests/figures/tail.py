"""The slow end of reads: p99 at half of the service's own capacity, against the floor at the same rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

from loadtests.connection import get
from loadtests.floor import PATH
from loadtests.pace import Steady, steadily
from loadtests.samples import latencies_ms, median, over_rounds, percentile
from loadtests.servers import Server
from loadtests.stand import Part, Stand

SHARE: Final = 0.5
"""Of the capacity that was measured in the same run."""

_ROUNDS: Final = 5
_WINDOW_S: Final = 3.0
_CONNECTIONS: Final = 256  # more than are ever under way: a constant rate that waits for connections is none

PUNCTUAL_MS: Final = 0.5
"""A generator that is later than this at its p99 measures itself."""

STALLED: Final = 3.0
"""A round in which the floor's p99 is so many times its least is one of the host's: what it stalls, it stalls at random."""


@dataclass(frozen=True)
class Round:
    """A window of the service and one of the floor, one after the other."""

    service: Steady
    floor: Steady

    @property
    def late_p99_ms(self) -> float:
        return percentile([*self.service.late, *self.floor.late], 99) * 1e3

    @property
    def floor_p99(self) -> float:
        return percentile(self.floor.latencies, 99)

    @property
    def ratio(self) -> float:
        return percentile(self.service.latencies, 99) / self.floor_p99


def that_count(rounds: Sequence[Round]) -> list[Round]:
    """Those in which the generator was punctual and the host let the floor alone."""
    punctual = [one for one in rounds if one.late_p99_ms <= PUNCTUAL_MS]
    least = min((one.floor_p99 for one in punctual), default=0.0)
    return [one for one in punctual if one.floor_p99 <= STALLED * least]


def measure(stand: Stand, floor: Server, users: Sequence[str], capacity_rps: float, asked_rps: float) -> Part:
    """At half of the service's own capacity, and, for comparison between versions, at half of the capacity that is asked for.

    The better a service batches the higher its own capacity, and the rate at which it is then measured.
    """
    found = part(*_at(stand, floor, users, SHARE * capacity_rps))
    asked = part(*_at(stand, floor, users, SHARE * asked_rps))
    found.beside["get_p99_at_half_of_the_capacity_asked_for"] = asked.figures | asked.made_of["get_p99_ratio"]
    return found


def _at(stand: Stand, floor: Server, users: Sequence[str], rate: float) -> tuple[list[Round], float, int]:
    """A constant rate, latency from the moment a request was due, in windows that take turns."""
    questions = stand.setup.traffic(list(users), seed=4).questions()
    seconds = max(0.5, _WINDOW_S * min(1, stand.setup.scale))
    wanted = stand.setup.times(_ROUNDS, 2)
    rounds: list[Round] = []
    # Where the generator did not get its core, or the host stalled, a round says nothing, and there is another; within reason.
    while len(that_count(rounds)) < wanted and len(rounds) < 2 * wanted:
        floor_first = len(rounds) % 2 == 0
        before = steadily(floor.port, repeat(get(PATH)), rate, _CONNECTIONS, seconds) if floor_first else None
        service = steadily(stand.service.port, questions, rate, _CONNECTIONS, seconds)
        rounds.append(Round(service, before or steadily(floor.port, repeat(get(PATH)), rate, _CONNECTIONS, seconds)))
    return rounds, rate, wanted


def part(rounds: Sequence[Round], rate: float, wanted: int) -> Part:
    """The figure is the median of the counted rounds' ratios; the latencies beside it are of all of them together."""
    counted = that_count(rounds)
    number = len(counted)
    counted = counted or list(rounds)
    ratios = [one.ratio for one in counted]
    late_p99_ms = percentile([seconds for one in counted for seconds in (*one.service.late, *one.floor.late)], 99) * 1e3
    made_of: dict[str, Any] = {
        "rate_rps": rate,
        "service": _report([one.service for one in counted]),
        "floor": _report([one.floor for one in counted]),
        "ratio_rounds": over_rounds(ratios),
        "rounds_that_count": number,
        "rounds_measured": len(rounds),
        "generator_late_p99_ms": late_p99_ms,
        "connections": _CONNECTIONS,
    }
    void = []
    if 2 * number < wanted:
        void.append(
            f"get_p99_ratio: {number} of {len(rounds)} rounds in which the generator was punctual (p99 {late_p99_ms:.2f} ms) and "
            f"the floor's p99 below {STALLED:g} times its least"
        )
    return Part({"get_p99_ratio": median(ratios)}, {"get_p99_ratio": made_of}, void=void)


def _report(windows: Sequence[Steady]) -> dict[str, Any]:
    rounds = over_rounds([percentile(window.latencies, 99) * 1e3 for window in windows])
    together = latencies_ms([seconds for window in windows for seconds in window.latencies])
    return together | {"p99_rounds_ms": rounds, "queued": sum(window.queued for window in windows)}
