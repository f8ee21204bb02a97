"""GET /v1/users/{id}/recommendations: fresh, repeatable, complete, whatever became of the stored state."""

import asyncio
import json
import shutil
import time

import pytest
import redis
from bundle_edit import edit_manifest
from conftest import START_MS, event, history, same_list

from app.state.keys import state_key


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


@pytest.fixture
def raw(redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


async def committed(client, raw, user_id):
    """Wait until the user's state is stored with all events; returns its key."""
    model_id = (await client.ask(user_id))["model_id"]
    for _ in range(200):
        profile = await client.profile(user_id)
        if profile["folded_events"] == profile["events"]:
            return state_key("default", model_id, user_id)
        await asyncio.sleep(0.01)
    raise AssertionError("the state was not committed")


async def test_an_unknown_user_gets_recent_popularity_and_is_told_so(client):
    answer = await client.ask("nobody", k=5)
    assert (answer["source"], answer["reason"], answer["degraded"]) == ("fallback", "unknown_user", False)
    assert (answer["applied_events"], answer["last_event_time"]) == (0, None)
    assert len(answer["items"]) == 5
    assert answer["items"] == sorted(answer["items"], key=lambda item: -item["score"])


async def test_what_others_buy_moves_the_fallback_at_once(client):
    first = ids(await client.ask("nobody", k=60))[-1]
    await client.tell(*[event(f"u{i}", int(first[-3:]), 10**6) for i in range(50)])
    assert ids(await client.ask("nobody", k=1)) == [first]


async def test_only_positive_events_move_the_fallback(client):
    before = ids(await client.ask("nobody", k=60))
    await client.tell(*[event(f"u{i}", int(before[-1][-3:]), 10**6, "cancellation") for i in range(50)])
    assert ids(await client.ask("nobody", k=60)) == before


async def test_every_answer_reflects_every_acknowledged_event_without_a_background_fold(client):
    events = history("u", 12)
    lists = []
    for n, one in enumerate(events, start=1):
        await client.tell(one)
        answer = await client.ask("u")
        assert (answer["source"], answer["applied_events"]) == ("model", n)
        assert answer["last_event_time"] == "2011-03-13T07:" + f"{6 + n - 1:02d}:40Z"
        lists.append(tuple((item["item_id"], item["score"]) for item in answer["items"]))
    assert len(set(lists)) == 12  # none of them is that of an earlier moment


async def test_folding_event_by_event_and_all_at_once_give_the_same_list(client):
    for one in history("slow", 40):
        await client.tell(one)
        await client.ask("slow")
    await client.tell(*history("fast", 40))
    # Popularity has moved in between; asked at the same moment it is the same for both.
    same_list(await client.ask("slow"), await client.ask("fast"))


async def test_the_background_fold_changes_nothing_but_who_does_the_work(start, redis_url):
    async with start(background_fold=True) as client:
        await client.tell(*[e for user in ("a", "b", "c") for e in history(user, 30)])
        for _ in range(200):
            if (await client.profile("a"))["folded_events"] == 30:
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError("nothing was folded in the background")
        with_fold = await client.ask("a")
    async with start() as client:
        await client.tell(*history("d", 30))
        without = await client.ask("d")
        again = await client.ask("a")
        assert 'folded_events_total{by="read"} 30.0' in (await client.get("/metrics")).text  # d's, and none of a's
    same_list(with_fold | {"items": again["items"]}, without)


async def test_as_of_makes_a_request_repeatable(client, monkeypatch):
    await client.tell(*history("u", 10))
    moment = {"as_of": "2011-03-20T00:00:00Z"}
    one = await client.ask("u", **moment)
    now_ns = time.time_ns() + 365 * 86_400 * 10**9  # a year later: two requests in the same second would be much alike anyway
    monkeypatch.setattr("time.time_ns", lambda: now_ns)
    monkeypatch.setattr("app.api.parameters.time_ns", lambda: now_ns)
    monkeypatch.setattr("time.time", lambda: now_ns / 1e9)
    other = await client.ask("u", **moment)
    assert one["items"] == other["items"]
    assert one["as_of"] == "2011-03-20T00:00:00Z"
    assert one["recommendation_id"] != other["recommendation_id"]


async def test_a_list_is_the_same_whatever_else_is_asked_at_that_moment(client):
    await client.tell(*history("u", 10), *history("v", 20, 1))
    moments = [(k, START_MS + days * 86_400_000) for k, days in ((3, 0), (9, 0), (20, 30), (4, 300))]
    asked = [(user_id, {"k": k, "as_of": as_of}) for k, as_of in moments for user_id in ("u", "v")]
    alone = [await client.ask(user_id, **options) for user_id, options in asked]
    assert [len(answer["items"]) for answer in alone] == [options["k"] for _, options in asked]
    together = await asyncio.gather(*(client.ask(user_id, **options) for user_id, options in asked))  # one batch
    for one, other in zip(alone, together, strict=True):
        same_list(one, other)


async def test_as_of_may_be_unix_milliseconds(client):
    assert (await client.ask("nobody", as_of=START_MS))["as_of"] == "2011-03-13T07:06:40Z"


async def test_a_later_moment_is_another_question(client):
    await client.tell(*history("u", 10))
    soon = await client.ask("u", as_of=START_MS + 3_600_000)
    late = await client.ask("u", as_of=START_MS + 300 * 86_400_000)
    assert soon["items"] != late["items"]


@pytest.mark.parametrize("k", [1, 7, 60])
async def test_k_items_come_back_when_k_are_there(client, k):
    await client.tell(*history("u", 10))
    answer = await client.ask("u", k=k)
    assert len(set(ids(answer))) == k


async def test_more_than_the_catalogue_gives_the_whole_catalogue(client):
    await client.tell(*history("u", 10))
    assert len(ids(await client.ask("u", k=1000))) == 60


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("k=0", "query.k"),
        ("k=1001", "query.k"),
        ("k=many", "query.k"),
        ("as_of=yesterday", "query.as_of"),
        ("as_of=2011-03-13", "query.as_of"),
        ("as_of=-5", "query.as_of"),
        ("as_of=99999999999999999999", "query.as_of"),
        ("as_of=", "query.as_of"),
        ("platform=", "query.platform"),
        ("platform=" + "x" * 300, "query.platform"),
        ("platform=a%00b", "query.platform"),
    ],
)
async def test_a_bad_parameter_is_named(client, query, field):
    response = await client.get(f"/v1/users/u/recommendations?{query}")
    assert response.status_code == 422
    assert [error["field"] for error in json.loads(response.content)["errors"]] == [field]


