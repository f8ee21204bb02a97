"""From impressions and events as the service stores them, through the log and the archiver, to the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from app.archive.archive import Archive
from app.archive.archiver import Archiver
from app.archive.experiment.making import make_report
from app.archive.experiment.tally import ANY, Question
from app.state.events import StoredEvent
from app.state.impressions import Impression, ImpressionStore, Seen
from app.state.lists import new_list_id
from app.state.redis import RedisStore
from app.state.store import Append

MODEL = "c937343fc7a56a66"
NOW = time.time_ns() // 1_000_000
LONG = "an experiment whose name is longer than what the id of a list can hold of it"
ASKED = Question((ANY,), None, None, 3_600_000, 10.0)


class World:
    """Shows lists of one experiment and clicks on them; `told` makes the report after a run of the archiver."""

    def __init__(self, store: RedisStore, archive: Archive, make_archiver: Callable[..., Archiver]) -> None:
        self._store, self._archive, self._make_archiver = store, archive, make_archiver
        self._impressions = ImpressionStore(store, "default", 0)

    async def shown(self, user: str, arm: str, items: tuple[str, ...], propensities: tuple[float | None, ...] = ()) -> str:
        list_id = new_list_id(MODEL, False, "cart", 3, LONG, 2, arm)
        seen = Seen(user, Impression(list_id, NOW, items, (), propensities), list(range(len(items))))
        assert await self._impressions.add([seen, seen]) == ["1", "0"]
        return list_id

    async def click(self, user: str, list_id: str, item: str, event_id: str | None = None) -> None:
        event = StoredEvent("view", NOW + 5, item, recommendation_id=list_id)
        await self._store.append("default", [Append(user, [event], [event_id])])

    def told(self, **archiver: Any) -> tuple[Any, dict[str, tuple[int, int, int, int]]]:
        self._make_archiver().once(**archiver)
        report = make_report(self._archive, LONG, ASKED)
        return report, {arm.name: (arm.users, arm.lists, arm.items, arm.counts[ANY]["items"]) for arm in report.arms}


async def test_what_the_service_stores_is_what_the_report_counts(
    store: RedisStore, archive: Archive, make_archiver: Callable[..., Archiver]
):
    world = World(store, archive, make_archiver)
    first = await world.shown("u", "as before", ("a", "\ufffeodd", "c"), (None, 0.25, 0.5))
    await world.click("u", first, "a", "e1")
    await world.click("u", first, "a", "e1")
    await world.click("u", first, "\ufffeodd")
    await world.click("u", first, "nowhere")
    await world.click("v", new_list_id(MODEL, False, None, 0, LONG, 2, "new"), "a")  # nobody said that it was shown
    await world.shown("w", "new", ("a",))
    report, arms = world.told()
    assert (report.versions, arms) == ([2], {"as before": (1, 1, 3, 2), "new": (1, 1, 1, 0)})
    assert (report.control, report.users_in_several_arms) == ("as before", 0)
    assert [arm.events["without_impression"] for arm in report.arms] == [0, 1]
    (greedy,) = report.off_policy
    assert (greedy.arm, greedy.items, greedy.drawn, greedy.snips.value) == ("as before", 3, 2, 1.0)
    assert make_report(archive, LONG, ASKED) == report


async def test_merged_users_are_one_and_erased_ones_are_none_before_and_after_their_rows_are_gone(
    store: RedisStore, archive: Archive, make_archiver: Callable[..., Archiver]
):
    world = World(store, archive, make_archiver)
    for user in ("cookie", "alice", "bob"):
        await world.click(user, await world.shown(user, "new", ("a",)), "a")
    await world.shown("tablet", "as before", ("a",))
    await world.click("tablet", "elsewhere", "a")
    await store.merge("default", "alice", "cookie")
    assert world.told()[1] == {"as before": (1, 1, 1, 0), "new": (2, 3, 3, 3)}
    await store.merge("default", "alice", "tablet")
    report, arms = world.told()
    assert arms == {"as before": (0, 0, 0, 0), "new": (1, 1, 1, 1)}
    assert (report.users_in_several_arms, report.lists_of_users_in_several_arms) == (1, 3)
    await store.erase("default", "alice", NOW + 10)
    waiting = world.told()
    assert archive.latest().removals
    carried_out = world.told(erase_now=True)
    assert not archive.latest().removals
    assert waiting[1] == carried_out[1] == {"new": (1, 1, 1, 1)}
    assert waiting[0].users_in_several_arms == 0
