"""A hand-made rehearsal against `longwave serve` as a process, on the tiny bundle and a Redis of its own."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from rehearsed import CUT_MS, DAY_MS, write_rehearsal

from app.demo.children import Children
from app.demo.errors import DemoError
from app.demo.histories import Past, import_histories
from app.demo.rehearsal import ReplayEvent, read_histories, read_meta, read_steps
from app.demo.replay import replay
from app.demo.score import score
from app.demo.service import ServiceClient, await_ready, choose_port, start_service, url_of
from app.demo.signals import Signals
from app.demo.story import watch

POSITIVE = {"purchase"}


@pytest.fixture(scope="module")
def service_on(tiny_bundle, tmp_path_factory):
    """The URL of a service on a Redis, started once per Redis."""
    with Signals() as signals, Children(signals) as children:

        def start(redis_url: str) -> str:
            port = choose_port("127.0.0.1", None, 0)
            log = tmp_path_factory.mktemp("service") / "service.log"
            child = start_service(children, tiny_bundle, redis_url, "127.0.0.1", port, log)
            client = ServiceClient(url_of("127.0.0.1", port))
            await_ready(child, client, timeout_s=60)
            client.close()
            return url_of("127.0.0.1", port)

        yield start


class Recording(httpx.HTTPTransport):
    """Writes down what goes over the wire."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def handle_request(self, request):
        content = json.loads(request.read() or "null")
        self.calls.append((request.method, request.url.path, content and [event["event_id"] for event in content]))
        return super().handle_request(request)


def test_a_replay_asks_and_tells_in_order_and_is_scored_as_the_lists_deserve(service_on, redis_url, tmp_path):
    write_rehearsal(tmp_path)
    done: list[int] = []
    pasts = import_histories(redis_url, read_histories(tmp_path), POSITIVE, 20_000, done.append)
    assert pasts == {"regular": Past(events=12, baskets=6), "rare": Past(events=2, baskets=1), "new": Past(events=0, baskets=0)}
    assert sum(done) == 3
    url = service_on(redis_url)
    transport = Recording()
    client = ServiceClient(url, transport=transport)
    meta, steps = read_meta(tmp_path), read_steps(tmp_path)
    events_before = {user_id: past.events for user_id, past in pasts.items()}
    asked = []
    answers = replay(client, steps, events_before, meta.k, watch(steps, pasts), lambda: asked.append(len(transport.calls)))
    assert transport.calls == [
        ("GET", "/v1/users/regular/recommendations", None),
        ("POST", "/v1/events", ["r0", "r1"]),
        ("GET", "/v1/users/regular/recommendations", None),  # right after the purchase: a customer who may become the story
        ("GET", "/v1/users/new/recommendations", None),
        ("POST", "/v1/events", ["n0"]),
        ("GET", "/v1/users/regular/recommendations", None),
        ("POST", "/v1/events", ["r2"]),
        ("GET", "/v1/users/regular/recommendations", None),
        ("GET", "/v1/users/new/recommendations", None),
    ]
    assert asked == [1, 4, 6, 9]
    assert all(len(answer.items) == 20 for answer in answers)
    # The same lists, asked for again with other means, and scored by hand: the targets are in them or not.
    found = score([(answer.items, answer.question.targets) for answer in answers], meta.k)
    hits = [len(set(answer.items) & set(answer.question.targets)) / len(answer.question.targets) for answer in answers]
    assert found.recall == pytest.approx(sum(hits) / 4)
    last = answers[-1]
    again = httpx.get(f"{url}/v1/users/new/recommendations", params={"as_of": last.question.as_of}).json()
    assert [item["item_id"] for item in again["items"]] == last.items
    assert again["applied_events"] == 1
    client.close()

    # The same once more: the service knows these events already, and is further than a fresh one would be.
    client = ServiceClient(url)
    with pytest.raises(DemoError, match="customer regular reflects 15 events, and it was told 12"):
        replay(client, steps, events_before, meta.k)
    with pytest.raises(DemoError, match="of 2 events of customer regular the service stored 0"):
        client.send(steps[1].events or [])
    bad = ReplayEvent(user_id="u", event_id="x", type="sneeze", timestamp=CUT_MS + DAY_MS, item_id="item-001")
    with pytest.raises(DemoError, match=r"POST /v1/events: 422: Invalid request: (?s:.*)unknown event type 'sneeze'"):
        client.send([bad])
    client.close()


def test_a_service_that_ends_at_once_is_an_error_with_the_end_of_its_log(redis_url, tmp_path: Path):
    with Signals() as signals, Children(signals) as children:
        child = start_service(children, tmp_path / "no-bundle", redis_url, "127.0.0.1", 0, tmp_path / "service.log")
        client = ServiceClient("http://127.0.0.1:9")  # the discard port: nothing listens
        with pytest.raises(DemoError) as caught:
            await_ready(child, client)
        client.close()
    assert "ended with exit code 2 before it was ready" in caught.value.detail
    assert "no-bundle: no such folder" in caught.value.detail.replace("\n", "")


def test_a_customer_without_events_keeps_their_attributes_through_the_import(service_on, redis_url, tmp_path):
    write_rehearsal(tmp_path)
    import_histories(redis_url, read_histories(tmp_path), POSITIVE, 20_000, lambda count: None)
    url = service_on(redis_url)
    profile = httpx.get(f"{url}/v1/users/new").json()
    assert (profile["attributes"], profile["events"], profile["first_event_time"]) == ({"country": "Norway"}, 0, None)
    answer = httpx.get(f"{url}/v1/users/new/recommendations").json()
    assert (answer["source"], answer["applied_events"]) == ("fallback", 0)