async def test_a_deleted_state_is_rebuilt_to_the_same_list(client, raw):
    await client.tell(*history("u", 700))  # more than one chunk of the rebuild
    before = await client.ask("u")
    key = await committed(client, raw, "u")
    assert raw.delete(key) == 1
    same_list(await client.ask("u"), before)
    assert await committed(client, raw, "u") == key  # and stored again


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: b"",
        lambda blob: b"garbage",
        lambda blob: blob[: len(blob) // 2],
        lambda blob: blob + b"\0",
        lambda blob: b"XXXX" + blob[4:],
        lambda blob: blob[:4] + b"\x09\x00" + blob[6:],  # a format of the future
    ],
    ids=["empty", "garbage", "cut", "longer", "magic", "format"],
)
async def test_a_damaged_state_is_rebuilt_to_the_same_list(client, raw, damage):
    await client.tell(*history("u", 20))
    before = await client.ask("u")
    key = await committed(client, raw, "u")
    raw.set(key, damage(raw.get(key)))
    same_list(await client.ask("u"), before)
    # The next event is folded right, too, and what is stored after it is sound.
    await client.tell(event("u", 5, 10_000))
    after = await client.ask("u")
    raw.delete(await committed(client, raw, "u"))
    same_list(await client.ask("u"), after)


async def test_a_state_of_events_that_never_happened_is_not_believed(client, raw):
    await client.tell(*history("u", 20))
    before = await client.ask("u")
    key = await committed(client, raw, "u")
    blob = raw.get(key)
    raw.set(key, blob[:24] + (10**9).to_bytes(8, "little") + blob[32:])
    same_list(await client.ask("u"), before)


@pytest.mark.parametrize("settings", [{}, {"commit_events": 32, "state_cache_mb": 1}])
async def test_a_bounded_sequence_leaves_the_state_whole(start, settings):
    async with start(max_sequence=10, **settings) as client:
        for one in history("u", 25):
            await client.tell(one)
            answer = await client.ask("u")
            await asyncio.sleep(0.002)  # lets the commit through: beyond the bound the state is all that remembers
        assert answer["applied_events"] == 25
    async with start(max_sequence=1000) as client:
        await client.tell(*history("whole", 25))
        same_list(await client.ask("u"), await client.ask("whole"))


