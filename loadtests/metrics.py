"""Reads the service's /metrics: Prometheus' text format, as far as the load tests need it."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

FOLDED: Final = "longwave_folded_events_total"
UNFOLDED_USERS: Final = "longwave_unfolded_users"
UNCOMMITTED_STATES: Final = "longwave_uncommitted_states"
FOLD_LAG: Final = "longwave_fold_lag_seconds"


def parse_metrics(text: str) -> dict[str, float]:
    """Each metric's value, summed over its labels (and, with several workers, over them)."""
    found: dict[str, float] = defaultdict(float)
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            found[series.partition("{")[0]] += float(value)
    return dict(found)


def parse_histogram(text: str, name: str) -> dict[float, float]:
    """Of a histogram, how many observations were at most each bucket's upper edge, summed like the metrics above."""
    found: dict[float, float] = defaultdict(float)
    for edge, count in re.findall(rf'^{name}_bucket{{[^}}]*\ble="([^"]+)"[^}}]*}} (\S+)$', text, re.MULTILINE):
        found[float(edge)] += float(count)
    return dict(found)


def quantile(at_most: Mapping[float, float], share: float) -> float:
    """A quantile of a histogram as Prometheus works it out: within a bucket observations count as evenly spread.

    Args:
        at_most: upper edge -> observations up to it, as of `parse_histogram`, or the difference of two of them.
        share: of the observations, in (0, 1].

    Raises:
        ValueError: there is no observation.
    """
    edges = sorted(at_most)
    if not edges or not at_most[edges[-1]]:
        raise ValueError("the histogram has no observation")
    rank = share * at_most[edges[-1]]
    low, below = 0.0, 0.0
    for edge in edges:
        if at_most[edge] >= rank:
            return edge if math.isinf(edge) else low + (edge - low) * (rank - below) / (at_most[edge] - below)
        low, below = edge, at_most[edge]
    raise AssertionError("the last bucket has all observations")
