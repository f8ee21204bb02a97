"""Decayed counts as training and the offline twin of the service keep them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_world import build, random_world

from model.popularity import LivePopularity, PopularityTable

DAY_MS = 86_400_000
HALF_LIVES_S = (3 * 86_400.0, 30 * 86_400.0)
Observed = st.tuples(st.integers(0, 4), st.floats(0.1, 5), st.integers(0, 40 * DAY_MS))


def direct(observed, items, at_ms):
    """Sum over events of weight * 2^-((t - t_e) / h)."""
    out = np.zeros((items, 2))
    for item, weight, time in observed:
        out[item] += weight * 2 ** (-(at_ms - time) / (1000 * np.asarray(HALF_LIVES_S)))
    return out


@given(st.lists(Observed, min_size=1, max_size=30), st.integers(1, 5), st.integers(0, 90 * DAY_MS))
@settings(max_examples=50, deadline=None)
def test_counts_are_the_decayed_sums_in_whatever_order_and_portions_events_come(observed, portions, later):
    live = LivePopularity(5, HALF_LIVES_S)
    for part in np.array_split(np.array(observed, object), portions):
        rows = part.reshape(-1, 3)
        live.observe(rows[:, 0].astype(int), rows[:, 1].astype(float), rows[:, 2].astype(np.int64))
    moment = max(time for *_, time in observed) + later
    np.testing.assert_allclose(live.at(moment), direct(observed, 5, moment), rtol=1e-5, atol=1e-7)


def test_a_late_event_counts_with_its_own_time():
    live = LivePopularity(2, HALF_LIVES_S)
    live.observe(np.array([0]), np.ones(1), np.array([30 * DAY_MS]))
    live.observe(np.array([1]), np.ones(1), np.array([0]))
    assert live.at(30 * DAY_MS)[1].tolist() == pytest.approx([2**-10, 0.5])
    assert live.at(30 * DAY_MS)[0].tolist() == [1, 1]


def test_a_moment_before_the_latest_event_counts_as_that_event():
    live = LivePopularity(1, HALF_LIVES_S)
    live.observe(np.array([0]), np.ones(1), np.array([10 * DAY_MS]))
    assert np.array_equal(live.at(0), live.at(10 * DAY_MS))
    assert live.at(13 * DAY_MS)[0, 0] == pytest.approx(0.5)


def test_nothing_observed_is_nothing_popular():
    assert (LivePopularity(3, HALF_LIVES_S).at(DAY_MS) == 0).all()


def test_the_ranking_is_that_of_the_counts_and_outlives_them():
    live = LivePopularity(5, HALF_LIVES_S)
    items, weights = np.array([0, 1, 1, 3, 4]), np.array([2.0, 1.0, 4.0, 3.0, 3.0])
    live.observe(items, weights, np.array([0, 0, DAY_MS, 0, 0]))
    assert live.top(5).tolist() == [1, 3, 4, 0, 2]
    live.observe(np.array([0]), np.ones(1), np.array([15 * 365 * DAY_MS]))
    assert live.at(15 * 365 * DAY_MS)[1:, 0].tolist() == [0, 0, 0, 0]
    assert live.top(5).tolist() == [0, 1, 3, 4, 2]
    assert live.top(2).tolist() == [0, 1]


def test_ties_of_the_shortest_half_life_are_broken_by_the_longer_one():
    live = LivePopularity(2, HALF_LIVES_S)
    live.observe(np.array([0, 1]), np.array([1.0, 2.0]), np.array([3 * DAY_MS, 0]))
    assert live.at(3 * DAY_MS)[:, 0].tolist() == [1, 1]
    assert live.top(2).tolist() == [1, 0]


@pytest.mark.parametrize("slots", [4, 37, 1000])
def test_the_table_of_training_holds_what_happened_before_the_slot_of_the_question(slots):
    seq = random_world(3)
    table = PopularityTable.live(seq, HALF_LIVES_S, slots)
    rows = np.flatnonzero(seq.positive)
    events = [(int(seq.item[r]), float(seq.weight[seq.type[r]]), int(seq.time[r])) for r in rows]
    moments = np.unique(np.concatenate([seq.time, seq.time + 1, seq.time - 1, [seq.time.max() + DAY_MS]]))
    found = table.at(torch.as_tensor(moments)).numpy()
    for moment, counts in zip(moments.tolist(), found, strict=True):
        last = len(table.table) - 1
        start = table.start + min(last, max(0, (moment - table.start) // table.width)) * table.width
        # In the first slot nothing is known; in any other nothing of the slot itself or later.
        before = [event for event in events if event[2] < start]
        np.testing.assert_allclose(counts, direct(before, seq.items, start), rtol=1e-4, atol=1e-6)
        assert start <= max(moment, table.start)


def test_the_table_counts_nothing_but_positive_events_and_by_their_weight():
    events = [(0, 0, kind, day * DAY_MS, day) for day, kind in enumerate((0, 1, 2, 0))]
    seq = build(events, items=1)
    found = PopularityTable.live(seq, HALF_LIVES_S, 1000).at(torch.tensor([3 * DAY_MS]))
    assert float(found[0, 0, 1]) == pytest.approx(2**-0.1, rel=1e-3)


def test_a_frozen_table_is_what_was_known_at_every_moment():
    seq = random_world(3)
    known = seq.offsets[:-1] + np.diff(seq.offsets) // 2
    table = PopularityTable.frozen(seq, HALF_LIVES_S, known)
    rows = [row for user in range(seq.users) for row in range(seq.offsets[user], known[user]) if seq.positive[row]]
    live = LivePopularity(seq.items, HALF_LIVES_S)
    live.observe(seq.item[rows], np.ones(len(rows)), seq.time[rows])
    latest = int(seq.time[rows].max())
    for found in table.at(torch.tensor([0, latest, latest + 90 * DAY_MS])):
        np.testing.assert_allclose(found.numpy(), live.at(latest), rtol=1e-6)
