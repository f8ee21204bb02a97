"""Lists under rules, against a plain sort of the whole list with the rules applied by hand."""

from __future__ import annotations

import asyncio
import json
import math
import threading

import pytest
from conftest import START_MS, event, history, same_list

from app.errors import StorageError
from app.recommend import listing
from app.recommend.ruled import RuleBook
from app.recommend.score import Scorer
from app.state.redis import RedisStore

MOMENT = START_MS + 10**9


def ids(answer):
    return [item["item_id"] for item in answer["items"]]


def attributes(row):
    return {"price": float(row % 7), "brand": f"b{row % 4}", "tags": [f"t{row % 3}", f"t{row % 5}"], "new": row % 2 == 0}


@pytest.fixture
async def shop(start):
    async with start() as client:
        items = [
            {"item_id": f"item-{row:03d}", "attributes": attributes(row), "categories": [f"c{row % 6}"]} for row in range(50)
        ]
        assert (await client.post("/v1/items", json=items)).status_code == 200
        await client.tell(*history("u", 20))
        yield client


async def ask(client, status=200, **fields):
    response = await client.post("/v1/recommendations", json={"user_id": "u", "k": 60, "as_of": MOMENT} | fields)
    assert response.status_code == status, response.text
    return json.loads(response.content)


AS_MANY = " and ".join(["price >= 0"] * 200)


def row(item_id):
    return int(item_id.removeprefix("item-"))


async def test_a_filter_keeps_what_it_says_in_the_order_of_the_whole_list(shop):
    whole = ids(await ask(shop))
    for text, keeps in [
        ("price < 3", lambda a: a["price"] < 3),
        ("brand in ('b1', 'b2') and not new = true", lambda a: a["brand"] in ("b1", "b2") and not a["new"]),
        ("tags contains 't4' or price = 6", lambda a: "t4" in a["tags"] or a["price"] == 6),
    ]:
        kept = [item for item in whole if row(item) < 50 and keeps(attributes(row(item)))]
        assert ids(await ask(shop, rules={"filters": [text]})) == kept
        assert len(kept) > 5
        assert ids(await ask(shop, k=5, rules={"filters": [text]})) == kept[:5]
        assert ids(await shop.ask("u", k=60, filter=text)) == kept
        popular = ids(await ask(shop, user_id="nobody", rules={"filters": [text]}))
        assert set(popular) == set(kept)
    both = ids(await ask(shop, rules={"filters": ["price < 3", "new = true"]}))
    assert both == [item for item in whole if row(item) < 50 and attributes(row(item))["price"] < 3 and row(item) % 2 == 0]


async def test_what_is_built_in_can_be_filtered_by(shop):
    whole = ids(await ask(shop))
    assert ids(await ask(shop, rules={"filters": ["id in ('item-003', 'item-007', 'nowhere')"]})) == [
        item for item in whole if item in ("item-003", "item-007")
    ]
    assert ids(await ask(shop, rules={"filters": ["title = 'Thing 9'"]})) == ["item-009"]
    assert set(ids(await ask(shop, rules={"filters": ["categories contains 'c5'"]}))) == {
        f"item-{n:03d}" for n in range(5, 50, 6)
    }
    assert set(ids(await ask(shop, rules={"filters": ["categories contains 'things'"]}))) == {
        f"item-{n:03d}" for n in range(50, 60)
    }


