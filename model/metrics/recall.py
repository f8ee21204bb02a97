"""Recall@k = |top k of the list that are targets| / |targets|.

Source: Cleverdon, Mills & Keen 1966. With one target per query it equals hit rate.
"""

from __future__ import annotations

from model.data.sequences import Queries
from model.metrics.hits import Float64, Ranked, hits, relevant


def recall(ranked: Ranked, queries: Queries, k: int) -> Float64:
    """(Q,) in 0..1; NaN for a query without targets. `ranked` as in `hits`."""
    value: Float64 = hits(ranked, queries, k).sum(1) / relevant(queries)
    return value
