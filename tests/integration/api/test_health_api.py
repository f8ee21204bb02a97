"""Probes, metrics, and errors that the framework would render itself."""

import json
import shutil

import pytest
import redis
from conftest import event

from app.recommend.pipeline import Recommender
from app.state import keys
from app.state.embedded import EmbeddedRedis


async def test_ready_tells_model_and_device(client):
    ready = json.loads((await client.get("/readyz")).content)
    assert (ready["ready"], ready["items"], ready["device"], ready["storage"]) == (True, 60, "cpu", "up")
    assert ready["device_reason"]


async def test_a_damaged_bundle_is_alive_but_never_ready_and_says_why(start, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (folder / "items/bias.npy").write_bytes(b"?")
    async with start(bundle_dir=folder) as client:
        assert (await client.get("/healthz")).status_code == 200
        for method, path in [("GET", "/readyz"), ("GET", "/v1/users/u/recommendations"), ("POST", "/v1/events")]:
            response = await client.request(method, path)
            assert response.status_code == 503
            assert "items/bias.npy: damaged" in json.loads(response.content)["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/events", 405),
        ("TRACE", "/readyz", 405),
    ],
)
async def test_the_frameworks_own_errors_are_problem_documents(client, method, path, status):
    response = await client.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(response.content)["status"] == status


async def test_an_unexpected_error_leaks_nothing(client, monkeypatch):
    async def broken(*_):
        raise RuntimeError("secret path /etc/longwave")

    monkeypatch.setattr(Recommender, "recommend", broken)
    response = await client.get("/v1/users/u/recommendations")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert "secret" not in response.text


async def test_metrics_count_by_route_and_never_by_user(client):
    await client.tell(event("secret-user", 1))
    await client.ask("secret-user")
    await client.ask("nobody")
    await client.get("/no/such/secret-path")
    text = (await client.get("/metrics")).text
    assert 'longwave_requests_total{method="GET",route="/v1/users/{user_id}/recommendations",status="200"} 2.0' in text
    assert 'longwave_requests_total{method="any",route="none",status="404"} 1.0' in text
    assert 'longwave_events_total{result="stored"} 1.0' in text
    assert 'longwave_fallbacks_total{reason="unknown_user"} 1.0' in text
    assert 'longwave_stage_seconds_count{stage="score"} 1.0' in text
    assert 'device="cpu"' in text
    assert "secret" not in text


async def test_the_root_points_to_the_documentation(client):
    assert json.loads((await client.get("/")).content)["docs"] == "/docs"
    assert (await client.get("/docs")).status_code == 200


async def test_while_storage_is_away_lists_are_degraded_writes_refused_and_all_recovers(start, tmp_path):
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    try:
        async with start(redis_url=server.url, redis_timeout_ms=500) as client:
            await client.tell(event("u", 1))
            assert (await client.ask("u"))["source"] == "model"
            server.stop()
            answer = await client.ask("u")
            assert (answer["source"], answer["reason"], answer["degraded"]) == ("fallback", "storage_unavailable", True)
            assert len(answer["items"]) == 20
            response = await client.post("/v1/events", json=event("u", 2))
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) >= 1
            assert (await client.get("/v1/users/u")).status_code == 503
            ready = await client.get("/readyz")
            assert (ready.status_code, json.loads(ready.content)["storage"] != "up") == (200, True)
            server.start()
            answer = await client.ask("u")
            assert (answer["source"], answer["applied_events"]) == ("model", 1)  # and the refused one is not there
    finally:
        server.stop()


async def test_a_service_that_starts_before_its_storage_serves_the_fallback(start, tmp_path):
    async with start(redis_url=f"unix://{tmp_path}/none.sock", redis_timeout_ms=200) as client:
        assert (await client.ask("u"))["degraded"] is True


async def test_a_redis_of_another_layout_keeps_the_service_unready_and_unwritten(start, raw):
    raw.set(keys.LAYOUT_KEY, "2/128")
    async with start() as client:
        for method, path in [("GET", "/readyz"), ("GET", "/v1/users/u/recommendations"), ("POST", "/v1/events")]:
            response = await client.request(method, path, **({"json": event("u", 1)} if method == "POST" else {}))
            assert response.status_code == 503
            assert "layout 2/128" in json.loads(response.content)["detail"]
    assert raw.keys() == [keys.LAYOUT_KEY.encode()]


@pytest.mark.parametrize("layout", ["2/128", "1/256", keys.LAYOUT])
async def test_a_redis_that_comes_late_is_checked_before_anything_is_written(start, tmp_path, layout):
    server = EmbeddedRedis(tmp_path / "redis")
    server.start()
    url = server.url
    with redis.Redis.from_url(url) as raw:
        raw.set(keys.LAYOUT_KEY, layout)
    server.stop()
    try:
        async with start(redis_url=url, redis_timeout_ms=200) as client:
            assert (await client.post("/v1/events", json=event("u", 1))).status_code == 503
            server.start()
            posted = await client.post("/v1/events", json=event("u", 1))
            put = await client.put("/v1/users/v", json={"attributes": {}})
            ready = await client.get("/readyz")
            wanted = 200 if layout == keys.LAYOUT else 503
            assert [posted.status_code, put.status_code, ready.status_code] == [wanted] * 3
            with redis.Redis.from_url(url) as raw:
                assert bool([key for key in raw.scan_iter() if b":meta:" in key]) == (wanted == 200)
    finally:
        server.stop()


async def test_an_impossible_redis_address_is_said_by_the_probe(start):
    async with start(redis_url="http://localhost") as client:
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert "not an address of a Redis" in json.loads(response.content)["detail"]
