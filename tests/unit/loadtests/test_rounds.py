"""Rounds of service and floor: which count, and what they say together."""

import os

import pytest

from loadtests.busy import Busy, core_seconds, cpu_seconds, family
from loadtests.figures import tail, throughput
from loadtests.figures.history import LONG, SHORT, _made_of
from loadtests.figures.unloaded import Timed, figures
from loadtests.pace import Closed, Steady


def load(rps, server=0.99, generator_core=0.5):
    return throughput.Load(Closed(int(rps), 1.0), Busy(1.0, server, generator_core, 0.3))


def contest(ours, theirs, **ours_busy):
    return throughput.Round(load(ours, **ours_busy), load(theirs), 0.01)


def test_the_throughput_ratio_is_the_median_of_the_rounds_so_that_one_burst_spoils_nothing():
    found = throughput.part("get", [contest(50, 100), contest(60, 100), contest(10, 100)], 3)
    assert found.figures == {"get_throughput_ratio": 0.5}
    assert found.void == []
    made_of = found.made_of["get_throughput_ratio"]
    assert (made_of["service"]["rps"], made_of["floor"]["rps"]) == (50, 100)
    assert made_of["service"]["server_busy"] == pytest.approx(0.99)


@pytest.mark.parametrize("busy", [{"server": 0.949}, {"generator_core": 0.95}])
def test_a_round_counts_only_with_the_service_busy_and_the_generators_core_not(busy):
    found = throughput.part("get", [contest(50, 100), contest(90, 100, **busy)], 2)
    assert found.figures == {"get_throughput_ratio": 0.5}
    assert found.made_of["get_throughput_ratio"]["rounds_that_count"] == 1
    assert found.void == []  # half of them is enough


def test_where_too_few_rounds_count_the_figure_is_there_and_says_that_it_does_not_count():
    found = throughput.part("post", [contest(50, 100, server=0.5), contest(70, 100, server=0.7)], 2)
    assert found.figures == {"post_throughput_ratio": 0.6}
    (why,) = found.void
    assert why.startswith("post_throughput_ratio: no ceiling in 2 rounds: the service's core was 60% busy")


def test_busy_shares_add_up_over_turns():
    both = Busy(1.0, 1.0, 0.2, 0.1) + Busy(3.0, 2.0, 0.6, 0.3)
    assert (both.server, both.generator_core, both.generator) == pytest.approx((0.75, 0.2, 0.1))


def window(p99_ms, late_ms=0.01):
    return Steady([0.001] * 98 + [p99_ms / 1e3] * 2, [late_ms / 1e3] * 100)


def test_the_p99_ratio_is_the_median_of_the_rounds_that_a_punctual_generator_made():
    rounds = [tail.Round(window(6), window(4)), tail.Round(window(8), window(4)), tail.Round(window(90, late_ms=2), window(3))]
    found = tail.part(rounds, 500.0, 2)
    assert found.figures["get_p99_ratio"] == pytest.approx(1.75)
    assert found.made_of["get_p99_ratio"]["rounds_that_count"] == 2
    assert found.made_of["get_p99_ratio"]["service"]["p99_ms"] == pytest.approx(6)  # of 200 together
    assert found.void == []


def test_a_generator_that_was_late_in_most_rounds_voids_the_p99_ratio():
    rounds = [tail.Round(window(6, late_ms=2), window(4))] * 4
    (why,) = tail.part(rounds, 500.0, 2).void
    assert why.startswith("get_p99_ratio: 0 of 4 rounds in which the generator was punctual (p99 2.00 ms)")


def test_rounds_in_which_the_host_stalled_the_floor_flatter_nobody():
    stalled = [tail.Round(window(5), window(250)), tail.Round(window(6), window(4))]
    found = tail.part([*stalled, tail.Round(window(6), window(1)), tail.Round(window(5), window(1))], 500.0, 2)
    assert found.figures["get_p99_ratio"] == pytest.approx(5.5)
    assert found.made_of["get_p99_ratio"]["rounds_that_count"] == 2
    assert found.made_of["get_p99_ratio"]["rounds_measured"] == 4
    assert found.void == []


def test_the_history_ratio_is_the_clients_and_the_services_stands_beside():
    rounds = [([(2.2, 1.0)] * 3, [(2.0, 1.0)] * 3), ([(2.0, 1.2)] * 3, [(2.0, 1.0)] * 3), ([(2.1, 1.1)] * 3, [(2.0, 1.0)] * 3)]
    found = _made_of(rounds)
    assert found["ratio_rounds"]["median"] == pytest.approx(1.05)
    assert found["service_ratio"] == pytest.approx(1.1)
    assert (found["long_client_p50_ms"], found["short_client_p50_ms"], found["samples_each"]) == (2.1, 2.0, 9)
    assert (LONG, SHORT) == (100_000, 10)


def test_stages_that_the_service_names_become_figures():
    timed = [Timed(n / 1e3, {"load": 0.5, "score": n / 2 - 0.5, "service": n / 2}) for n in range(1, 101)]
    found = figures(timed, [0.002] * 9, [0.003] * 9, timed[:9])
    assert (found["get_client_p50_ms"], found["get_client_p99_ms"]) == (50.0, 99.0)
    assert (found["get_service_p50_ms"], found["get_load_p50_ms"], found["get_score_p50_ms"]) == (25.0, 0.5, 24.5)
    assert (found["floor_client_p50_ms"], found["post_client_p50_ms"], found["get_after_post_p50_ms"]) == (2.0, 3.0, 2.5)
    assert "fold_event_p50_ms" not in found


def test_processor_time_of_a_process_and_of_its_core_grow_as_it_works():
    core = min(os.sched_getaffinity(0))
    before, core_before = cpu_seconds(os.getpid()), core_seconds(core)
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        while cpu_seconds(os.getpid()) < before + 0.1:
            sum(range(10_000))
    finally:
        os.sched_setaffinity(0, usual)
    assert cpu_seconds(os.getpid()) < before + 1
    assert core_seconds(core) >= core_before + 0.05
    assert family(os.getpid())[0] == os.getpid()
