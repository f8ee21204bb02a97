"""What contexts make of popularity, as several workers see it: against the formula, whatever becomes of the store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import redis

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity
from app.errors import StorageError
from app.ingest.contexts import ContextCounter
from app.recommend.answer import Query
from app.recommend.contexts import CATEGORY_M, ContextPopularity, M
from app.state.contexts import Contexts
from app.state.redis import RedisStore

DAY_S = 86_400.0
NOW = 1_700_000_000_000
N = 8


class Watched(Contexts):
    """Counts what is read; may be away."""

    away = False
    read = 0

    async def values(self, *arguments: Any) -> Any:
        if self.away:
            raise StorageError("away")
        return await super().values(*arguments)

    async def items(self, *arguments: Any) -> Any:
        self.read += 1
        return await super().items(*arguments)


class Worker:
    """One worker's part of it; `known` is what was used before anybody said where."""

    def __init__(self, store: RedisStore, known: list[float], items: int = N, **bounds: int) -> None:
        ids = [f"i{row}" for row in range(items)]
        categories = [("even",) if row % 2 == 0 else ("odd", "three") for row in range(items)]
        self.catalogue = Catalogue(ids, ids, categories, np.zeros((items, 2), np.float32), np.zeros(items, np.float32))
        counts = np.zeros((items, 2))
        counts[: len(known)] = np.asarray(known)[:, None]
        self.popularity = LivePopularity(self.catalogue, (DAY_S, 30 * DAY_S), counts, NOW, in_flight_s=1.0)
        self.contexts = Watched(store, 30 * DAY_S, **bounds)
        self.counter = ContextCounter(self.contexts, 0.01, lambda item: self.catalogue.row(item) is not None)
        self.of_contexts = ContextPopularity(self.contexts, "default", self.catalogue, self.popularity)

    async def tell(self, item: int, weight: float, **facets: str) -> None:
        """Counted at once and, as the write path does, in popularity too."""
        self.popularity.add([(f"i{item}", weight, NOW)], 0.0)
        self.counter.add("default", [(f"i{item}", weight, NOW, tuple(facets.items()))])
        await self.counter.flush()

    def lift(self, platform: str | None = None, attributes: Mapping[str, str] = {}, **context: object) -> Any:
        return self.of_contexts.lift(Query("default", "u", 5, NOW, platform, context=context), attributes)

    def of(self, item: int, **where: Any) -> float:
        return float(np.exp(self.lift(**where).bias[item]))


async def test_lifts_are_those_of_the_formula(store: RedisStore):
    worker = Worker(store, [1000.0, 100.0, 10.0, 0.0, 500.0])
    await worker.tell(1, 300.0, country="France")
    await worker.tell(2, 60.0, country="France")
    await worker.tell(3, 40.0, country="France")
    await worker.of_contexts.refresh()
    table = np.asarray([1000.0, 400.0, 70.0, 40.0, 500.0, 0, 0, 0])
    own = np.asarray([0, 300.0, 60.0, 40.0, 0, 0, 0, 0])
    share = table / table.sum()
    for item in range(5):
        expected = (own[item] + M * share[item]) / (own.sum() + M) / share[item]
        assert worker.of(item, country="France") == pytest.approx(expected, rel=1e-4)
    assert worker.lift(country="France").used == {"country": "France"}
    # What nobody used is lifted as what nobody used there: shares of nothing are nothing.
    assert worker.of(6, country="France") == pytest.approx(worker.of(0, country="France"))


async def test_facets_multiply_and_what_is_not_known_changes_nothing(store: RedisStore):
    worker = Worker(store, [100.0, 100.0, 100.0])
    await worker.tell(1, 500.0, country="France", platform="app")
    await worker.tell(2, 500.0, platform="app")
    assert worker.lift("app", country="France") is None  # nothing has been read yet
    await worker.of_contexts.refresh()
    both = worker.lift("app", country="France", category="even")
    assert both.used == {"platform": "app", "country": "France", "category": "even"}
    alone = [worker.lift("app"), worker.lift(country="France"), worker.lift(category="even")]
    np.testing.assert_allclose(both.bias, sum(one.bias for one in alone), rtol=1e-5)
    assert worker.lift("app", country="Spain", category="none").used == {"platform": "app"}
    for unknown in ({"country": "Spain"}, {"country": 7}, {"country": None}, {"category": ["even"]}, {}):
        assert worker.lift(**unknown) is None
    assert worker.lift("web") is None


