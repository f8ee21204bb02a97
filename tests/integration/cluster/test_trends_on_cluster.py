"""Trends on a cluster: all buckets of a tenant are on one node, and one round trip reads several."""

from __future__ import annotations

from app.state.trends import COARSE, FINE, Trends


async def test_buckets_are_counted_and_read_on_a_cluster(open_on_cluster):
    trends = Trends(await open_on_cluster())
    weights = {(ring, bucket): {f"item {n}": n + 1.0 for n in range(300)} for ring in (FINE, COARSE) for bucket in range(40, 50)}
    await trends.count("default", weights)
    for ring in (FINE, COARSE):
        found: dict[int, dict[str, float]] = {}
        assert None not in await trends.versions("default", ring, range(40, 50))
        async for bucket, items in trends.read("default", ring, range(40, 50)):
            found.setdefault(bucket, {}).update(items)
        assert found == {bucket: items for (of, bucket), items in weights.items() if of is ring}