async def test_a_filter_reads_parameters_context_and_the_users_attributes(shop):
    await shop.put("/v1/users/u", json={"attributes": {"country": "Norway"}})
    await shop.patch("/v1/items/item-011", json={"attributes": {"land": "Norway"}})
    assert ids(await ask(shop, rules={"filters": ["land = user.country"]})) == ["item-011"]
    found = ids(
        await ask(
            shop, rules={"filters": ["price <= $most and brand = context.shop"]}, parameters={"most": 2}, context={"shop": "b3"}
        )
    )
    assert set(found) == {f"item-{n:03d}" for n in range(50) if n % 7 <= 2 and n % 4 == 3}
    missing = await ask(shop, 422, rules={"filters": ["price <= $most"]})
    assert "$most" in missing["detail"]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"filters": ["price <"]}, "at character 8"),
        ({"filters": ["prise < 3"]}, "price"),
        ({"filters": ["price = 'x'"]}, "character 9"),
        ({"caps": [{"attribute": "brandy", "most": 1}]}, "brand"),
        ({"boosts": [{"filter": "price >", "factor": 2}]}, "rules.boosts.0.filter"),
        ({"boosts": [{"filter": "price > 1", "factor": 0}]}, "rules.boosts.0.factor"),
        ({"diversity": 2}, "rules.diversity"),
        ({"pins": [{"item_id": "a", "position": 0}]}, "rules.pins.0.position"),
        ({"filter": "price < 3"}, "rules.filter"),
        ({"filters": [" or ".join(["price = 1"] * 201)]}, "at most 200 comparisons"),
        ({"filters": [" or ".join(["price = 1"] * 60)] * 4}, "240 comparisons together; at most 200"),
        ({"filters": [AS_MANY], "boosts": [{"filter": "price > 1", "factor": 2}]}, "201 comparisons together; at most 200"),
        ({"filters": [f"price > 0 {' ' * 4_000}"] * 5}, "20050 characters; at most 16384"),
        ({"exclude_had": [{"types": ["purchase", "buy"]}]}, "the model knows purchase, view"),
    ],
)
async def test_rules_that_cannot_be_followed_are_refused_and_say_why(shop, rules, says):
    problem = await ask(shop, 422, rules=rules)
    assert says in json.dumps(problem)


async def test_a_request_and_its_scenario_are_bounded_together(shop):
    assert ids(await ask(shop, rules={"filters": [AS_MANY]})) == ids(await ask(shop, rules={"filters": ["price >= 0"]}))
    assert (await shop.put("/v1/scenarios/wide", json={"filters": [AS_MANY]})).status_code == 200
    assert len(ids(await ask(shop, scenario="wide"))) == 50
    for rules in ({"filters": ["new = true"]}, {"boosts": [{"filter": "new = true", "factor": 2}]}):
        problem = await ask(shop, 422, scenario="wide", rules=rules)
        assert "201 comparisons together with those of the scenario; at most 200" in problem["detail"]
    response = await shop.get("/v1/users/u/recommendations", params={"scenario": "wide", "filter": "new = true"})
    assert (response.status_code, "at most 200" in response.json()["detail"]) == (422, True)
    wider = {"filters": [AS_MANY], "boosts": [{"filter": "new = true", "factor": 2}]}
    assert (await shop.put("/v1/scenarios/wide", json=wider)).status_code == 422


@pytest.mark.parametrize(
    ("rules", "field", "says"),
    [
        ({"filters": ["new = true", "price <"]}, "rules.filters.1", "at character 8"),
        ({"boosts": [{"filter": "price >", "factor": 2}]}, "rules.boosts.0.filter", "at character 8"),
        ({"filters": ["new = true", "prise < 3"]}, "rules.filters", "The filter is: prise < 3"),
        ({"boosts": [{"filter": "price = $top", "factor": 2}]}, "rules.boosts", "The filter is: price = $top"),
    ],
)
async def test_a_filter_that_cannot_be_used_is_of_one_type_and_says_where_it_stands(shop, rules, field, says):
    for where, named in (({"rules": rules}, field), ({"scenario": "bad"}, field.removeprefix("rules."))):
        if "scenario" in where:
            stored = await shop.put("/v1/scenarios/bad", json=rules)
            problem = stored.json() if stored.status_code == 422 else await ask(shop, 422, **where)
            named = named if stored.status_code == 422 else field
        else:
            problem = await ask(shop, 422, **where)
        assert problem["type"] == "urn:longwave:problem:invalid-filter"
        ((of, message),) = [(one["field"], one["message"]) for one in problem["errors"]]
        assert of == named
        assert says in message


async def test_a_bad_filter_in_an_address_is_a_422_and_hurts_nobody_else(shop):
    answers = await asyncio.gather(
        shop.get("/v1/users/u/recommendations", params={"filter": "price <"}),
        shop.get("/v1/users/u/recommendations", params={"filter": "prise < 3"}),
        *(shop.get("/v1/users/u/recommendations") for _ in range(3)),
    )
    assert [answer.status_code for answer in answers] == [422, 422, 200, 200, 200]
    assert answers[0].json()["type"].endswith("invalid-filter")


