"""Clients that check what they are told: each posts some events of a user and then asks for that user's list, again and again."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from app.runtime.manifest import Manifest
from loadtests.connection import get
from loadtests.errors import BenchError
from loadtests.loop import Loop, Reply, Wire
from loadtests.traffic import recommendations, told

K: Final = 20

_MOST_EVENTS: Final = 5
_LATE: Final = 0.03  # of the events: their time lies before that of the one before
_UNKNOWN: Final = 0.02  # of the events: an item that the model has never seen
_GAPS_MS: Final = (1_000, 60_000, 3_600_000, 86_400_000)
_FADING: Final = 50  # half-lives after which an event adds nothing to popularity that a float32 could hold


@dataclass(frozen=True)
class Read:
    """A list as it was given, and after how many events of the user it was asked for."""

    sent: int
    applied: int
    as_of_ms: int
    answer: list[tuple[str, float]]


@dataclass
class Shopper:
    """One user: everything that was sent, in order, and every list that came back."""

    user_id: str
    now_ms: int
    events: list[dict[str, Any]] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)


def beginning_ms(manifest: Manifest) -> int:
    """When the shoppers begin: so long before the bundle's popularity counts that their events add nothing to these.

    Lists asked for before that moment are then scored with the bundle's own counts, by the service as offline. (The service
    lets nothing grow back: a moment before the latest event counts as that event's.)
    """
    popularity = manifest.popularity
    began_ms = int(popularity.as_of_ms - _FADING * max(popularity.half_lives_s) * 1_000)
    if began_ms <= 0:
        raise BenchError("the bundle's popularity fades so slowly that no event is early enough to leave it alone")
    return began_ms


class Shop:
    """Sends shoppers over a pool of connections to one or more services, which all of them share, so that a read meets another
    worker than its write, and another service."""

    def __init__(
        self, loop: Loop, ports: Sequence[int], manifest: Manifest, items: Sequence[str], connections: int, seed: int = 0
    ) -> None:
        self._loop = loop
        self._free = [loop.wire(ports[number % len(ports)]) for number in range(connections)]
        self._chance = random.Random(seed)
        self._items = items
        self._types = [kind.name for kind in manifest.event_types]
        self._platforms = [*manifest.platforms, None]
        self._last_ms = manifest.popularity.as_of_ms
        self._made = 0

    def run(self, shoppers: Sequence[Shopper], at_once: int, visits: int, limit_s: float) -> None:
        """So many visits of every shopper, some shoppers at a time; a visit is 1 to 5 events and a list."""
        if at_once > len(self._free):
            raise BenchError("each shopper at work needs a connection")
        waiting = deque(shoppers)
        working = 0

        def next_shopper() -> None:
            nonlocal working
            working -= 1
            if waiting:
                working += 1
                self._visit(waiting.popleft(), visits, next_shopper)
            elif not working:
                self._loop.stop()

        for _ in range(min(at_once, len(waiting))):
            working += 1
            self._visit(waiting.popleft(), visits, next_shopper)
        self._loop.run(limit_s)

    def _visit(self, shopper: Shopper, visits: int, done: Callable[[], None]) -> None:
        if not visits:
            done()
            return
        events = [self._event(shopper) for _ in range(self._chance.randint(1, _MOST_EVENTS))]
        shopper.events += events
        # All in one request, or one after the other.
        requests = deque([events] if self._chance.random() < 0.5 else [[event] for event in events])
        self._tell(shopper, requests, lambda: self._look(shopper, lambda: self._visit(shopper, visits - 1, done)))

    def _tell(self, shopper: Shopper, requests: deque[list[dict[str, Any]]], done: Callable[[], None]) -> None:
        events = requests.popleft()

        def acknowledged(reply: Reply) -> None:
            if json.loads(reply.body)["stored"] != len(events):
                raise BenchError(f"not every event of {shopper.user_id} was stored: {reply.body[:300]!r}")
            if requests:
                self._tell(shopper, requests, done)
            else:
                done()

        self._send(told(events), acknowledged)

    def _look(self, shopper: Shopper, done: Callable[[], None]) -> None:
        as_of_ms = min(shopper.now_ms + self._gap_ms(), self._last_ms)
        sent = len(shopper.events)

        def answered(reply: Reply) -> None:
            said = json.loads(reply.body)
            if said["source"] != "model":
                raise BenchError(f"the list of {shopper.user_id} does not come from the model: {said}")
            items = [(item["item_id"], item["score"]) for item in said["items"]]
            shopper.reads.append(Read(sent, said["applied_events"], as_of_ms, items))
            done()

        self._send(get(recommendations(shopper.user_id, f"k={K}&as_of={as_of_ms}")), answered)

    def _send(self, request: bytes, done: Callable[[Reply], None]) -> None:
        wire = self._free.pop(self._chance.randrange(len(self._free)))
        wire.send(request, partial(self._received, wire, done))

    def _received(self, wire: Wire, done: Callable[[Reply], None], reply: Reply) -> None:
        if reply.status != 200:
            raise BenchError(f"not a good answer: {reply.raw[:300]!r}")
        self._free.append(wire)
        done(reply)

    def _event(self, shopper: Shopper) -> dict[str, Any]:
        self._made += 1
        chance = self._chance
        late = chance.random() < _LATE
        gap_ms = self._gap_ms()
        shopper.now_ms = min(shopper.now_ms + (0 if late else gap_ms), self._last_ms)
        event: dict[str, Any] = {
            "event_id": f"{shopper.user_id}-{self._made}",
            "user_id": shopper.user_id,
            "item_id": f"unknown-{self._made}" if chance.random() < _UNKNOWN else chance.choice(self._items),
            "type": chance.choice(self._types),
            "timestamp": shopper.now_ms - (gap_ms if late else 0),
            "quantity": chance.randint(1, 12),
        }
        if chance.random() < 0.5:
            event["price"] = round(chance.uniform(0.1, 20), 2)
        if platform := chance.choice(self._platforms):
            event["platform"] = platform
        return event

    def _gap_ms(self) -> int:
        return self._chance.randint(0, self._chance.choice(_GAPS_MS))
