"""Counts per country or platform on a real Redis: they decay as popularity does, and nothing grows without end."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import redis

from app.state.contexts import Contexts
from app.state.redis import RedisStore

DAY_S = 86_400.0
NOW = 1_700_000_000_000
DAY = 86_400_000
FRANCE = ("country", "France")


async def counts(contexts: Contexts, facet: str = "country", value: str = "France") -> dict[str, tuple[int, float]]:
    return {item: (one.time_ms, one.count) for item, one in (await contexts.items("default", facet, value)).items()}


async def totals(contexts: Contexts) -> dict[tuple[str, str], float]:
    return {key: one.count for key, one in (await contexts.values("default", ["platform", "country"])).items()}


async def test_counts_decay_and_a_late_event_counts_with_its_own_age(store: RedisStore):
    contexts = Contexts(store, DAY_S)
    await contexts.count("default", {FRANCE: [("a", 1.0, NOW), ("a", 2.0, NOW + DAY), ("b", 4.0, NOW - DAY), ("é:{}", 1.0, NOW)]})
    await contexts.count("default", {FRANCE: [("a", 8.0, NOW)]})
    assert await counts(contexts) == {
        "a": (NOW + DAY, pytest.approx(2 + 1 / 2 + 8 / 2)),
        "b": (NOW - DAY, pytest.approx(4.0)),
        "é:{}": (NOW, pytest.approx(1.0)),
    }
    assert await totals(contexts) == {FRANCE: pytest.approx(2 + (1 + 8 + 1) / 2 + 4 / 4)}


async def test_facets_values_tenants_and_half_lives_are_apart(store: RedisStore):
    contexts = Contexts(store, DAY_S)
    told = {FRANCE: [("a", 1.0, NOW)], ("platform", "France"): [("a", 2.0, NOW)], ("country", "a:{b}"): [("a", 3.0, NOW)]}
    await contexts.count("default", told)
    await contexts.count("other", {FRANCE: [("a", 9.0, NOW)]})
    await Contexts(store, 2 * DAY_S).count("default", {FRANCE: [("a", 9.0, NOW)]})
    assert await totals(contexts) == {FRANCE: 1.0, ("platform", "France"): 2.0, ("country", "a:{b}"): 3.0}
    assert (await counts(contexts, value="a:{b}"), await counts(contexts, value="Spain")) == ({"a": (NOW, 3.0)}, {})


async def test_a_full_facet_keeps_what_is_used_much_and_forgets_the_items_of_what_goes(store: RedisStore, raw: redis.Redis):
    contexts = Contexts(store, DAY_S, most_values=10)
    chance = random.Random(0)
    large = [f"large-{n}" for n in range(5)]
    for step in range(200):
        value = large[step % 5] if step % 2 else f"once-{chance.random()}"
        await contexts.count("default", {("country", value): [("a", 1.0, NOW + step)]})
    found = await totals(contexts)
    assert len(found) == 10
    assert {value for _, value in found} >= set(large)
    assert {key.decode().count(":") for key in raw.keys("lw:{context-*")} == {3, 4}
    assert len(raw.keys("lw:{context-*")) == 1 + 10  # and nothing else is left


async def test_a_newcomer_finds_no_room_among_what_is_used_more_until_that_has_faded(store: RedisStore):
    contexts = Contexts(store, DAY_S, most_values=2)
    await contexts.count("default", {("country", name): [("a", 10.0, NOW)] for name in ("one", "two")})
    await contexts.count("default", {("country", "three"): [("a", 1.0, NOW)]})
    assert {value for _, value in await totals(contexts)} == {"one", "two"}
    assert await counts(contexts, value="three") == {}
    await contexts.count("default", {("country", "three"): [("a", 1.0, NOW + 5 * DAY)]})
    assert "three" in {value for _, value in await totals(contexts)}


async def test_a_full_value_keeps_the_items_that_are_used_much_and_counts_the_others_in_its_sum(store: RedisStore):
    contexts = Contexts(store, DAY_S, most_items=20)
    chance = random.Random(1)
    told = [(f"often-{n % 10}" if n % 2 else f"item-{chance.randrange(500)}", 1.0, NOW) for n in range(1_000)]
    for start in range(0, 1_000, 50):
        await contexts.count("default", {FRANCE: told[start : start + 50]})
    items = await counts(contexts)
    assert len(items) == 20
    true = Counter(item for item, _, _ in told)
    assert {item for item, number in true.items() if number >= 50} <= items.keys()
    assert await totals(contexts) == {FRANCE: pytest.approx(1_000.0)}


async def test_what_nobody_adds_to_goes_by_itself(store: RedisStore, raw: redis.Redis):
    await Contexts(store, DAY_S).count("default", {FRANCE: [("a", 1.0, NOW)]})
    for key in raw.keys("lw:{context-*"):
        assert 7.9 * DAY < raw.pttl(key) <= 8 * DAY