async def test_a_boost_multiplies_the_odds_and_moves_items_into_the_list(shop):
    plain = {item["item_id"]: item["score"] for item in (await ask(shop))["items"]}
    boosted = await ask(
        shop, rules={"boosts": [{"filter": "brand = 'b2'", "factor": 5.0}, {"filter": "price = 1", "factor": 0.5}]}
    )
    for item in boosted["items"]:
        of = attributes(row(item["item_id"])) if row(item["item_id"]) < 50 else {}
        added = math.log(5) * (of.get("brand") == "b2") + math.log(0.5) * (of.get("price") == 1)
        assert item["score"] == pytest.approx(plain[item["item_id"]] + added, abs=1e-3)
    assert [item["score"] for item in boosted["items"]] == sorted((item["score"] for item in boosted["items"]), reverse=True)
    assert ids(await ask(shop, k=3, rules={"boosts": [{"filter": "id = 'item-042'", "factor": 1e6}]}))[0] == "item-042"


async def test_pins_stand_and_what_cannot_stand_gives_way(shop):
    whole = ids(await ask(shop))
    await shop.put("/v1/items/item-020", json={"hidden": True})
    pins = [{"item_id": item, "position": at} for item, at in [(whole[-1], 2), ("item-020", 3), ("nowhere", 4), (whole[-2], 9)]]
    answer = await ask(shop, k=5, rules={"pins": pins})
    rest = [item for item in whole if item not in ("item-020",)]
    assert ids(answer) == [rest[0], whole[-1], *rest[1:4]]
    assert [(one["item_id"], one["reason"]) for one in answer["gave_way"]] == [
        ("item-020", "not_eligible"), ("nowhere", "unknown"), (whole[-2], "beyond_k"),
    ]  # fmt: skip


async def test_caps_hold_and_a_short_list_says_so(shop):
    answer = await ask(shop, k=20, rules={"caps": [{"attribute": "brand", "most": 2}], "filters": ["price >= 0"]})
    counts = [sum(attributes(row(item))["brand"] == brand for item in ids(answer)) for brand in ("b0", "b1", "b2", "b3")]
    assert counts == [2, 2, 2, 2]
    assert answer["gave_way"] == [{"rule": "k", "reason": "caps", "caps": ["brand"], "missing": 12}]
    spread = ids(await ask(shop, k=6, rules={"caps": [{"attribute": "categories", "most": 1}], "filters": ["price >= 0"]}))
    assert len({row(item) % 6 for item in spread}) == 6


@pytest.mark.parametrize("attribute", ["id", "title", "categories", "brand", "price", "new", "tags"])
async def test_a_cap_holds_on_any_attribute(shop, attribute):
    of = {
        f"item-{n:03d}": attributes(n) | {"categories": [f"c{n % 6}"]} if n < 50 else {"categories": ["things"]}
        for n in range(60)
    }
    whole = ids(await ask(shop))
    for most in (1, 3):
        counts, kept = {}, []
        for item in whole:
            values = {"id": item, "title": item}.get(attribute, of[item].get(attribute, []))
            groups = set(values) if isinstance(values, list) else {values}
            if all(counts.get(group, 0) < most for group in groups):
                kept.append(item)
                counts |= {group: counts.get(group, 0) + 1 for group in groups}
        assert ids(await ask(shop, rules={"caps": [{"attribute": attribute, "most": most}]})) == kept


async def test_a_search_for_many_candidates_is_made_in_a_thread_and_comes_to_the_same(shop, monkeypatch):
    rules = {"caps": [{"attribute": "brand", "most": 2}], "filters": ["price >= 0"]}
    alone = await ask(shop, k=20, rules=rules)
    threads, rank = [], Scorer._rank
    monkeypatch.setattr(Scorer, "_rank", lambda *args: (threads.append(threading.current_thread()), rank(*args))[1])
    monkeypatch.setattr(listing, "MANY", 30)
    plain, beside = await asyncio.gather(ask(shop, k=20), ask(shop, k=20, rules=rules))
    assert (ids(beside), len(ids(plain))) == (ids(alone), 20)
    assert {thread is threading.main_thread() for thread in threads} == {True, False}


