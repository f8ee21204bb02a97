"""Counts by context on a cluster: all of a tenant are on one node, also those of a value that makes room for another."""

from __future__ import annotations

from app.state.contexts import Contexts

NOW = 1_700_000_000_000


async def test_contexts_are_counted_displaced_and_read_on_a_cluster(open_on_cluster):
    contexts = Contexts(await open_on_cluster(), 86_400.0, most_values=2)
    told = {("platform", "app"): [("a", 1.0, NOW), ("b", 2.0, NOW)], ("country", "Côte d'Ivoire"): [("a", 1.0, NOW)]}
    await contexts.count("default", told)
    await contexts.count("default", {("country", "France"): [("a", 1.0, NOW)]})
    await contexts.count("default", {("country", "Spain"): [("a", 5.0, NOW)]})
    found = {key: one.count for key, one in (await contexts.values("default", ["platform", "country"])).items()}
    assert found[("platform", "app")] == 3.0
    assert len(found) == 3
    assert found[("country", "Spain")] == 5.0
    assert {item: one.count for item, one in (await contexts.items("default", "platform", "app")).items()} == {"a": 1.0, "b": 2.0}
    (gone,) = {"Côte d'Ivoire", "France"} - {value for _, value in found}
    assert await contexts.items("default", "country", gone) == {}
