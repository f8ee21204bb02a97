"""What the read-your-writes comparison takes for the same list."""

import pytest

from loadtests.offline import TOLERANCE, Best, Offline, difference, problem
from loadtests.shoppers import Read, Shopper, beginning_ms

BEST = Best(["a", "b", "c", "d"], [3.0, 2.0, 1.0, 1.0 - TOLERANCE / 2])


def test_the_same_list_is_no_problem():
    assert problem([("a", 3.0), ("b", 2.0), ("c", 1.0)], BEST, 3) is None


def test_items_may_change_places_only_within_the_tolerance():
    assert problem([("a", 3.0), ("b", 2.0), ("d", 1.0)], BEST, 3) is None
    assert "is better than the one before" in problem([("b", 2.0), ("a", 3.0), ("c", 1.0)], BEST, 3)
    assert "b with a score of 2.00000 is missing" in problem([("a", 3.0), ("c", 1.0), ("d", 1.0)], BEST, 3)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([("a", 3.0), ("b", 2.0)], "2 items instead of 3"),
        ([("a", 3.0), ("b", 2.0), ("z", 1.0)], "item z in place 2 is not among the best 4"),
        ([("a", 3.0), ("b", 2.0 - 2 * TOLERANCE), ("c", 1.0)], "item b has a score of 1.99960 instead of 2.00000"),
    ],
)
def test_what_differs_is_said(answer, why):
    assert problem(answer, BEST, 3) == why


def test_fewer_items_than_asked_for_are_right_where_there_are_no_more():
    assert problem([("a", 3.0)], Best(["a"], [3.0]), 3) is None


def test_the_difference_is_the_largest_of_the_scores():
    assert difference([("a", 3.0), ("b", 2.5)], BEST) == 0.5


def test_a_list_of_the_state_before_the_last_event_is_found_out(tiny_bundle):
    from loadtests.read_your_writes import judge

    offline = Offline(tiny_bundle)
    at_ms = beginning_ms(offline.manifest)
    events = [{"user_id": "u", "item_id": f"item-{n:03d}", "type": "purchase", "timestamp": at_ms + n * 60_000} for n in range(3)]
    state, lists = offline.initial(1), []
    for event in events:
        state = offline.step(state, [event])
        (best,) = offline.best(state, [at_ms + 10**6], 20, [set()])
        lists.append(list(zip(best.ids, best.scores, strict=True)))
    fresh = Shopper("u", at_ms, events, [Read(n + 1, n + 1, at_ms + 10**6, lists[n]) for n in range(3)])
    stale = Shopper("u", at_ms, events, [Read(n + 1, n + 1, at_ms + 10**6, lists[max(n - 1, 0)]) for n in range(3)])
    lying = Shopper("u", at_ms, events, [Read(3, 2, at_ms + 10**6, lists[2])])
    found = judge(offline, [fresh])
    assert (found.pairs, found.stale, found.wrong, found.blind) == (3, 0, 0, 0)
    assert found.good
    found = judge(offline, [stale])
    assert (found.pairs, found.stale, found.wrong, found.blind) == (3, 0, 2, 2)
    assert not found.good
    assert judge(offline, [lying]).stale == 1