async def test_many_lists_that_each_take_little_are_not_all_chosen_on_the_event_loop(shop, monkeypatch):
    one = ids(await ask(shop, k=50, rules={"diversity": 0.5}))
    beside, take_all = [], listing._take_all
    monkeypatch.setattr(listing, "_take_all", lambda answers: (beside.extend(answers), take_all(answers))[1])
    answers = await asyncio.gather(*(ask(shop, k=50, rules={"diversity": 0.5}) for _ in range(16)))
    assert [ids(answer) for answer in answers] == [one] * 16
    assert 8 <= len(beside) < 16


async def test_an_item_that_arrives_while_a_capped_list_is_made_is_not_in_it(shop, monkeypatch):
    rules = {"caps": [{"attribute": "brand", "most": 2}]}
    before = await ask(shop, rules=rules, debug=["late-0"])
    rank = Scorer.rank
    late = []

    async def rank_late(self, *args, **kwargs):
        catalogue = self._catalogue
        row = catalogue.put(f"late-{len(late)}", "Late", None)
        late.append(row)
        catalogue.attributes.set(row, {"brand": "b0"})
        catalogue.teach(row, catalogue.vectors[0] * 3, 9.0, 1)
        catalogue.settle(catalogue.version)
        return await rank(self, *args, **kwargs)

    monkeypatch.setattr(Scorer, "rank", rank_late)
    answer = await ask(shop, rules=rules, debug=["late-0"])
    assert late
    assert (ids(answer), answer["debug"][0]["what"]) == (ids(before), "not_eligible")


@pytest.mark.parametrize(("score", "count"), [(1e308, 0), (-1e308, 60)])
async def test_a_minimum_beyond_all_scores_is_one(shop, score, count):
    assert len(ids(await ask(shop, rules={"min_score": score}))) == count


@pytest.mark.parametrize("seconds", [0, 10**9, 200 * 365 * 86_400])
async def test_a_list_of_what_is_popular_is_the_same_with_rules_that_change_nothing(shop, seconds):
    await shop.tell(*(event(f"w{n % 3}", n % 7, n) for n in range(20)), event("w", 30, 50), event("w", 31, 60))
    at = START_MS + 1000 * seconds
    await shop.post("/v1/items", json=[{"item_id": f"unused-{n}", "title": "New"} for n in (1, 2)])
    plain = (await shop.ask("nobody", k=70, as_of=at))["items"]
    assert ids({"items": plain}) != sorted(ids({"items": plain}))
    for k in (5, 70):
        for rules in ({}, {"diversity": 0.0}, {"filters": ["not price < 0"]}):
            ruled = (await ask(shop, user_id="nobody", as_of=at, k=k, rules=rules))["items"]
            assert [item["item_id"] for item in ruled] == [item["item_id"] for item in plain[:k]]
            assert [item["score"] for item in ruled] == pytest.approx([item["score"] for item in plain[:k]], rel=1e-6, abs=1e-12)
    # What nobody used is last, by row, until a rule says otherwise.
    assert ids({"items": plain})[-2:] == ["unused-1", "unused-2"]
    boosts = [{"filter": "id = 'unused-2'", "factor": 2}, {"filter": "id = 'item-055'", "factor": 1e6}]
    boosted = ids(await ask(shop, user_id="nobody", as_of=at, k=70, rules={"boosts": boosts}))
    assert boosted[0] == "item-055"
    assert boosted.index("unused-2") < boosted.index("unused-1") == 61


async def test_a_request_that_says_nothing_of_rules_goes_the_way_without_them(shop, monkeypatch):
    plain = await shop.ask("u", k=10)

    def resolve(*_):
        raise AssertionError("rules are resolved")

    monkeypatch.setattr(RuleBook, "resolve", resolve)
    for body in ({}, {"rules": {}}, {"rules": None}):
        same_list(await ask(shop, k=10, **body), plain)


async def test_filters_read_the_attributes_of_a_user_without_events(shop):
    await shop.put("/v1/users/fresh", json={"attributes": {"country": "Norway"}})
    await shop.patch("/v1/items/item-011", json={"attributes": {"land": "Norway"}})
    await shop.patch("/v1/items/item-012", json={"attributes": {"land": "France"}})
    for user, text, found in [
        ("fresh", "land = user.country", ["item-011"]),
        ("fresh", "land = 'France' or land = user.country", ["item-011", "item-012"]),
        ("fresh", "not land = user.country and id in ('item-011', 'item-012')", ["item-012"]),
        ("nobody", "land = user.country", []),
    ]:
        answer = await ask(shop, user_id=user, rules={"filters": [text]})
        assert (answer["source"], sorted(ids(answer))) == ("fallback", found)
        lists = {"user_id": user, "as_of": MOMENT, "lists": [{"name": "a", "rules": {"filters": [text]}}]}
        (one,) = (await shop.post("/v1/recommendations/lists", json=lists)).json()["lists"]
        assert sorted(ids(one)) == found
    boosts = [{"filter": "land = user.country", "factor": 1e6}]
    assert ids(await ask(shop, user_id="fresh", rules={"boosts": boosts}))[0] == "item-011"


