"""What the load says: users who come back by Zipf's law, and events with the fields that a shop would send."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Final
from urllib.parse import quote

from loadtests.connection import get, post

EVENTS: Final = "/v1/events"

_PRICES: Final = (0.42, 0.85, 1.25, 1.65, 1.95, 2.1, 2.55, 2.95, 3.75, 4.95, 7.95, 12.75)
_QUANTITIES: Final = (1, 1, 1, 2, 3, 4, 6, 8, 12, 24)
_BASKET_EVENTS: Final = 20  # about how many events share an invoice number
_FIRST_BASKET: Final = 536_365
_ITEM_EXPONENT: Final = 1.0


class Zipf:
    """Draws from a list, the earlier the more often: the n-th with a weight of n ** -exponent. 0 draws all alike."""

    def __init__(self, values: Sequence[str], exponent: float, chance: random.Random) -> None:
        self._values = values
        self._weights = list(accumulate((rank + 1) ** -exponent for rank in range(len(values))))
        self._chance = chance

    def draw(self, number: int) -> list[str]:
        return self._chance.choices(self._values, cum_weights=self._weights, k=number)


class Traffic:
    """Events of some users, each with an id of its own and a time that goes on; the same for the same seed.

    Args:
        exponent: of Zipf's law over the users.
        began_ms: time of the first event; every further one is `step_ms` later.
    """

    def __init__(
        self,
        items: Sequence[str],
        event_type: str,
        users: Sequence[str],
        *,
        exponent: float = 0.0,
        began_ms: int,
        step_ms: int = 10,
        seed: int = 0,
    ) -> None:
        self._chance = random.Random(seed)
        self._type = event_type
        self._users = Zipf(users, exponent, self._chance)
        shuffled = list(items)
        self._chance.shuffle(shuffled)
        self._items = Zipf(shuffled, _ITEM_EXPONENT, self._chance)
        self._time_ms = began_ms
        self._step_ms = step_ms
        self._made = 0

    def events(self, number: int) -> list[dict[str, Any]]:
        """The next events, of users drawn by the law."""
        return self.events_of(self._users.draw(number))

    def events_of(self, users: Sequence[str]) -> list[dict[str, Any]]:
        """The next events, one of each user named, in this order."""
        return [self._event(user, item) for user, item in zip(users, self._items.draw(len(users)), strict=True)]

    def batches(self, number: int, size: int) -> Iterator[bytes]:
        """Requests of `size` events each."""
        for _ in range(number):
            yield told(self.events(size))

    def singles(self) -> Iterator[bytes]:
        """Requests of one event each, without end."""
        while True:
            yield from (told(event) for event in self.events(100))

    def questions(self) -> Iterator[bytes]:
        """Requests for the lists of users drawn by the law, without end."""
        while True:
            yield from (asked(user) for user in self._users.draw(1_000))

    def _event(self, user: str, item: str) -> dict[str, Any]:
        self._made += 1
        self._time_ms += self._step_ms
        digits = f"{self._chance.getrandbits(128):032x}"
        return {
            "event_id": f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}",
            "user_id": user,
            "item_id": item,
            "type": self._type,
            "timestamp": self._time_ms,
            "quantity": self._chance.choice(_QUANTITIES),
            "price": self._chance.choice(_PRICES),
            "basket_id": str(_FIRST_BASKET + self._made // _BASKET_EVENTS),
        }


def told(events: Any) -> bytes:
    """The request that posts an event or a list of events."""
    return post(EVENTS, json.dumps(events).encode())


def recommendations(user_id: str, query: str = "") -> str:
    """The path of a user's list; `query` is what follows the question mark."""
    return f"/v1/users/{quote(user_id, safe='')}/recommendations{'?' if query else ''}{query}"


def profile(user_id: str) -> str:
    return f"/v1/users/{quote(user_id, safe='')}"


def asked(user_id: str) -> bytes:
    """The request for a user's list."""
    return get(recommendations(user_id))
