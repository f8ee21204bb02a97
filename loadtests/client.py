"""What a client of the service does, one request at a time, with every answer checked."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from loadtests.busy import cpu_seconds, family
from loadtests.connection import Answer, Connection, get
from loadtests.errors import BenchError
from loadtests.metrics import parse_histogram, parse_metrics
from loadtests.servers import Server
from loadtests.traffic import asked, told

_QUIET_S: Final = 0.03
_QUIET_SHARE: Final = 0.1
_SETTLE_S: Final = 60.0


class Client:
    """A connection to the service that understands its answers."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._connection = Connection(server.port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.__exit__(kind, error, trace)

    def answer(self, request: bytes) -> Answer:
        """The answer, which must be a 200."""
        answer = self._connection.ask(request)
        if answer.status != 200:
            raise BenchError(f"the server answered {answer.status}: {answer.body[:300].decode('utf-8', 'replace')}")
        return answer

    def tell(self, events: Sequence[dict[str, Any]]) -> Answer:
        """Post events, all of which must be stored."""
        answer = self.answer(told(list(events)))
        said = json.loads(answer.body)
        if said["stored"] != len(events):
            raise BenchError(f"of {len(events)} events {said['stored']} were stored")
        return answer

    def ask(self, user_id: str, applied: int) -> Answer:
        """A user's list, which the model must have made, of so many events."""
        answer = self.answer(asked(user_id))
        said = json.loads(answer.body)
        if said["source"] != "model" or said["applied_events"] != applied:
            raise BenchError(f"expected a list that reflects {applied} events, got {said}")
        return answer

    def metrics(self) -> dict[str, float]:
        return parse_metrics(self._metrics())

    def histogram(self, name: str) -> dict[float, float]:
        return parse_histogram(self._metrics(), name)

    def _metrics(self) -> str:
        return self.answer(get("/metrics")).body.decode()


def settle(server: Server) -> float:
    """Wait until the server has nothing left to do in the background; returns the seconds until then, to about 30 ms.

    Raises BenchError if it works on and on.
    """
    members = family(server.pid)
    began = time.perf_counter()
    while True:
        before = sum(map(cpu_seconds, members))
        time.sleep(_QUIET_S)
        now = time.perf_counter()
        if sum(map(cpu_seconds, members)) - before < _QUIET_SHARE * _QUIET_S:
            return max(0.0, now - began - _QUIET_S)
        if now - began > _SETTLE_S:
            raise BenchError(f"the server still works {_SETTLE_S:g} s after the last request")
