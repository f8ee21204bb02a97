"""From samples to figures: percentiles, and what rounds say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def percentile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least q percent of the values do not exceed (nearest rank), 0 < q <= 100."""
    return sorted(values)[math.ceil(len(values) * q / 100) - 1]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def over_rounds(values: Sequence[float]) -> dict[str, float | int]:
    """What the rounds of a measurement said: how far to trust their median."""
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": len(values)}


def latencies_ms(seconds: Sequence[float]) -> dict[str, float | int]:
    """p50, p99, p99.9 in milliseconds, and how many samples they are of."""
    found: dict[str, float | int] = {f"p{q:g}_ms": percentile(seconds, q) * 1e3 for q in (50, 99, 99.9)}
    return found | {"samples": len(seconds)}


def rounded(value: Any) -> Any:
    """The same with every float at four significant digits, or three decimals where that is more; whatever the nesting."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    if isinstance(value, float) and math.isfinite(value):
        return round(value, 3) if abs(value) >= 1 or value == 0 else float(f"{value:.4g}")
    return value


def parse_server_timing(value: str) -> dict[str, float]:
    """Durations in milliseconds by name, of a Server-Timing header as the service writes it: `load;dur=0.512, ...`."""
    parts = (part.strip().partition(";dur=") for part in value.split(",") if part)
    return {name: float(duration) for name, _, duration in parts}