async def test_the_attribute_tells_the_country_where_the_question_does_not(store: RedisStore):
    worker = Worker(store, [100.0, 100.0])
    asked = Query("default", "u", 5, NOW, None)
    assert not worker.of_contexts.reads_user(asked)  # nobody has said where anything was used
    await worker.tell(1, 50.0, country="France")
    await worker.tell(0, 50.0, country="Spain")
    await worker.of_contexts.refresh()
    assert worker.of_contexts.reads_user(asked)
    assert worker.lift(attributes={"country": "France"}).used == {"country": "France"}
    assert worker.lift(attributes={"country": "France"}, country="Spain").used == {"country": "Spain"}
    assert worker.lift(attributes={"country": "France"}, country=None) is None  # said not to be known


async def test_a_category_is_lifted_as_far_as_its_items_are_used(store: RedisStore):
    worker = Worker(store, [100.0, 300.0, 0.0, 100.0])
    inside, outside = (500 + CATEGORY_M) / (100 + CATEGORY_M), CATEGORY_M / (100 + CATEGORY_M)
    expected = [inside if row % 2 == 0 else outside for row in range(N)]
    np.testing.assert_allclose(np.exp(worker.lift(category="even").bias), expected, rtol=1e-5)


async def test_an_item_that_was_not_kept_is_lifted_as_all_that_were_not(store: RedisStore):
    worker = Worker(store, [100.0] * 6, most_items=2)
    for item, weight in enumerate([50.0, 40.0, 3.0, 2.0, 1.0]):
        await worker.tell(item, weight, country="France")
    await worker.of_contexts.refresh()
    table = np.asarray([150.0, 140.0, 103.0, 102.0, 101.0, 100.0, 0, 0])
    rest = 6 / (table[2:].sum() / table.sum())
    for item in range(2, 6):
        assert worker.of(item, country="France") == pytest.approx((rest + M) / (96 + M), rel=1e-4)
    kept = (50 / (150 / table.sum()) + M) / (96 + M)
    assert worker.of(0, country="France") == pytest.approx(kept, rel=1e-4)


async def test_an_old_context_fades_towards_everybody(store: RedisStore):
    worker = Worker(store, [100.0, 100.0])
    await worker.tell(1, 2000.0, country="France")
    await worker.of_contexts.refresh()
    now, later = (
        worker.of_contexts.lift(Query("default", "u", 5, NOW + ms, None, context={"country": "France"}), {}).bias[0]
        for ms in (0, int(300 * DAY_S * 1000))
    )
    assert now < later < 0
    assert later == pytest.approx(0, abs=0.01)


async def test_another_worker_reads_what_grew_and_nothing_else(store: RedisStore):
    one, other = Worker(store, [100.0, 100.0]), Worker(store, [100.0, 100.0])
    await one.tell(1, 1000.0, country="France")
    await one.tell(0, 1000.0, country="Spain")
    await other.of_contexts.refresh()
    assert other.contexts.read == 2
    await one.tell(1, 5.0, country="France")  # half a hundredth
    await other.of_contexts.refresh()
    assert other.contexts.read == 2
    await one.tell(1, 6.0, country="France")
    await other.of_contexts.refresh()
    assert other.contexts.read == 3


async def test_items_that_the_catalogue_gets_later_are_read_then(store: RedisStore):
    small, large = Worker(store, [100.0], items=2), Worker(store, [100.0], items=4)
    await large.tell(3, 50.0, country="France")
    await small.of_contexts.refresh()
    assert len(small.lift(country="France").bias) == 2
    for item in ("i2", "i3"):
        small.catalogue.put(item, None, None)
    small.catalogue.settle(1)
    small.popularity.add([("i3", 50.0, NOW)], 0.0)
    await large.of_contexts.refresh()
    await small.of_contexts.refresh()
    assert small.of(3, country="France") == pytest.approx(large.of(3, country="France"), rel=1e-4)
    assert small.of(3, country="France") > 1


async def test_what_was_read_stays_while_storage_is_away_and_goes_when_it_was_emptied(store: RedisStore, raw: redis.Redis):
    worker = Worker(store, [100.0, 100.0])
    await worker.tell(1, 500.0, country="France")
    await worker.of_contexts.refresh()
    worker.contexts.away = True
    with pytest.raises(StorageError):
        await worker.of_contexts.refresh()
    assert worker.of(1, country="France") > 1
    worker.contexts.away = False
    raw.flushall()
    await worker.of_contexts.refresh()
    assert worker.lift(country="France") is None


async def test_counts_that_are_none_are_left_out(store: RedisStore, raw: redis.Redis):
    worker = Worker(store, [100.0, 100.0])
    await worker.tell(1, 500.0, country="France")
    (index,) = [key for key in raw.keys("lw:{context-*") if key.count(b":") == 3]
    raw.hset(f"{index.decode()}:France", "i0", f"{NOW} nan")
    raw.hset(index, "Spain", f"{NOW} inf")
    await worker.of_contexts.refresh()
    assert np.isfinite(worker.lift(country="France").bias).all()
    assert worker.lift(country="Spain") is None
