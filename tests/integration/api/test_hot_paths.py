"""The hot routes answer just as FastAPI would: every request goes through the shortcut, and past it."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from conftest import START_MS, event, history
from fastapi import APIRouter, Header, Request, Response

import app.api.events
import app.api.recommendations
from app.api.hot import HotPaths, HotRoute
from app.main import create_app
from app.recommend.pipeline import Recommender
from app.settings import load_settings

EVENT = event("u", 1)
OF_USER = "/v1/users/u/recommendations"

GETS = [
    OF_USER,
    f"{OF_USER}?k=3",
    f"{OF_USER}?k=3&k=5",  # the last one counts
    f"{OF_USER}?k=+3+",
    f"{OF_USER}?k=3.0",
    f"{OF_USER}?k=",
    f"{OF_USER}?k",
    f"{OF_USER}?k=0",
    f"{OF_USER}?k=1001",
    f"{OF_USER}?k=many",
    f"{OF_USER}?k=%F0%9F%8D%8E",
    f"{OF_USER}?k=%ff",
    f"{OF_USER}?K=3",
    f"{OF_USER}?explain=true&as_of={START_MS + 10**9}",
    f"{OF_USER}?explain=exact&explain=yes",
    f"{OF_USER}?k=3;platform=web",
    f"{OF_USER}?platform=web&as_of=2011-03-20T00:00:00Z",
    f"{OF_USER}?platform=web&as_of=2011-03-20T00:00:00%2B02:00",
    f"{OF_USER}?as_of=2011-03-20T00:00:00+02:00",  # a plus that is a blank
    f"{OF_USER}?as_of={START_MS}",
    f"{OF_USER}?as_of=",
    f"{OF_USER}?as_of=-1",
    f"{OF_USER}?as_of=yesterday",
    f"{OF_USER}?platform=",
    f"{OF_USER}?platform=a%00b",
    f"{OF_USER}?platform={'x' * 257}",
    f"{OF_USER}?platform=%C3%BC%20b",
    f"{OF_USER}?experiment=halves&k=3",
    f"{OF_USER}?experiment=none",
    f"{OF_USER}?experiment=",
    f"{OF_USER}?experiment=halves&scenario=x",
    f"{OF_USER}?experiment=a%00b&scenario=",
    f"{OF_USER}?user_id=other&user_id=",
    f"{OF_USER}?request=x&self=y&stages=z",
    f"{OF_USER}?",
    f"{OF_USER}?&&=&=x&%",
    "/v1/users/nobody/recommendations?k=5",
    "/v1/users/a%20b%2F%C3%BC%7B%7D%3A%3F%23%25/recommendations",
    "/v1/users/a/b/recommendations",
    "/v1/users/u/recommendations/recommendations",
    "/v1/users//recommendations",
    "/v1/users/recommendations",
    "/v1/users/recommendations/recommendations",
    "/v1/users/events/recommendations",
    "/v1/users/u/events/recommendations",
    "/v1/users/%00/recommendations",
    f"/v1/users/{'u' * 256}/recommendations",
    f"/v1/users/{'u' * 257}/recommendations",
    "/v1/users/%ff/recommendations",
    "/v1/users/u/recommendations/",
    "/v1/users/u/recommendations%0A",
    "/v1/users/u/recommendations%2F",
    "/v1/users/u%2Frecommendations",
    "/v1/users/u/Recommendations",
    "/v1/events",
    "//v1/events",
]
BODIES: list[Any] = [
    EVENT,
    [EVENT, event("v", 2), {**EVENT, "type": "stare"}],
    {"events": [EVENT]},
    {"events": [EVENT], "more": 1},
    {**EVENT, "type": "stare"},
    [],
    7,
    b"",
    b"{",
    b"\xff",
    b"[" * 100_000,
    b'{"user_id": "u", "item_id": "a", "type": "purchase", "price": 1e999}',
    [EVENT] * 1_001,
    b" " * 5_000_000,
]
OTHERS = [
    ("HEAD", OF_USER),
    ("OPTIONS", OF_USER),
    ("POST", OF_USER),
    ("DELETE", OF_USER),
    ("GET", "/v1/events?k=3"),
    ("PUT", "/v1/events"),
    ("HEAD", "/v1/events"),
    ("OPTIONS", "/v1/events"),
    ("POST", "/v1/events/"),
    ("POST", "/v1/events%0A"),
    ("POST", "/v1/events?k=3"),
]


class Ways:
    """One service, asked through the shortcut and past it."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.past = False

    async def ask(self, past: bool, method: str, url: str, **request: Any) -> httpx.Response:
        self.past = past
        return await self.client.request(method, url, **request)

    async def same(self, method: str, url: str, **request: Any) -> int:
        """Assert that both ways have the same answer; returns its status."""
        plain, hot = [told(await self.ask(past, method, url, **request)) for past in (True, False)]
        assert hot == plain, url
        return hot[0]

    async def counted(self) -> dict[str, float]:
        """Requests by method, route and status, and how many were timed."""
        metrics = (await self.client.get("/metrics")).text
        found = re.findall(r"^(longwave_request(?:s_total|_seconds_count)\{.*\}) (.*)$", metrics, re.MULTILINE)
        return {name: float(value) for name, value in found if "/metrics" not in name}


