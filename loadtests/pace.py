"""Two ways to load a server: as fast as it goes (a closed loop, for ceilings), or at a constant rate (for latencies).

A closed loop waits for slow answers and so hides them. At a constant rate every request has a moment at which it is due, whatever
the answers take, and its latency counts from there: a server that stalls pays for everyone who would have come meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Final

from loadtests.errors import BenchError
from loadtests.loop import Loop, Reply, Wire

_DRAIN_S: Final = 30.0  # for the answers that are out when a load ends


@dataclass
class Closed:
    """A closed loop's count."""

    answers: int = 0
    seconds: float = 0.0


def saturate(port: int, requests: Iterator[bytes], connections: int, seconds: float) -> Closed:
    """Ask on several connections at once, each again as soon as it has its answer.

    Raises:
        BenchError: an answer was not a 200, or the server closed a connection.
    """
    found = Closed()
    with Loop() as loop:

        def again(wire: Wire, reply: Reply) -> None:
            _demand_success(reply)
            found.answers += 1
            wire.send(next(requests), partial(again, wire))

        wires = [loop.wire(port) for _ in range(connections)]
        began = perf_counter()
        loop.at(began + seconds, loop.stop)
        for wire in wires:
            wire.send(next(requests), partial(again, wire))
        loop.run(seconds + _DRAIN_S)
        found.seconds = perf_counter() - began
    return found


@dataclass
class Steady:
    """What a constant rate found, one entry per request, in seconds.

    Attributes:
        latencies: from when it was due to the last byte of its answer.
        late: from when it was due to when it went out, where a connection was free: the generator's own imprecision.
        queued: requests that found no free connection and had to wait for one.
    """

    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    queued: int = 0


class Flow:
    """Requests at a constant rate on a loop that others may share."""

    def __init__(self, loop: Loop, port: int, requests: Iterator[bytes], rate: float, connections: int) -> None:
        self._loop = loop
        self._requests = requests
        self._rate = rate
        self._wires = [loop.wire(port) for _ in range(connections)]
        self._free: deque[Wire] = deque()  # in turns: a server closes a connection that is idle for seconds
        self._waiting: deque[float] = deque()
        self._began = 0.0
        self._number = 0
        self._stopped = False
        self._in_flight = 0
        self.found = Steady()

    def warm_up(self) -> None:
        """One request on each connection: accepting it is not what is measured."""

        def done(wire: Wire, reply: Reply) -> None:
            _demand_success(reply)
            self._free.append(wire)
            if len(self._free) == len(self._wires):
                self._loop.stop()

        for wire in self._wires:
            wire.send(next(self._requests), partial(done, wire))
        self._loop.run(_DRAIN_S)

    def start(self) -> None:
        """From the next moment on, until `finish`."""
        self._began = perf_counter() + 1 / self._rate
        self._loop.at(self._began, self._arrive)

    def finish(self) -> None:
        """No more requests; the loop stops when the last one is answered."""
        self._stopped = True
        self._stop_if_done()

    def _arrive(self) -> None:
        if self._stopped:
            return
        due = self._began + self._number / self._rate
        self._number += 1
        self._loop.at(self._began + self._number / self._rate, self._arrive)
        if self._free:
            self.found.late.append(perf_counter() - due)
            self._send(self._free.popleft(), due)
        else:
            self.found.queued += 1
            self._waiting.append(due)

    def _send(self, wire: Wire, due: float) -> None:
        self._in_flight += 1
        wire.send(next(self._requests), partial(self._answered, wire, due))

    def _answered(self, wire: Wire, due: float, reply: Reply) -> None:
        _demand_success(reply)
        self._in_flight -= 1
        self.found.latencies.append(reply.received_s - due)
        if self._waiting:
            self._send(wire, self._waiting.popleft())
        else:
            self._free.append(wire)
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        if self._stopped and not self._in_flight:
            self._loop.stop()


def steadily(port: int, requests: Iterator[bytes], rate: float, connections: int, seconds: float) -> Steady:
    """Ask at a constant rate of so many a second.

    Raises:
        BenchError: an answer was not a 200, or the server fell so far behind that the end did not come.
    """
    with Loop() as loop:
        flow = Flow(loop, port, requests, rate, connections)
        flow.warm_up()
        flow.start()
        loop.at(perf_counter() + seconds, flow.finish)
        loop.run(seconds + _DRAIN_S)
        return flow.found


def _demand_success(reply: Reply) -> None:
    if reply.status != 200:
        raise BenchError(f"not a good answer under load: {reply.raw[:300]!r}")