async def test_no_item_below_the_minimum_score(shop):
    scores = [item["score"] for item in (await ask(shop))["items"]]
    answer = await ask(shop, rules={"min_score": (scores[9] + scores[10]) / 2})
    assert len(answer["items"]) == 10
    assert answer["gave_way"][0]["reason"] == "min_score"


async def test_what_the_user_had_is_left_out_by_type_and_time(shop):
    await shop.tell(event("w", 1, 0, "purchase"), event("w", 2, 1_000, "view"), event("w", 3, 2_000, "view"))
    at = START_MS + 2_000_000
    for had, gone in [
        ([{}], {1, 2, 3}),
        ([{"types": ["view"]}], {2, 3}),
        ([{"within_s": 500}], {3}),
        ([{"types": ["purchase"], "within_s": 1_999}, {"types": ["view"], "within_s": 1_000}], {2, 3}),
        ([], set()),
    ]:
        answer = await ask(shop, user_id="w", as_of=at, rules={"exclude_had": had})
        assert set(range(60)) - {row(item) for item in ids(answer)} == gone
        told = [event("w", 1, 0, "purchase"), event("w", 2, 1_000, "view"), event("w", 3, 2_000, "view")]
        told = [{name: value for name, value in one.items() if name != "user_id"} for one in told]
        nobody = await ask(shop, user_id=None, events=told, as_of=at, rules={"exclude_had": had})
        assert ids(nobody) == ids(answer)


async def test_diversity_and_influences_change_the_list_and_nought_changes_nothing(shop):
    whole = await ask(shop, k=10)
    assert ids(await ask(shop, k=10, rules={"diversity": 0.0, "freshness": 0.0, "popularity": 0.0})) == ids(whole)
    assert ids(await ask(shop, k=10, rules={"diversity": 0.9})) != ids(whole)
    await shop.put("/v1/items/item-033", json={"available_from": MOMENT - 1000})
    assert ids(await ask(shop, k=3, rules={"freshness": 1.0}))[0] == "item-033"
    popular = ids(await ask(shop, user_id="nobody"))
    assert ids(await ask(shop, rules={"popularity": 1.0})).index(popular[0]) <= ids(await ask(shop)).index(popular[0])


async def test_debug_says_of_any_item_why(shop):
    whole = ids(await ask(shop))
    await shop.put("/v1/items/item-020", json={"hidden": True})
    await shop.put("/v1/items/fresh", json={"title": "Fresh"})
    rest = [item for item in whole if item != "item-020"]
    rules = {"filters": ["not brand = 'b3'"], "exclude": [rest[2]], "pins": [{"item_id": rest[-1], "position": 1}]}
    kept = [item for item in rest if row(item) >= 50 or row(item) % 4 != 3]
    out = next(item for item in rest if row(item) < 50 and row(item) % 4 == 3 and item != rest[2])
    behind = [item for item in kept if item not in (rest[2], rest[-1])][8]
    asked = [rest[-1], out, "item-020", "nowhere", rest[2], behind, "fresh"]
    answer = await ask(shop, k=5, rules=rules, debug=asked)
    what = {one["item_id"]: one["what"] for one in answer["debug"]}
    assert list(what) == asked
    assert list(what.values()) == ["pinned", "filtered", "unavailable", "unknown", "excluded", what[behind], "without_vector"]
    assert what[behind] in ("behind", "not_reached")
    assert answer["debug"][0]["position"] == 1


