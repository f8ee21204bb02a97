"""Clients that never give up: each sends every event until it is acknowledged, and remembers what it was told."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from loadtests.connection import Answer, Connection, get, post
from loadtests.errors import BenchError

START_MS: Final = 1_300_000_000_000
AS_OF_MS: Final = START_MS + 10**10
"""The clock of every question; later than all events, so that every answer to it has seen them all."""

_OWN_USERS: Final = 4
_SHARED_USERS: Final = 4
_GENERATION_S: Final = 5.0  # then come new users: no sequence, dedupe window or log grows beyond its bound, however long it runs
_MOST_EVENTS: Final = 12  # in a request
_SINGLE: Final = 0.4  # of the requests carry one event
_ASKED: Final = 0.3  # of them are followed by a question about an own user
_PAUSE_S: Final = (0.02, 0.1)  # before a retry


@dataclass
class Told:
    """What one client sent and heard.

    Attributes:
        events: event id -> its user, in the order in which they were first sent.
        acknowledged: ids of the events that a 200 called stored or duplicate.
        unexpected: answers that no kill excuses, by status; the first words of each.
        stale: answers about an own user that had not seen all of its acknowledged events.
    """

    events: dict[str, str] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    requests: int = 0
    retries: int = 0
    answers: int = 0
    degraded: int = 0
    stale: list[str] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    unexpected: dict[str, str] = field(default_factory=dict)


class Client(threading.Thread):
    """Tells and asks on one connection until `stopping` is set; the request on its way then is not repeated any more."""

    def __init__(self, number: int, port: int, items: Sequence[str], types: Sequence[str], stopping: threading.Event) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self.told = Told()
        self._number = number
        self._port = port
        self._items = items
        self._types = types
        self._stopping = stopping
        self._random = random.Random(number)
        self._connection: Connection | None = None
        self._began_s = time.monotonic()

    def run(self) -> None:
        while not self._stopping.is_set():
            events = self._some_events()
            if self._tell(events) and self._random.random() < _ASKED:
                self._ask(self._random.choice(events)["user_id"])
        self._disconnect()

    def _some_events(self) -> list[dict[str, Any]]:
        count = 1 if self._random.random() < _SINGLE else self._random.randint(2, _MOST_EVENTS)
        generation = int((time.monotonic() - self._began_s) / _GENERATION_S)
        users = [f"own {self._number} {generation} {n}" for n in range(_OWN_USERS)]
        users += [f"shared {generation} {n}" for n in range(_SHARED_USERS)]
        return [self._event(self._random.choice(users)) for _ in range(count)]

    def _event(self, user_id: str) -> dict[str, Any]:
        number = len(self.told.events)
        event_id = f"{self._number}-{number}"
        self.told.events[event_id] = user_id
        late_s = 600 if self._random.random() < 0.1 else 0
        return {
            "event_id": event_id,
            "user_id": user_id,
            "item_id": self._random.choice(self._items),
            "type": self._random.choice(self._types),
            "timestamp": START_MS + (number * 5 - late_s) * 1_000,
            "quantity": self._random.randint(1, 9),
            "basket_id": event_id,  # kept in the sequence, where the event_id is not
        }

    def _tell(self, events: list[dict[str, Any]]) -> bool:
        """Send until acknowledged; False if the end came first."""
        body = json.dumps(events[0] if len(events) == 1 else events).encode()
        self.told.requests += 1
        while not self._stopping.is_set():
            answer = self._exchange(post("/v1/events", body))
            if answer is not None and answer.status == 200:
                results = [result["status"] for result in json.loads(answer.body)["results"]]
                self.told.acknowledged.update(
                    event["event_id"] for event, status in zip(events, results, strict=True) if status != "rejected"
                )
                if "rejected" in results:
                    self.told.unexpected.setdefault("rejected", answer.body.decode()[:500])
                return True
            self.told.retries += 1
            time.sleep(self._random.uniform(*_PAUSE_S))
        return False

    def _ask(self, user_id: str) -> None:
        if not user_id.startswith("own"):
            return  # others write to it meanwhile
        answer = self._exchange(get(recommendations(user_id)))
        if answer is None or answer.status != 200:
            return
        found = json.loads(answer.body)
        expected = sum(1 for event_id in self.told.acknowledged if self.told.events[event_id] == user_id)
        self.told.answers += 1
        if found["degraded"]:
            self.told.degraded += 1
        elif found["applied_events"] != expected:
            self.told.stale.append(f"{user_id}: {expected} acknowledged, {found['applied_events']} in the answer")

    def _exchange(self, request: bytes) -> Answer | None:
        """The answer, or None if the connection died."""
        try:
            if self._connection is None:
                self._connection = Connection(self._port)
            answer = self._connection.ask(request)
        except (BenchError, ValueError) as error:  # ValueError: half a head, from a worker that was killed
            self._disconnect()
            self.told.refusals[type(error).__name__] += 1
            return None
        if answer.status != 200:
            self.told.refusals[f"{answer.status} {_problem(answer)}"] += 1
            if answer.status != 503:
                self.told.unexpected.setdefault(str(answer.status), answer.body.decode()[:500])
        return answer

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.__exit__(None, None, None)
            self._connection = None


def _problem(answer: Answer) -> str:
    """The name of the problem that a refusal tells of."""
    try:
        return str(json.loads(answer.body)["type"]).rpartition(":")[2]
    except (ValueError, LookupError, TypeError):
        return "without a problem document"


def recommendations(user_id: str) -> str:
    """The address of the whole list of a user."""
    return f"/v1/users/{quote(user_id, safe='')}/recommendations?k=50&as_of={AS_OF_MS}"
