"""What the load tests read out of the service's metrics."""

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from loadtests.metrics import parse_histogram, quantile


def _text(values, name="lag_seconds"):
    registry = CollectorRegistry()
    histogram = Histogram(name, "A lag.", ["by"], buckets=(0.01, 0.02, 0.05), registry=registry)
    for by, value in values:
        histogram.labels(by).observe(value)
    return generate_latest(registry).decode()


def test_a_histogram_is_summed_over_its_labels():
    text = _text([("a", 0.005), ("a", 0.015), ("b", 0.015), ("b", 9.0)])
    assert parse_histogram(text, "lag_seconds") == {0.01: 1, 0.02: 3, 0.05: 3, float("inf"): 4}


def test_a_histogram_is_not_taken_for_one_whose_name_begins_alike():
    assert parse_histogram(_text([("a", 0.005)], "lag_seconds_of_others"), "lag_seconds") == {}


def test_a_quantile_lies_as_far_in_its_bucket_as_its_rank():
    at_most = {0.01: 10.0, 0.02: 30.0, 0.05: 30.0, float("inf"): 40.0}
    assert quantile(at_most, 0.25) == pytest.approx(0.01)
    assert quantile(at_most, 0.5) == pytest.approx(0.015)
    assert quantile(at_most, 0.99) == float("inf")


def test_nothing_has_no_quantile():
    with pytest.raises(ValueError, match="no observation"):
        quantile({0.01: 0.0, float("inf"): 0.0}, 0.5)