async def test_a_scenario_is_stored_by_version_and_holds_with_the_rules_of_the_request(shop):
    put = await shop.put("/v1/scenarios/cart page", json={"filters": ["price < 3"], "exclude": ["item-001"], "diversity": 0.5})
    assert (put.json()["version"], put.json()["rules"]["filters"]) == (1, ["price < 3"])
    cheap = {f"item-{n:03d}" for n in range(50) if n % 7 < 3 and n != 1}
    answer = await ask(shop, scenario="cart page")
    assert (set(ids(answer)), answer["scenario"]) == (cheap, {"name": "cart page", "version": 1})
    both = await ask(shop, scenario="cart page", rules={"filters": ["new = true"]})
    assert set(ids(both)) == {item for item in cheap if row(item) % 2 == 0}
    again = await shop.put("/v1/scenarios/cart page", json={"filters": ["price < 3"], "exclude": ["item-001"], "diversity": 0.5})
    assert again.json()["version"] == 1
    assert (await shop.put("/v1/scenarios/cart page", json={"filters": ["price < 1"]})).json()["version"] == 2
    answer = await shop.ask("u", k=60, scenario="cart page", filter="brand = 'b0'")
    assert set(ids(answer)) == {f"item-{n:03d}" for n in range(50) if n % 7 < 1 and n % 4 == 0}
    assert (await shop.get("/v1/scenarios/cart page", params={"version": 1})).json()["rules"]["diversity"] == 0.5
    assert [one["name"] for one in (await shop.get("/v1/scenarios")).json()["scenarios"]] == ["cart page"]
    assert (await shop.delete("/v1/scenarios/cart page")).status_code == 200
    await ask(shop, 404, scenario="cart page")
    for gone in (await shop.get("/v1/scenarios/cart page"), await shop.delete("/v1/scenarios/cart page")):
        assert gone.status_code == 404
    bad = await shop.put("/v1/scenarios/x", json={"filters": ["price <"]})
    assert (bad.status_code, bad.json()["errors"][0]["field"]) == (422, "filters.0")


async def test_rules_hold_while_storage_is_away_or_nothing_is_answered(start, monkeypatch):
    async with start() as client:
        items = [{"item_id": f"item-{n:03d}", "attributes": attributes(n)} for n in range(50)]
        assert (await client.post("/v1/items", json=items)).status_code == 200
        await client.put("/v1/scenarios/known", json={"filters": ["price < 1"]})
        await client.put("/v1/scenarios/never", json={"filters": ["price < 1"]})
        await ask(client, scenario="known")

        async def away(*_, **__):
            raise StorageError("away")

        monkeypatch.setattr(RedisStore, "all", away)
        monkeypatch.setattr(RedisStore, "load", away)
        answer = await ask(client, scenario="known")
        assert (answer["degraded"], {row(item) % 7 for item in ids(answer)}) == (True, {0})
        await ask(client, 503, scenario="never")
        # What the user had nobody can tell now, and says so; nor whether a filter over their attributes is true.
        answer = await ask(client, rules={"exclude_had": [{}]})
        assert answer["gave_way"] == [{"rule": "exclude_had", "reason": "storage_unavailable"}]
        assert "gave_way" not in await ask(client, rules={"exclude_had": []})
        for text in ("brand = user.country", "not brand in (user.country, 'b1')"):
            problem = await ask(client, 503, rules={"filters": [text]})
            assert problem["type"].endswith("storage-unavailable")
            response = await client.get("/v1/users/u/recommendations", params={"filter": text})
            assert response.status_code == 503
        lists = {"user_id": "u", "lists": [{"name": "a", "rules": {"filters": ["brand = user.country"]}}]}
        assert (await client.post("/v1/recommendations/lists", json=lists)).status_code == 503
        boosts = [{"filter": "brand = user.country", "factor": 2}]
        assert len(ids(await ask(client, rules={"boosts": boosts}))) == 60


