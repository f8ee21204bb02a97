"""Reads the service's /metrics: Prometheus' text format, as far as the load tests need it."""

from __future__ import annotations

from collections import defaultdict
from typing import Final

FOLDED: Final = "longwave_folded_events_total"
UNFOLDED_USERS: Final = "longwave_unfolded_users"
UNCOMMITTED_STATES: Final = "longwave_uncommitted_states"


def parse_metrics(text: str) -> dict[str, float]:
    """Each metric's value, summed over its labels (and, with several workers, over them)."""
    found: dict[str, float] = defaultdict(float)
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            found[series.partition("{")[0]] += float(value)
    return dict(found)
