"""How long an acknowledged event waits for its fold, while the service is half busy with other writes.

The service knows both moments, of every event, and its histogram of them is the figure. A client knows the first, and sees the
second when an answer shows it: its question waits its turn like any other, so what it sees is the wait for the fold or for an
answer or two, whichever is longer. That stands beside.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

from loadtests.client import Client, settle
from loadtests.connection import get
from loadtests.errors import BenchError
from loadtests.figures.tail import SHARE
from loadtests.loop import Loop, Reply
from loadtests.metrics import FOLD_LAG, quantile
from loadtests.pace import Flow
from loadtests.samples import latencies_ms, percentile
from loadtests.stand import Part, Stand
from loadtests.traffic import Traffic, profile, told

POLL_GAP_S: Final = 0.0005
"""Between an answer that does not show the event and the next question."""

_PROBES: Final = 600
_CONNECTIONS: Final = 256  # more than are ever under way: a constant rate that waits for connections is none
_LONGEST_PAUSE_S: Final = 0.02  # a random one before each probe: not in step with the service's timers, and little load
_LIMIT_S: Final = 120.0


@dataclass
class Prober:
    """Posts one event of one user, then asks for the user until the stored state shows it; again and again.

    Attributes:
        seen: seconds from the acknowledgement to the answer that shows the event: an upper bound, by a round trip and a gap.
        unseen: to the sending of the last question that did not show it yet: a lower bound; 0 where the first one showed it.
    """

    loop: Loop
    port: int
    users: Sequence[str]
    traffic: Traffic
    probes: int
    seen: list[float] = field(default_factory=list)
    unseen: list[float] = field(default_factory=list)
    polls: int = 0

    def __post_init__(self) -> None:
        self._wire = self.loop.wire(self.port)
        self._chance = random.Random(0)
        self._user = ""
        self._total = 0
        self._acknowledged_s = self._asked_s = self._unseen_s = 0.0

    def begin(self) -> None:
        """One probe, and when it is done the next."""
        self._user = self.users[len(self.seen) % len(self.users)]
        self._wire.send(told(self.traffic.events_of([self._user])[0]), self._acknowledged)

    def _acknowledged(self, reply: Reply) -> None:
        if reply.status != 200:
            raise BenchError(f"the probe's event was refused: {reply.body[:300]!r}")
        self._acknowledged_s = self._unseen_s = reply.received_s
        self._total = json.loads(reply.body)["totals"][self._user]
        self._poll()

    def _poll(self) -> None:
        self.polls += 1
        self._asked_s = perf_counter()
        self._wire.send(get(profile(self._user)), self._answered)

    def _answered(self, reply: Reply) -> None:
        if reply.status != 200:
            raise BenchError(f"the probe's question was refused: {reply.body[:300]!r}")
        if json.loads(reply.body)["folded_events"] < self._total:
            self._unseen_s = self._asked_s
            self.loop.at(perf_counter() + POLL_GAP_S, self._poll)
            return
        self.seen.append(reply.received_s - self._acknowledged_s)
        self.unseen.append(self._unseen_s - self._acknowledged_s)
        if len(self.seen) == self.probes:
            self.loop.stop()
        else:
            self.loop.at(perf_counter() + self._chance.uniform(0, _LONGEST_PAUSE_S), self.begin)


def measure(stand: Stand, users: Sequence[str], capacity_rps: float) -> Part:
    """Probes of some users while the others' events come in at a constant rate."""
    rate = SHARE * capacity_rps
    half = len(users) // 2
    with Loop() as loop:
        background = Flow(loop, stand.service.port, stand.setup.traffic(list(users[half:]), seed=5).singles(), rate, _CONNECTIONS)
        background.warm_up()
        prober = Prober(
            loop,
            stand.service.port,
            users[:half],
            stand.setup.traffic(list(users[:half]), seed=6),
            stand.setup.times(_PROBES, 20),
        )
        with Client(stand.service) as client:
            before = client.histogram(FOLD_LAG)
        background.start()
        loop.at(perf_counter() + 0.3, prober.begin)
        with stand.meter(stand.service) as busy:
            loop.run(_LIMIT_S)
        background.finish()
        loop.run(_LIMIT_S)
    settle(stand.service)
    with Client(stand.service) as client:
        lags = {edge: count - before.get(edge, 0.0) for edge, count in client.histogram(FOLD_LAG).items()}
    made_of = {f"p{share:g}_ms": quantile(lags, share / 100) * 1e3 for share in (50, 99, 99.9)} | {
        "samples": max(lags.values()),
        "buckets_ms": {f"{edge * 1e3:g}": count for edge, count in sorted(lags.items())},
        "seen_by_a_client": latencies_ms(prober.seen) | {"lower_bound_p99_ms": percentile(prober.unseen, 99) * 1e3},
        "poll_gap_ms": POLL_GAP_S * 1e3,
        "polls": prober.polls,
        "background_rps": rate,
        "background_post": latencies_ms(background.found.latencies),
        **busy.report(),
    }
    return Part({"fold_p99_ms": quantile(lags, 0.99) * 1e3}, {"fold_p99_ms": made_of})
