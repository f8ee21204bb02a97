"""Decayed counts against the formula: sum of weight * 2^-((t - t_e) / half-life)."""

import numpy as np
import pytest

from app.catalogue.catalogue import Catalogue
from app.catalogue.popularity import LivePopularity

HALF_LIVES_S = (100.0, 5_000.0)
START_MS = 1_300_000_000_000
N = 5


def make(counts=None):
    ids = [f"i{row}" for row in range(N)]
    catalogue = Catalogue(ids, ids, [()] * N, np.zeros((N, 2), np.float32), np.zeros(N, np.float32))
    counts = np.zeros((N, 2)) if counts is None else counts
    return LivePopularity(catalogue, HALF_LIVES_S, counts, START_MS, in_flight_s=1.0)


def by_formula(events, as_of_ms):
    counts = np.zeros((N, 2))
    for item_id, weight, time_ms in events:
        counts[int(item_id[1:])] += weight * 2 ** (-(as_of_ms - time_ms) / 1000 / np.asarray(HALF_LIVES_S))
    return counts


def test_counts_follow_the_formula_whatever_the_order_of_arrival():
    rng = np.random.default_rng(0)
    events = [
        (f"i{rng.integers(N)}", float(rng.uniform(0.1, 3)), START_MS + int(rng.integers(-400_000, 400_000))) for _ in range(200)
    ]
    popularity = make()
    for start in range(0, 200, 7):  # several at once, and late ones among them
        popularity.add(events[start : start + 7], 0.0)
    as_of_ms = START_MS + 500_000
    np.testing.assert_allclose(popularity.at(as_of_ms), by_formula(events, as_of_ms), rtol=1e-6)


def test_the_bundles_counts_are_carried_on():
    counts = np.arange(10, dtype=float).reshape(N, 2)
    popularity = make(counts)
    after = popularity.at(START_MS + 100_000)  # one short half-life
    np.testing.assert_allclose(after[:, 0], counts[:, 0] / 2, rtol=1e-6)
    assert counts[1, 0] == 2  # and the bundle's own array is left alone


def test_a_moment_before_the_latest_event_does_not_grow_counts_back():
    popularity = make(np.ones((N, 2)))
    np.testing.assert_array_equal(popularity.at(START_MS - 1_000_000), popularity.at(START_MS))


def test_items_outside_the_catalogue_count_nothing():
    popularity = make()
    popularity.add([("unknown", 1.0, START_MS)], 0.0)
    assert not popularity.at(START_MS).any()


def test_a_refresh_takes_over_what_other_workers_counted():
    popularity = make(np.ones((N, 2)))
    popularity.refresh({"i2": (START_MS + 100_000, (7.0, 8.0)), "gone": (START_MS, (1.0, 1.0))}, began_s=10.0)
    np.testing.assert_allclose(popularity.at(START_MS + 100_000)[2], [7.0, 8.0], rtol=1e-6)
    np.testing.assert_allclose(popularity.at(START_MS + 100_000)[1, 0], 0.5, rtol=1e-6)


@pytest.mark.parametrize("added_s", [9.5, 10.5])  # just before the refresh began, and while it read
def test_a_refresh_never_loses_what_was_counted_here_meanwhile(added_s):
    popularity = make(np.ones((N, 2)))
    popularity.add([("i3", 1.0, START_MS)], added_s)
    popularity.refresh({"i3": (START_MS, (1.0, 1.0))}, began_s=10.0)  # a snapshot from before that increment
    np.testing.assert_allclose(popularity.at(START_MS)[3], [2.0, 2.0])


def test_a_refresh_corrects_what_was_counted_here_long_before():
    popularity = make(np.ones((N, 2)))
    popularity.add([("i3", 5.0, START_MS)], 1.0)  # the store never got it: it was away
    popularity.refresh({"i3": (START_MS, (1.0, 1.0))}, began_s=10.0)
    np.testing.assert_allclose(popularity.at(START_MS)[3], [1.0, 1.0])


def test_the_top_ranks_by_the_shortest_half_life_and_breaks_ties_by_row():
    counts = np.asarray([[1, 9], [3, 0], [1, 0], [5, 0], [1, 0]], float)
    popularity = make(counts)
    assert popularity.top(4, START_MS) == ([3, 1, 0, 2], [5, 3, 1, 1])
    assert popularity.top(99, START_MS)[0] == [3, 1, 0, 2, 4]


def test_ties_of_the_shortest_half_life_go_by_the_longer_one_then_by_row():
    popularity = make(np.asarray([[1, 2], [1, 9], [1, 2], [0, 5], [0, 7]], float))
    assert popularity.top(5, START_MS)[0] == [1, 0, 2, 4, 3]
    assert popularity.top(2, START_MS)[0] == [1, 0]


YEARS_MS = 15 * 365 * 86_400_000


def test_one_event_years_later_leaves_the_order_of_all_the_others():
    popularity = make(np.asarray([[1, 9], [3, 1], [2, 5], [5, 1], [4, 1]], float))
    popularity.add([("i2", 1.0, START_MS + YEARS_MS)], 0.0)
    rows, counts = popularity.top(5, START_MS + YEARS_MS)
    assert rows == [2, 3, 4, 1, 0]
    assert counts == [1, 0, 0, 0, 0]  # too small for a float, and yet in order
    popularity.add([("i0", 1.0, START_MS + 1000 * 1000)], 0.0)  # late by years, and newer than all of the rest
    assert popularity.top(5, START_MS + YEARS_MS)[0] == [2, 0, 3, 4, 1]
    assert popularity.top(5, START_MS + 2 * YEARS_MS)[0] == [2, 0, 3, 4, 1]
    assert popularity.at(START_MS + YEARS_MS)[:, 0].tolist() == [0, 0, 1, 0, 0]


def test_a_refresh_keeps_the_order_of_what_is_years_old():
    popularity = make()
    old = {f"i{row}": (START_MS, (float(row), 1.0)) for row in range(4)}
    popularity.refresh(old | {"i4": (START_MS + YEARS_MS, (0.5, 0.5))}, began_s=10.0)
    assert popularity.top(5, START_MS + YEARS_MS)[0] == [4, 3, 2, 1, 0]


def test_several_events_of_one_item_in_one_call_age_what_was_there_once():
    popularity = make(np.ones((N, 2)))
    popularity.add([("i1", 1.0, START_MS + 100_000), ("i1", 1.0, START_MS + 100_000), ("i1", 1.0, START_MS)], 0.0)
    assert popularity.at(START_MS + 100_000)[1, 0] == pytest.approx(0.5 + 1 + 1 + 0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_a_refresh_leaves_out_what_is_no_count(bad):
    popularity = make(np.ones((N, 2)))
    popularity.refresh({"i1": (START_MS, (bad, 1.0)), "i2": (START_MS, (7.0, 8.0))}, began_s=10.0)
    assert popularity.at(START_MS).tolist() == [[1, 1], [1, 1], [7, 8], [1, 1], [1, 1]]


def test_the_most_popular_of_some_items_come_in_the_order_of_all():
    popularity = make(np.array([[3.0, 3.0], [1.0, 9.0], [5.0, 1.0], [1.0, 2.0], [0.0, 0.0]]))
    assert popularity.top(5, START_MS)[0] == [2, 0, 1, 3, 4]
    assert popularity.top(5, START_MS, (4, 3, 1, 1)) == ([1, 3, 4], [1.0, 1.0, 0.0])
    assert popularity.top(1, START_MS, (4, 3, 1))[0] == [1]
    assert popularity.top(5, START_MS, ()) == ([], [])
