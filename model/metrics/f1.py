"""F1@k = 2 P R / (P + R) of precision@k and recall@k of each query; 0 where both are 0.

Source: van Rijsbergen 1979. Taken per query and then averaged, not computed from averaged precision and recall.
"""

from __future__ import annotations

from model.data.sequences import Queries
from model.metrics.hits import Float64, Ranked, hits, relevant


def f1(ranked: Ranked, queries: Queries, k: int) -> Float64:
    """(Q,) in 0..1; NaN for a query without targets. `ranked` as in `hits`."""
    # 2PR / (P + R) with P = h / k and R = h / n is 2h / (k + n), which needs no special case at h = 0.
    value: Float64 = 2 * hits(ranked, queries, k).sum(1) / (k + relevant(queries))
    return value
