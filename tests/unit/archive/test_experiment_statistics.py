"""Rates and tests of experiments, against worlds whose truth is known; scipy has the textbook's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from app.archive.experiment.statistics import Estimate, chi_square, chi_square_tail, compare, holm, ratio

SIMULATIONS = 1_000
USERS = 1_000


def heavy_users(rng: np.random.Generator, users: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Clicks and lists of users of very different eagerness, who see more lists the more they click. The rate is of lists, over
    all users: sum(E lists x taste) / sum(E lists)."""
    taste = rng.beta(1.0, 1.0 / rate - 1.0, users)
    lists = 1 + rng.poisson(20 * taste / rate)
    return rng.binomial(lists, taste).astype(float), lists.astype(float)


def true_rate(rate: float) -> float:
    """Of `heavy_users`: lists weigh taste by 1 + 20 x taste / rate, and Beta(1, 1 / rate - 1) has this second moment."""
    second = 2 * rate * rate / (1 + rate)
    return (rate + 20 * second / rate) / (1 + 20)


def test_the_interval_holds_the_truth_in_95_of_100_experiments_and_one_of_independent_clicks_does_not():
    rng = np.random.default_rng(1)
    truth = true_rate(0.1)
    clustered = independent = 0
    for _ in range(SIMULATIONS):
        clicks, lists = heavy_users(rng, USERS, 0.1)
        found = ratio(clicks, lists)
        clustered += found.low <= truth <= found.high
        plain = 1.96 * np.sqrt(found.value * (1 - found.value) / lists.sum())
        independent += abs(found.value - truth) <= plain
    assert 0.93 <= clustered / SIMULATIONS <= 0.97
    assert independent / SIMULATIONS < 0.75


def test_intervals_of_difference_and_lift_hold_the_known_lift():
    rng = np.random.default_rng(2)
    before, after = true_rate(0.1), true_rate(0.115)
    held = lifts = 0
    found_lifts = []
    for _ in range(SIMULATIONS):
        found = compare(ratio(*heavy_users(rng, USERS, 0.1)), ratio(*heavy_users(rng, USERS, 0.115)))
        held += found.low <= after - before <= found.high
        lifts += found.lift_low <= after / before - 1 <= found.lift_high
        found_lifts.append(found.lift)
    assert 0.93 <= held / SIMULATIONS <= 0.97
    assert 0.93 <= lifts / SIMULATIONS <= 0.97
    assert np.mean(found_lifts) == pytest.approx(after / before - 1, abs=0.02)


def test_of_two_equal_arms_one_in_twenty_looks_different_and_of_independent_clicks_it_would_be_far_more():
    rng = np.random.default_rng(3)
    alarms = wrong = 0
    for _ in range(SIMULATIONS):
        a, b = heavy_users(rng, USERS, 0.1), heavy_users(rng, USERS, 0.1)
        found = compare(ratio(*a), ratio(*b))
        alarms += found.p < 0.05
        (x, n), (y, m) = ((clicks.sum(), lists.sum()) for clicks, lists in (a, b))
        pooled = (x + y) / (n + m)
        wrong += abs(x / n - y / m) > 1.96 * np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    assert 0.035 <= alarms / SIMULATIONS <= 0.065
    assert wrong / SIMULATIONS > 0.25


def test_holm_keeps_false_alarms_of_twelve_tests_below_one_in_twenty():
    rng = np.random.default_rng(4)
    p_values = rng.uniform(size=(4_000, 12))
    assert np.mean((p_values < 0.05).any(axis=1)) > 0.4
    assert np.mean([min(holm(row)) < 0.05 for row in p_values.tolist()]) <= 0.057


def test_holm_is_the_textbooks_example_in_any_order_and_passes_over_what_is_not_known():
    # 5 x .005, 4 x .01, 3 x .03, then never less than before, never above 1
    assert holm([0.03, None, 0.005, 0.04, 0.01, 0.9]) == pytest.approx([0.09, None, 0.025, 0.09, 0.04, 0.9])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([None]) == [None]


def test_a_rate_over_users_with_one_thing_each_is_the_mean_with_its_textbook_error():
    taken = np.array([1.0, 0, 0, 1, 1, 0, 0, 0])
    found = ratio(taken, np.ones(8))
    assert (found.value, found.error) == pytest.approx((taken.mean(), stats.sem(taken)))
    p = compare(found, ratio(np.array([1.0, 1, 1, 1, 0]), np.ones(5))).p
    z = (0.8 - 0.375) / np.hypot(stats.sem(taken), stats.sem([1, 1, 1, 1, 0]))
    assert p == pytest.approx(2 * stats.norm.sf(z))


@pytest.mark.parametrize(
    ("numerators", "denominators", "expected"),
    [
        ([], [], Estimate(None, None, 0)),
        ([0.0], [0.0], Estimate(None, None, 1)),
        ([2.0], [4.0], Estimate(0.5, None, 1)),
        ([0.0, 0.0], [3.0, 4.0], Estimate(0.0, 0.0, 2)),
    ],
)
def test_what_cannot_be_told_is_none(numerators, denominators, expected):
    assert ratio(np.array(numerators), np.array(denominators)) == expected


def test_nothing_is_said_of_two_arms_in_which_nothing_happened_nor_of_a_lift_over_nothing():
    nothing, something = ratio(np.zeros(9), np.ones(9)), ratio(np.array([1.0, 0, 1]), np.ones(3))
    assert (compare(nothing, nothing).difference, compare(nothing, nothing).p, compare(nothing, nothing).lift) == (
        0.0,
        None,
        None,
    )
    risen = compare(nothing, something)
    assert (risen.lift, risen.lift_low) == (None, None)
    assert risen.p is not None
    fallen = compare(something, nothing)
    assert (fallen.lift, fallen.lift_low, fallen.lift_high) == (-1.0, None, None)
    assert compare(ratio(np.array([]), np.array([])), something).difference is None


@given(st.integers(1, 11), st.floats(0, 300))
def test_the_tail_of_chi_square_is_scipys(degrees, statistic):
    assert chi_square_tail(statistic, degrees) == pytest.approx(stats.chi2.sf(statistic, degrees), rel=1e-9, abs=1e-14)


def test_the_check_of_users_by_arm_is_scipys_too():
    found = chi_square([480, 510, 110], [0.45, 0.45, 0.1])
    theirs = stats.chisquare([480, 510, 110], [495, 495, 110])
    assert found == pytest.approx((theirs.statistic, 2, theirs.pvalue))


def test_a_split_of_52_to_48_is_noticed_with_20000_users_and_fair_ones_are_left_in_peace():
    rng = np.random.default_rng(5)

    def alarms(share: float) -> float:
        counts = rng.binomial(20_000, share, 5_000)
        return float(np.mean([chi_square([n, 20_000 - n], [0.5, 0.5])[2] < 0.001 for n in counts.tolist()]))

    assert alarms(0.52) > 0.98
    assert alarms(0.5) <= 0.003