async def test_unknown_items_and_platforms_are_folded_and_never_recommended(client):
    await client.tell(event("u", 1), {**event("u", 2, 5), "item_id": "of-another-shop", "platform": "fridge"})
    answer = await client.ask("u", k=60, platform="toaster")
    assert answer["applied_events"] == 2
    assert "of-another-shop" not in ids(answer)
    assert (await client.profile("u"))["recent_events"][0]["title"] is None


async def test_an_event_type_of_an_older_model_counts_as_applied_and_changes_nothing(client, store):
    from app.state.events import StoredEvent
    from app.state.store import Append

    await client.tell(*history("u", 5))
    before = await client.ask("u")
    await store.append("default", [Append("u", [StoredEvent("wink", START_MS + 300_000, "item-001")], [None])])
    after = await client.ask("u")
    assert (before["applied_events"], after["applied_events"]) == (5, 6)
    same_list(before, after)


async def test_attributes_set_where_the_interest_starts_and_survive_a_rebuild(client, raw):
    await client.tell(*history("u", 3))
    plain = await client.ask("u")
    response = await client.put("/v1/users/u", json={"attributes": {"country": "France"}})
    assert json.loads(response.content)["attributes"] == {"country": "France"}
    french = await client.ask("u")
    assert french["applied_events"] == 3
    assert french["items"] != plain["items"]
    raw.delete(await committed(client, raw, "u"))
    same_list(await client.ask("u"), french)
    await client.put("/v1/users/u", json={"attributes": {}})
    same_list(await client.ask("u"), plain)


async def test_a_user_with_attributes_alone_still_gets_the_fallback(client):
    await client.put("/v1/users/u", json={"attributes": {"country": "France"}})
    assert (await client.ask("u"))["source"] == "fallback"
    profile = await client.profile("u")
    assert (profile["events"], profile["first_event_time"], profile["recent_events"]) == (0, None, [])


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"attributes": 3}', b'{"attributes": {"country": 3}}', b'{"attributes": {"country": ""}}']
)
async def test_bad_attributes_change_nothing(client, body):
    response = await client.put("/v1/users/u", content=body)
    assert response.status_code == 422
    assert (await client.get("/v1/users/u")).status_code == 404


async def test_an_unknown_attribute_names_the_known_ones(client):
    response = await client.put("/v1/users/u", json={"attributes": {"land": "France"}})
    assert response.status_code == 422
    assert "this model knows country" in json.loads(response.content)["detail"]


async def test_seen_items_stay_out_where_the_model_says_so(start, tiny_bundle, tmp_path):
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    edit_manifest(folder, seen_items="exclude")
    async with start(bundle_dir=folder) as client:
        seen = {f"item-{row:03d}" for row in range(50)}
        await client.tell(*[event("u", row, row) for row in range(50)])
        answer = await client.ask("u", k=10)
        assert len(ids(answer)) == 10  # exactly as many as are left
        assert not seen & set(ids(answer))
        assert len(ids(await client.ask("u", k=11))) == 10  # and no forbidden one to fill up


async def test_an_id_with_any_printable_character_works_everywhere(client):
    user_id = "a b/ü{}:?#%"
    await client.tell(event(user_id, 1))
    from urllib.parse import quote

    path = quote(user_id, safe="")
    assert json.loads((await client.get(f"/v1/users/{path}/recommendations")).content)["applied_events"] == 1
    assert json.loads((await client.get(f"/v1/users/{path}")).content)["user_id"] == user_id


async def test_the_server_says_how_long_each_stage_took(client):
    await client.tell(event("u", 1))
    response = await client.get("/v1/users/u/recommendations")
    timing = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert list(timing) == ["queue", "load", "interest", "score", "service"]
    total = float(timing.pop("service"))
    assert sum(map(float, timing.values())) == pytest.approx(total, abs=0.01)


async def test_what_one_worker_counts_reaches_the_others_and_a_restart(start):
    async def top(client):
        return ids(await client.ask("nobody", k=1))

    async with start(popularity_refresh_ms=20) as one, start(popularity_refresh_ms=20) as other:
        last = ids(await one.ask("nobody", k=60))[-1]
        await one.tell(*[event(f"u{i}", int(last[-3:]), 10**6) for i in range(50)])
        for _ in range(100):
            if await top(other) == [last]:
                break
            await asyncio.sleep(0.02)
        assert await top(other) == [last]
        before = await one.ask("nobody", k=60)
    async with start() as again:
        same_list(await again.ask("nobody", k=60), before)  # neither lost nor seeded twice