def told(response: httpx.Response) -> tuple[int, dict[str, str], Any]:
    """What an answer says, without what differs from one to the next."""
    headers = dict(response.headers)
    if "server-timing" in headers:
        headers["server-timing"] = re.sub(r"[0-9.]+", "0", headers["server-timing"])
    body = json.loads(response.content) if response.content.startswith(b"{") else response.content
    if isinstance(body, dict):
        body.pop("recommendation_id", None)
    return response.status_code, headers, body


@pytest.fixture
def ways_of(monkeypatch):
    """Makes `Ways` of a client, with a clock that stands still."""
    for module in (app.api.events, app.api.recommendations):
        monkeypatch.setattr(module, "now_ms", lambda: START_MS + 10**9)
    shortcut = HotPaths.__call__

    def make(client: httpx.AsyncClient) -> Ways:
        ways = Ways(client)

        async def choose(self, scope, receive, send):
            await (self._app(scope, receive, send) if ways.past else shortcut(self, scope, receive, send))

        monkeypatch.setattr(HotPaths, "__call__", choose)
        return ways

    return make


@pytest.fixture
async def ways(ways_of, client):
    return ways_of(client)


async def test_every_question_has_the_same_answer(ways, client):
    await client.tell(*history("u", 12))
    await client.put("/v1/experiments/halves", json={"arms": [{"name": "a", "share": 1}], "holdout": 0.5})
    assert {await ways.same("GET", path) for path in GETS} == {200, 404, 405, 422}
    assert {await ways.same(method, url) for method, url in OTHERS} == {404, 405, 422}


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {"idempotency-key": "k" * 256}])
@pytest.mark.parametrize("body", BODIES)
async def test_events_are_taken_the_same(ways, raw, body, headers):
    request = {"content": body} if isinstance(body, bytes) else {"json": body}
    answers = []
    for past in (True, False):
        answers.append(told(await ways.ask(past, "POST", "/v1/events", headers=headers, **request)))
        if users := raw.keys("lw:{*"):
            raw.delete(*users)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("key", ["", "k" * 257])
async def test_a_key_that_is_none_is_refused_the_same(ways, key):
    assert await ways.same("POST", "/v1/events", json=EVENT, headers={"idempotency-key": key}) == 422


async def test_requests_are_counted_and_timed_by_the_same_names(ways):
    counts = [await ways.counted()]
    for past in (True, False):
        for method, url in [*(("GET", path) for path in GETS), *OTHERS]:
            await ways.ask(past, method, url)
        for body in (json.dumps(EVENT), "{"):
            await ways.ask(past, "POST", "/v1/events", content=body)
        counts.append(await ways.counted())
    before, plain, both = counts
    assert len(both) > 8
    assert {name: both[name] - plain[name] for name in both} == {name: plain[name] - before.get(name, 0.0) for name in plain}


@pytest.mark.parametrize(("user", "query"), [("%00", "k=0"), ("u", "platform=&as_of=x&k=0")])
async def test_several_wrong_parameters_are_named_in_the_same_order(ways, user, query):
    assert await ways.same("GET", f"/v1/users/{user}/recommendations?{query}") == 422


async def test_a_line_feed_in_a_user_id_is_named_where_fastapi_finds_no_route(ways):
    # The one difference: FastAPI's pattern of a path ends at a line feed. Either way it is refused.
    url = "/v1/users/a%0Ab/recommendations"
    assert [(await ways.ask(past, "GET", url)).status_code for past in (True, False)] == [404, 422]


async def test_before_there_is_a_model_both_say_why(ways_of, tmp_path):
    service = create_app(load_settings(bundle_dir=tmp_path / "nothing", storage_dir=tmp_path))
    transport = httpx.ASGITransport(service, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        ways = ways_of(client)
        requests = [("GET", OF_USER), ("GET", f"{OF_USER}?k=0"), ("POST", "/v1/events")]
        assert [await ways.same(method, url) for method, url in requests] == [503, 422, 503]


async def test_a_fault_is_one_problem_document_either_way(ways, client, monkeypatch):
    async def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(Recommender, "recommend", broken)
    assert await ways.same("GET", OF_USER) == 500
    assert "secret" not in (await client.get(OF_USER)).text


router = APIRouter()


@router.get("/x/{name}")
async def takes_a_header(request: Request, name: str, token: str = Header()) -> Response:
    return Response()


def test_a_route_that_takes_what_the_shortcut_cannot_read_is_refused():
    with pytest.raises(ValueError, match="token"):
        HotRoute(router.routes[0])
