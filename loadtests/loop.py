"""Many keep-alive connections and a clock in one thread: what load is made of.

Raw sockets, no HTTP library, so that what is measured is the server. The loop sleeps until an answer or a timer is near and spins
for the last moments only: Redis runs on the same core and must get it at once.
"""

from __future__ import annotations

import ctypes
import select
import sys
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from time import perf_counter
from types import TracebackType
from typing import Final, Self

from loadtests.connection import RECEIVE_BYTES, answer_length, body_of, connect, status_of, timing_of
from loadtests.errors import BenchError

_SPIN_S: Final = 60e-6  # a timer of the kernel wakes us about 30 us late
_LONGEST_SLEEP_S: Final = 0.5
_SELECTABLE: Final = 1_024  # descriptors that select takes lie below
_PR_SET_TIMERSLACK: Final = 29


@dataclass(frozen=True, slots=True)
class Reply:
    """One whole answer and when its last byte was there (perf_counter)."""

    raw: bytes
    received_s: float

    @property
    def status(self) -> int:
        return status_of(self.raw)

    @property
    def body(self) -> bytes:
        return body_of(self.raw)

    @property
    def timing(self) -> str:
        """Value of the Server-Timing header, or ""."""
        return timing_of(self.raw)


Done = Callable[[Reply], None]


class Wire:
    """One connection; one request at a time."""

    __slots__ = ("_done", "_received", "_socket")

    def __init__(self, port: int) -> None:
        self._socket = connect(port)
        self._received = b""
        self._done: Done | None = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, request: bytes, done: Done) -> None:
        """Send a request; `done` gets its answer."""
        self._done = done
        try:
            self._socket.sendall(request)
        except OSError as error:
            raise BenchError(f"the server does not take requests: {error}") from None

    def readable(self) -> None:
        """Take what has come; called by the loop."""
        try:
            more = self._socket.recv(RECEIVE_BYTES)
        except OSError as error:
            raise BenchError(f"no answer from the server: {error}") from None
        if not more:
            raise BenchError("the server closed a connection")
        whole = self._received + more if self._received else more
        length = answer_length(whole)
        if length is None or len(whole) < length:
            self._received = whole
            return
        self._received = b""
        done, self._done = self._done, None
        if done is None:
            raise BenchError(f"an answer that nobody asked for: {whole[:200]!r}")
        done(Reply(whole, perf_counter()))


class Loop:
    """Runs wires and timers until somebody calls `stop`. A context manager; it closes its wires."""

    def __init__(self) -> None:
        _sharpen_timers()
        self._epoll = select.epoll()
        self._wires: dict[int, Wire] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()  # of timers of one moment: functions cannot be compared
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for wire in self._wires.values():
            wire.close()
        self._epoll.close()

    def wire(self, port: int) -> Wire:
        """A new connection to a port of this machine."""
        wire = Wire(port)
        self._wires[wire.fileno()] = wire
        self._epoll.register(wire.fileno(), select.EPOLLIN)
        return wire

    def at(self, when_s: float, action: Callable[[], None]) -> None:
        """Call `action` at a moment of perf_counter, or as soon after it as may be."""
        heappush(self._timers, (when_s, next(self._order), action))

    def stop(self) -> None:
        """Have `run` return, or the next `run` at once."""
        self._stopped = True

    def run(self, limit_s: float) -> None:
        """Until `stop`. Raises BenchError after `limit_s`: somebody waits for what does not come."""
        give_up_s = perf_counter() + limit_s
        while not self._stopped:
            now = perf_counter()
            if now > give_up_s:
                raise BenchError(f"the load did not end within {limit_s:g} s")
            while not self._stopped and self._timers and self._timers[0][0] <= now:
                heappop(self._timers)[2]()
            if not self._stopped:
                self._serve()
        self._stopped = False

    def _serve(self) -> None:
        ready = self._epoll.poll(0)
        if not ready:
            near_s = self._timers[0][0] - perf_counter() if self._timers else _LONGEST_SLEEP_S
            if near_s > _SPIN_S:
                sleep_s = min(near_s - _SPIN_S, _LONGEST_SLEEP_S)
                # select and not epoll: it counts in microseconds, where epoll in this Python rounds up to milliseconds. But it
                # takes the first 1,024 files of a process alone, and a process may have more open (one of many tests, say).
                if self._epoll.fileno() < _SELECTABLE:
                    select.select([self._epoll], [], [], sleep_s)
                else:
                    self._epoll.poll(max(0.0, sleep_s - 0.001))
            return
        for descriptor, _ in ready:
            self._wires[descriptor].readable()


def _sharpen_timers() -> None:
    """Ask the kernel not to round this thread's timers by 50 us."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1_000, 0, 0, 0)
