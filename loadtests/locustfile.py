"""A Locust scenario: visits of 1 to 5 events, each followed by a look at the recommendations. Runs against any URL:

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8000 --headless -u 20 -r 5 -t 30s

A request fails if the answer is not a 200 or if a list does not reflect the event that was acknowledged just before. What it
needs to know of the catalogue it asks the service: the fallback list of a user who does not exist.

Environment:
    LONGWAVE_ITEMS: a file with an item id on each line, or a bundle's items.jsonl; default: ask the service.
    LONGWAVE_EVENT_TYPE: the type of the events; default: purchase.
    LONGWAVE_USERS: how many users come back again and again; default: 10,000.
"""

from __future__ import annotations

import json
import os
import random
import uuid
from itertools import accumulate
from pathlib import Path
from typing import Any

import gevent
from locust import HttpUser, constant_throughput, task

EVENT_TYPE = os.environ.get("LONGWAVE_EVENT_TYPE", "purchase")
USERS = int(os.environ.get("LONGWAVE_USERS", "10000"))

_MOST_ITEMS = 1_000  # in one list, as the service bounds it
_LONGEST_VISIT = 5
_EXPONENT = 1.1  # of Zipf's law: a few users and items are met all the time, most of them hardly ever


class Zipf:
    """Draws from a list, the earlier the more often."""

    def __init__(self, values: list[str]) -> None:
        self._values = values
        self._weights = list(accumulate((rank + 1) ** -_EXPONENT for rank in range(len(values))))

    def draw(self) -> str:
        return random.choices(self._values, cum_weights=self._weights)[0]


def read_items(path: Path) -> list[str]:
    """Item ids of a file: one on each line, bare or as the `id` of a JSON object."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [json.loads(line)["id"] if line.startswith("{") else line for line in lines]


visitors = Zipf([f"load-{number}" for number in range(USERS)])
given_items = read_items(Path(os.environ["LONGWAVE_ITEMS"])) if os.environ.get("LONGWAVE_ITEMS") else []


class Visitor(HttpUser):
    """One visit after another, each by some user, one event and one list a second whatever the answers take."""

    wait_time = constant_throughput(1)
    items: Zipf

    def on_start(self) -> None:
        self.items = Zipf(given_items or self._ask_for_items())
        self._begin_visit()
        # Locust starts visitors together, and one a second each they would stay together: bursts of twenty, not twenty a second.
        # A delay of less than the second is made up for by the first wait.
        gevent.sleep(1 + random.random())

    @task
    def act_and_look(self) -> None:
        if not self._events_left:
            self._begin_visit()
        self._events_left -= 1
        told = self._tell()
        if told is not None:
            self._look(told)

    def _begin_visit(self) -> None:
        self._user_id = visitors.draw()
        self._events_left = random.randint(1, _LONGEST_VISIT)

    def _tell(self) -> int | None:
        """Post an event; how many the user has had now, or None if it was not stored."""
        event = {
            "event_id": uuid.uuid4().hex,
            "user_id": self._user_id,
            "item_id": self.items.draw(),
            "type": EVENT_TYPE,
        }
        with self.client.post("/v1/events", json=event, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {_reason(response)}")
                return None
            receipts = response.json()
            if receipts["stored"] != 1:
                response.failure(f"the event was not stored: {receipts['results']}")
                return None
            total: int = receipts["totals"][self._user_id]
            return total

    def _look(self, told: int) -> None:
        """Read the list; it must reflect at least the events told so far (another visitor may be the same user)."""
        path = f"/v1/users/{self._user_id}/recommendations"
        name = "/v1/users/{id}/recommendations"
        with self.client.get(path, name=name, catch_response=True) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {_reason(response)}")
                return
            answer = response.json()
            if answer["applied_events"] < told:
                response.failure("the list does not reflect the event just acknowledged")
            elif not answer["items"]:
                response.failure("the list is empty")

    def _ask_for_items(self) -> list[str]:
        path = f"/v1/users/nobody-{uuid.uuid4().hex}/recommendations?k={_MOST_ITEMS}"
        response = self.client.get(path, name="/v1/users/{unknown}/recommendations")
        response.raise_for_status()
        return [item["item_id"] for item in response.json()["items"]]


def _reason(response: Any) -> str:
    """The detail of a problem document, or the first words of what came instead."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return str(response.text)[:200]