async def test_exploration_gives_its_share_to_new_items_and_is_made_again_by_its_seed(shop):
    for number in range(6):
        await shop.put(f"/v1/items/item-{number:03d}", json={"available_from": MOMENT - 1000 * (number + 1)})
    new = {f"item-{number:03d}" for number in range(6)}
    rules = {"explore": {"share": 0.3, "new_for_s": 3600}}
    plain = ids(await ask(shop, k=60))
    seen, first = set(), set()
    for seed in range(12):
        answer = await ask(shop, k=10, rules=rules, seed=seed)
        drawn = answer["explored"]["items"]
        assert answer["explored"]["seed"] == seed
        assert len(drawn) == 3
        assert {one["item_id"] for one in drawn} <= new
        assert all(answer["items"][one["position"] - 1]["item_id"] == one["item_id"] for one in drawn)
        assert all(0 < one["propensity"] <= 1 for one in drawn)
        others = [item for item in ids(answer) if item not in {one["item_id"] for one in drawn}]
        assert others == [item for item in plain if item in others][:7]
        assert ids(await ask(shop, k=10, rules=rules, seed=seed)) == ids(answer)
        seen |= {one["item_id"] for one in drawn}
    assert len(seen) > 3
    pins = [{"item_id": "item-030", "position": 2}, {"item_id": "item-031", "position": 4}, {"item_id": "nowhere", "position": 1}]
    pinned = {"item-030": 2, "item-031": 4}
    for seed in range(12):  # what a pin leaves free is drawn for, and its own place where it gives way
        answer = await ask(shop, k=5, rules={"explore": {"share": 0.5, "new_for_s": 3600}, "pins": pins}, seed=seed)
        assert len(answer["explored"]["items"]) == 2
        assert {item: ids(answer).index(item) + 1 for item in pinned} == pinned
        first |= {one["position"] for one in answer["explored"]["items"]}
    assert first == {1, 3, 5}
    without = await ask(shop, k=10, rules={**rules, "filters": ["not id in ('item-000', 'item-001', 'item-002', 'item-003')"]})
    assert {one["item_id"] for one in without["explored"]["items"]} == {"item-004", "item-005"}
    assert len(without["items"]) == 10
    nothing = await ask(shop, k=10, rules={"explore": {"share": 0.3, "new_for_s": 60}, "exclude": sorted(new)})
    assert (nothing["explored"]["items"], len(nothing["items"])) == ([], 10)
    assert "explored" not in await ask(shop, k=10)


def drawn(answer):
    """To float noise: what else was in a batch moves the last digits of a score."""
    return [(one["item_id"], one["position"], pytest.approx(one["propensity"], rel=1e-4)) for one in answer["explored"]["items"]]


async def test_each_of_several_lists_and_of_a_batch_is_drawn_by_a_seed_of_its_own_that_makes_it_again(shop):
    rules = {"explore": {"share": 0.3, "used_at_most": 1e9}}
    lists = [{"name": name, "k": 5, "rules": rules} for name in "ab"]
    response = await shop.post("/v1/recommendations/lists", json={"user_id": "u", "as_of": MOMENT, "lists": lists})
    several = json.loads(response.content)["lists"]
    asked = {"user_ids": ["u"] * 3, "k": 10, "as_of": MOMENT, "rules": rules}
    response = await shop.post("/v1/recommendations/batch", json=asked)
    batch = [json.loads(line) for line in response.content.splitlines()]
    seeds = [one["explored"]["seed"] for one in [*several, *batch]]
    assert len(set(seeds)) == 5
    for one, listed in zip(several, ((), ids(several[0])), strict=True):
        again = await ask(shop, k=5, rules=rules, seed=one["explored"]["seed"], exclude=list(listed))
        assert (ids(again), drawn(again)) == (ids(one), drawn(one))
    for one in batch:
        again = await ask(shop, k=10, rules=rules, seed=one["explored"]["seed"])
        assert (ids(again), drawn(again)) == (ids(one), drawn(one))


async def test_what_is_little_known_is_asked_for_by_a_mask_and_not_row_by_row(shop, monkeypatch):
    asked, rank = [], Scorer.rank

    async def watched(self, questions, *args, **kwargs):
        asked.extend(questions)
        return await rank(self, questions, *args, **kwargs)

    monkeypatch.setattr(Scorer, "rank", watched)
    rules = {"explore": {"share": 0.2, "used_at_most": 1e9}, "filters": ["price < 3"]}
    answer = await ask(shop, k=10, rules=rules)
    assert all(row(one["item_id"]) % 7 < 3 for one in answer["explored"]["items"])
    assert len(answer["explored"]["items"]) == 2
    assert [question.among for question in asked] == [None, None]
    assert asked[0].mask.sum() == len(ids(await ask(shop, rules={"filters": ["price < 3"]})))


async def test_a_long_diverse_list_is_that_of_a_short_one_made_longer(shop):
    short = ids(await ask(shop, k=60, rules={"diversity": 0.3}))
    assert ids(await ask(shop, k=200, rules={"diversity": 0.3})) == short
