"""The bench's arithmetic, on samples whose figures are known."""

import pytest

from loadtests.metrics import parse_metrics
from loadtests.samples import latencies_ms, median, over_rounds, parse_server_timing, percentile, rounded


@pytest.mark.parametrize(("q", "expected"), [(50, 50), (99, 99), (100, 100), (1, 1), (99.5, 100)])
def test_a_percentile_is_the_value_at_its_nearest_rank(q, expected):
    assert percentile(list(range(100, 0, -1)), q) == expected


def test_a_percentile_of_one_value_is_that_value():
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7.0


def test_the_median_of_an_even_number_lies_between_the_two_in_the_middle():
    assert median([4.0, 1.0, 3.0]) == 3.0
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.5


def test_rounds_are_told_with_their_extremes():
    assert over_rounds([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": 3}


def test_latencies_come_in_milliseconds_with_their_number():
    found = latencies_ms([n / 1e3 for n in range(1, 1_001)])
    assert found == pytest.approx({"p50_ms": 500, "p99_ms": 990, "p99.9_ms": 999, "samples": 1_000})


def test_small_numbers_keep_four_digits_and_large_ones_three_decimals():
    assert rounded({"a": [0.000123456, 12.3456789], "b": {"c": 7, "d": True, "e": None, "f": 0.0}}) == {
        "a": [0.0001235, 12.346],
        "b": {"c": 7, "d": True, "e": None, "f": 0.0},
    }


def test_the_header_that_the_service_writes_is_read_back():
    from app.telemetry import Stages

    stages = Stages()
    stages.mark("load")
    stages.mark("score")
    found = parse_server_timing(stages.server_timing())
    assert list(found) == ["load", "score", "service"]
    assert found["load"] == pytest.approx(stages.seconds["load"] * 1e3, abs=1e-3)


def test_a_metric_is_the_sum_over_its_labels():
    text = '# HELP a A.\na_total{by="read"} 2.0\na_total{by="back ground"} 3.0\nb 1.5e+03\n'
    assert parse_metrics(text) == {"a_total": 5.0, "b": 1_500.0}


def test_the_counter_that_stops_the_clock_is_what_the_service_shows():
    from app.telemetry import Metrics
    from loadtests.metrics import FOLDED

    metrics = Metrics()
    metrics.folded.labels("read").inc(2)
    metrics.folded.labels("background").inc(3)
    assert parse_metrics(metrics.render().decode())[FOLDED] == 5.0
