"""The demo's client: every answer but a good one stops it with the service's own words."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from app.demo.errors import DemoError
from app.demo.rehearsal import ReplayEvent
from app.demo.service import ServiceClient, choose_port, url_of


def client(answer):
    return ServiceClient("http://service", transport=httpx.MockTransport(answer))


def events(count):
    made = [ReplayEvent(type="purchase", timestamp=n, item_id="a", user_id="u", event_id=str(n)) for n in range(count)]
    return made


def test_a_problem_document_stops_the_demo_with_its_words():
    problem = {"title": "Invalid request", "detail": "nothing was stored", "status": 422}
    problem["errors"] = [{"field": "events[0].type", "message": "unknown event type"}]
    refusing = client(lambda request: httpx.Response(422, json=problem))
    with pytest.raises(DemoError) as caught:
        refusing.send(events(1))
    assert caught.value.detail == (
        "POST /v1/events: 422: Invalid request: nothing was stored\n  events[0].type: unknown event type"
    )


def test_an_error_that_is_no_problem_document_is_shown_as_it_came():
    with pytest.raises(DemoError, match="502: bad gateway"):
        client(lambda request: httpx.Response(502, text="bad gateway")).recommend("u", 20, 1, None)


def test_a_service_that_does_not_answer_stops_the_demo():
    def refuse(request):
        raise httpx.ConnectError("connection refused")

    with pytest.raises(DemoError, match="GET /v1/users/a%2Fb/recommendations: no answer: connection refused"):
        client(refuse).recommend("a/b", 20, 1, None)
    assert not client(refuse).ready()


def test_events_beyond_the_bound_of_one_request_go_in_several_in_order():
    posted = []

    def store(request):
        posted.append([event["timestamp"] for event in json.loads(request.content)])
        return httpx.Response(200, json={"stored": len(posted[-1])})

    client(store).send(events(2_001))
    assert posted == [list(range(1_000)), list(range(1_000, 2_000)), [2_000]]


def test_an_event_that_the_service_knew_already_stops_the_demo():
    with pytest.raises(DemoError, match="of 3 events of customer u the service stored 2"):
        client(lambda request: httpx.Response(200, json={"stored": 2, "duplicate": 1})).send(events(3))


def test_a_taken_port_is_refused_if_it_was_wanted_and_avoided_if_not():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(DemoError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            choose_port("127.0.0.1", port, 8000)
        assert choose_port("127.0.0.1", None, port) not in (0, port)


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80")]
)
def test_a_service_on_all_addresses_is_asked_on_loopback(host, url):
    assert url_of(host, 80) == url
